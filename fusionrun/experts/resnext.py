"""Pre-activation ResNeXt: bottlenecks whose 3x3 convolution is split into groups."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Expert, conv1x1, conv3x3, depth_of_form, dropout_rate, whole_number

EXPANSION = 4  # output channels of a block per plane


class PreActivationBottleneck(nn.Module):
    """(N, in, h, w) -> (N, out, h/stride, w/stride) by 1x1, grouped 3x3 and 1x1 convolutions."""

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        cardinality: int,
        stride: int,
        dropout: float,
        shortcut: str,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups=cardinality)
        self.dropout = nn.Dropout(dropout)
        self.norm3 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, out_channels)
        self.reads_input = shortcut == "input"
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x), inplace=True)
        short = x
        if self.shortcut is not None:
            short = self.shortcut(x if self.reads_input else active)
        out = F.relu(self.norm2(self.conv1(active)), inplace=True)
        out = F.relu(self.norm3(self.dropout(self.conv2(out))), inplace=True)
        residual: Tensor = self.conv3(out)
        return residual + short


class PreActivationResNeXt(Expert):
    """ResNeXt (Xie et al. 2017) in pre-activation form (He et al. 2016, "Identity mappings").

    The defaults are preact ResNeXt-29, 8x64d: D = 1024; 34,515,364 parameters at 100 classes.
    Three stages, the last two of which halve the map; each doubles both the inner width,
    cardinality * base_width in stage 1, and the output channels, 4 * stem in stage 1.

    depth: 9n+2, with n bottlenecks of three convolutions in each stage.
    cardinality: groups of the 3x3 convolution.
    base_width: channels of each group in stage 1.
    stem: channels of the first convolution.
    dropout: rate after the grouped convolution, in [0, 1).
    shortcut: what a projected shortcut reads, the block's input `activated` (He et al. 2016,
        "Identity mappings") or the `input` itself, as some other code has it.

    Raises ValueError when an argument is none of these.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 29,
        cardinality: int = 8,
        base_width: int = 64,
        stem: int = 64,
        dropout: float = 0.3,
        shortcut: str = "activated",
    ) -> None:
        if shortcut not in ("activated", "input"):
            raise ValueError(f"shortcut must be 'activated' or 'input', found {shortcut!r}")
        count = depth_of_form(depth, step=9, offset=2)
        cardinality = whole_number("cardinality", cardinality)
        inner = cardinality * whole_number("base_width", base_width)
        channels = whole_number("stem", stem)
        out_channels = EXPANSION * channels
        dropout = dropout_rate(dropout)

        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        trunk["stem"] = conv3x3(3, channels)
        for stage in range(3):
            blocks: list[nn.Module] = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(
                    PreActivationBottleneck(
                        channels, inner, out_channels, cardinality, stride, dropout, shortcut
                    )
                )
                channels = out_channels
            trunk[f"stage{stage + 1}"] = nn.Sequential(*blocks)
            inner, out_channels = 2 * inner, 2 * out_channels
        trunk["norm"] = nn.BatchNorm2d(channels)
        trunk["relu"] = nn.ReLU(inplace=True)
        super().__init__(num_classes, nn.Sequential(trunk), channels, new_trunk=True)
        self.shortcut = shortcut
