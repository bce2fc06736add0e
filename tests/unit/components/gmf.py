"""The four networks of GMF, the system before this one, with its modules' names.

Written anew from what its files and papers say, as something to compare ours with.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = size // 2
    return nn.Conv2d(inside, outside, size, stride, padding, groups=groups, bias=False)


def pooled(maps: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(maps, 1).flatten(1)


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inside, outside, 3, stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = conv(outside, outside, 3), nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, classes: int, blocks: Sequence[int] = (2, 2, 2, 2), width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 3), nn.BatchNorm2d(width)
        inside = width
        self.stages = len(blocks)
        for stage, count in enumerate(blocks):
            layer = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                layer.append(BasicBlock(inside, width * 2**stage, stride))
                inside = width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        return pooled(out), self.linear(pooled(out))


class WideBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, outside, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), conv(outside, outside, 3)
        self.conv_shortcut = conv(inside, outside, 1, stride) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.conv_shortcut is None else self.conv_shortcut(active))


class WideGroup(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, count: int) -> None:
        super().__init__()
        first = WideBlock(inside, outside, stride)
        self.layer = nn.Sequential(
            first, *(WideBlock(outside, outside, 1) for _ in range(count - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


class WideResNet(nn.Module):
    def __init__(self, classes: int, depth: int = 28, widen: int = 10, width: int = 16) -> None:
        super().__init__()
        count, sizes = (depth - 4) // 6, [width, *(width * widen * 2**n for n in range(3))]
        self.conv1 = conv(3, width, 3)
        self.block1 = WideGroup(sizes[0], sizes[1], 1, count)
        self.block2 = WideGroup(sizes[1], sizes[2], 2, count)
        self.block3 = WideGroup(sizes[2], sizes[3], 2, count)
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        features = pooled(F.relu(self.bn1(out)))
        return features, self.fc(features)


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.dense_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            conv(inside, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            conv(4 * growth, growth, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.dense_layer(x)], 1)


class DenseBlock(nn.Module):
    def __init__(self, inside: int, growth: int, count: int) -> None:
        super().__init__()
        layers = [DenseLayer(inside + n * growth, growth) for n in range(count)]
        self.dense_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.dense_block(x)
        return found


class Transition(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.transition_layer = nn.Sequential(
            nn.BatchNorm2d(inside), nn.ReLU(), conv(inside, inside // 2, 1), nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.transition_layer(x)
        return found


class DenseNet(nn.Module):
    def __init__(
        self,
        classes: int,
        blocks: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        stem: int = 64,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, stem, 3), nn.BatchNorm2d(stem), nn.ReLU())
        inside = stem
        for index, count in enumerate(blocks, start=1):
            self.features.add_module(f"denseblock{index}", DenseBlock(inside, growth, count))
            inside += count * growth
            if index < len(blocks):
                self.features.add_module(f"transition{index}", Transition(inside))
                inside //= 2
        self.features.add_module("norm_final", nn.BatchNorm2d(inside))
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = pooled(F.relu(self.features(x)))
        return features, self.classifier(features)


class Bottleneck(nn.Module):
    def __init__(
        self, inside: int, inner: int, outside: int, stride: int, cardinality: int
    ) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), conv(inside, inner, 1)
        self.bn2, self.bn3 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
        grouped = conv(inner, inner, 3, stride, cardinality)
        self.conv2 = nn.Sequential(OrderedDict(conv=grouped))
        self.conv3 = conv(inner, outside, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(conv(inside, outside, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        added: Tensor = out + self.shortcut(x)  # of the block's input, not of the activated one
        return added


class ResNeXt(nn.Module):
    def __init__(
        self,
        classes: int,
        depth: int = 29,
        cardinality: int = 8,
        base_width: int = 64,
        stem: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = conv(3, stem, 3)
        inside, inner, outside = stem, cardinality * base_width, 4 * stem
        for stage in range(3):
            layer = []
            for block in range((depth - 2) // 9):
                stride = 2 if stage and not block else 1
                layer.append(Bottleneck(inside, inner, outside, stride, cardinality))
                inside = outside
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
            inner, outside = 2 * inner, 2 * outside
        self.bn, self.linear = nn.BatchNorm2d(inside), nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.conv1(x)
        for stage in range(3):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        features = pooled(F.relu(self.bn(out)))
        return features, self.linear(features)


# {our name: (the name in its files, the network)}
NETWORKS: dict[str, tuple[str, type[nn.Module]]] = {
    "densenet": ("densenet121", DenseNet),
    "resnet": ("resnet18", ResNet),
    "improved_wide_resnet": ("wideresnet28_10", WideResNet),
    "resnext": ("preact_resnext29_8x64d", ResNeXt),
}


@torch.no_grad()
def trained(model: str, classes: int, seed: int, **sizes: object) -> nn.Module:
    """The network under our name `model`, as after some training: weights and batch statistics."""
    torch.manual_seed(seed)
    network = NETWORKS[model][1](classes, **sizes)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(1000)
        elif value.dim() == 1:
            value.add_(0.2 * torch.randn_like(value))
    return network.eval()
