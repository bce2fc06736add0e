"""DenseNet-BC for small images: every layer reads the outputs of all layers before it."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import (
    Expert,
    blocks_per_stage,
    compression_factor,
    conv1x1,
    conv3x3,
    dropout_rate,
    whole_number,
)


class DenseLayer(nn.Module):
    """(N, C, h, w) -> (N, C + growth, h, w): the input, with `growth` new channels behind it."""

    def __init__(self, channels: int, growth: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        inner = bottleneck * growth
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = conv1x1(channels, inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, growth)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x), inplace=True))
        new = self.conv2(F.relu(self.norm2(new), inplace=True))
        return torch.cat((x, self.dropout(new)), dim=1)


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, C, h, w) -> (N, out_channels, h/2, w/2), between two dense blocks."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        conv1x1(in_channels, out_channels),
        nn.AvgPool2d(2),
    )


class DenseNet(Expert):
    """DenseNet-BC (Huang et al. 2017) with a 3x3 stem at stride 1 and no max-pool.

    The defaults are DenseNet-121: D = 1024; 7,048,676 parameters at 100 classes. The map halves
    between blocks, so images need a side of at least 2 ** (len(blocks) - 1).

    growth: channels that each layer adds.
    blocks: layers in each dense block; any number of blocks.
    bottleneck: width of a layer's 1x1 convolution, in units of `growth`.
    compression: share of the channels that a transition keeps, in (0, 1].
    stem: channels of the first convolution.
    dropout: rate on each layer's new channels, in [0, 1).

    Raises ValueError when an argument is none of these.
    """

    def __init__(
        self,
        num_classes: int,
        growth: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        bottleneck: int = 4,
        compression: float = 0.5,
        stem: int = 64,
        dropout: float = 0.0,
    ) -> None:
        growth = whole_number("growth", growth)
        bottleneck = whole_number("bottleneck", bottleneck)
        compression = compression_factor(compression)
        channels = whole_number("stem", stem)
        dropout = dropout_rate(dropout)

        trunk: OrderedDict[str, nn.Module] = OrderedDict()
        trunk["stem"] = conv3x3(3, channels)
        trunk["stem_norm"] = nn.BatchNorm2d(channels)
        trunk["stem_relu"] = nn.ReLU(inplace=True)
        for block, layers in enumerate(blocks_per_stage(blocks), start=1):
            if block > 1:
                kept = max(1, int(channels * compression))
                trunk[f"transition{block - 1}"] = transition(channels, kept)
                channels = kept
            widths = range(channels, channels + layers * growth, growth)
            trunk[f"block{block}"] = nn.Sequential(
                *(DenseLayer(width, growth, bottleneck, dropout) for width in widths)
            )
            channels += layers * growth
        trunk["norm"] = nn.BatchNorm2d(channels)
        trunk["relu"] = nn.ReLU(inplace=True)
        super().__init__(num_classes, nn.Sequential(trunk), channels, new_trunk=True)
