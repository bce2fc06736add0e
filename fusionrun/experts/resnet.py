"""ResNet with basic blocks, for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Expert, blocks_per_stage, conv1x1, conv3x3, dropout_rate, whole_number


class BasicBlock(nn.Module):
    """(N, in, h, w) -> (N, out, h/stride, w/stride): two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(self.dropout(out)))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(Expert):
    """ResNet (He et al. 2016, "Deep residual learning") with a 3x3 stem at stride 1, no max-pool.

    The defaults are ResNet-18: D = 512; 11,220,132 parameters at 100 classes.

    blocks: basic blocks in each stage; any number of stages. All but the first halve the map.
    width: channels of the stem and of stage 1; each further stage doubles them.
    dropout: rate between the two convolutions of a block, in [0, 1).

    Raises ValueError when an argument is none of these.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        channels = whole_number("width", width)
        dropout = dropout_rate(dropout)

        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        trunk["stem"] = conv3x3(3, channels)
        trunk["stem_norm"] = nn.BatchNorm2d(channels)
        trunk["stem_relu"] = nn.ReLU(inplace=True)
        for stage, count in enumerate(blocks_per_stage(blocks)):
            out_channels, stride = width * 2**stage, 1 if stage == 0 else 2
            trunk[f"stage{stage + 1}"] = nn.Sequential(
                BasicBlock(channels, out_channels, stride, dropout),
                *(BasicBlock(out_channels, out_channels, 1, dropout) for _ in range(count - 1)),
            )
            channels = out_channels
        super().__init__(num_classes, nn.Sequential(trunk), channels, new_trunk=True)
