"""Wide residual network: few, wide pre-activation blocks with dropout between convolutions."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Expert, conv1x1, conv3x3, depth_of_form, dropout_rate, whole_number


class WideBlock(nn.Module):
    """(N, in, h, w) -> (N, out, h/stride, w/stride): norm and ReLU come before each convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x), inplace=True)
        # A projected shortcut reads the activated input, a plain one the input itself, as in the
        # authors' code.
        short = x if self.shortcut is None else self.shortcut(active)
        out = F.relu(self.norm2(self.conv1(active)), inplace=True)
        residual: Tensor = self.conv2(self.dropout(out))
        return residual + short


class ImprovedWideResNet(Expert):
    """Wide ResNet (Zagoruyko & Komodakis 2016), with dropout 0.3 by default.

    The defaults are WRN-28-10: D = 640; 36,536,884 parameters at 100 classes. Three groups, the
    last two of which halve the map.

    depth: 6n+4, with n blocks in each group.
    widen: factor on the channels of the three groups, width * widen * (1, 2, 4).
    dropout: rate between the two convolutions of a block, in [0, 1).
    width: channels of the stem.

    Raises ValueError when an argument is none of these.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 28,
        widen: int = 10,
        dropout: float = 0.3,
        width: int = 16,
    ) -> None:
        count = depth_of_form(depth, step=6, offset=4)
        widen = whole_number("widen", widen)
        dropout = dropout_rate(dropout)
        channels = whole_number("width", width)

        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        trunk["stem"] = conv3x3(3, channels)
        for group in range(3):
            out_channels, stride = width * widen * 2**group, 1 if group == 0 else 2
            trunk[f"group{group + 1}"] = nn.Sequential(
                WideBlock(channels, out_channels, stride, dropout),
                *(WideBlock(out_channels, out_channels, 1, dropout) for _ in range(count - 1)),
            )
            channels = out_channels
        trunk["norm"] = nn.BatchNorm2d(channels)
        trunk["relu"] = nn.ReLU(inplace=True)
        super().__init__(num_classes, nn.Sequential(trunk), channels, new_trunk=True)
