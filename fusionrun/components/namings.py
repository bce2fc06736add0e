"""The names that other code gives to the tensors of the same networks.

A naming is recognised by its names: all of a network's tensors must be there once renamed. Names
alone don't make two networks equal, so each naming here was compared with the code that it is of;
where that computes something else, the naming says what, and its weights are refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """How other code names the tensors of one of our architectures."""

    words: str  # as logs say
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]  # regexes, all in order
    needs: tuple[tuple[str, object], ...] = ()  # arguments that compute what that code does
    refused: str = ""  # why no argument does

    def rename(self, name: str) -> str:
        """A tensor's name of theirs as ours; one that isn't known comes back changed or not."""
        for pattern, ours in self.renames:
            name = re.sub(pattern, ours, name)
        return name


OURS = Naming("", ())


def trunk_naming(heads: Sequence[str], words: str) -> Naming:
    """Of a network that stands whole as an expert's trunk, but for its classifiers `heads`."""
    renames = [(rf"^trunk\.{re.escape(head)}\.", "classifier.") for head in heads]
    return Naming(words, (("^", "trunk."), *renames))


_STAGES = (r"^layer(\d)\.", r"trunk.stage\1.")
_BLOCK_NORMS = (r"^(trunk\.\w+\.\d+)\.bn(\d)\.", r"\1.norm\2.")
_STEM = ((r"^conv1\.", "trunk.stem."), (r"^bn1\.", "trunk.stem_norm."))
_RESNET = (*_STEM, _STAGES, _BLOCK_NORMS)

# pytorch-cifar: github.com/kuangliu/pytorch-cifar. pytorch-cifar100: github.com/weiaicunzai.
# GMF: github.com/hanjidani/GMF, the system before this one.
NAMINGS: dict[str, tuple[Naming, ...]] = {
    "resnet": (
        Naming("pytorch-cifar names, which GMF has too", (*_RESNET, (r"^linear\.", "classifier."))),
        Naming(
            "torchvision names, taken to have no max-pool behind the stem",
            (*_RESNET, (r"\.downsample\.", ".shortcut."), (r"^fc\.", "classifier.")),
        ),
        Naming(
            "pytorch-cifar100 names",
            (
                (r"^conv1\.0\.", "trunk.stem."),
                (r"^conv1\.1\.", "trunk.stem_norm."),
                (r"^conv(\d)_x\.", lambda found: f"trunk.stage{int(found[1]) - 1}."),
                (r"\.residual_function\.0\.", ".conv1."),
                (r"\.residual_function\.1\.", ".norm1."),
                (r"\.residual_function\.3\.", ".conv2."),
                (r"\.residual_function\.4\.", ".norm2."),
                (r"^fc\.", "classifier."),
            ),
        ),
    ),
    "improved_wide_resnet": (
        Naming(
            "GMF and WideResNet-pytorch names",
            (
                (r"^conv1\.", "trunk.stem."),
                (r"^bn1\.", "trunk.norm."),
                (r"^block(\d)\.layer\.", r"trunk.group\1."),
                _BLOCK_NORMS,
                (r"\.(conv_shortcut|convShortcut)\.", ".shortcut."),
                (r"^fc\.", "classifier."),
            ),
        ),
    ),
    "densenet": (
        Naming(
            "GMF names",
            (
                (r"^features\.0\.", "trunk.stem."),
                (r"^features\.1\.", "trunk.stem_norm."),
                (r"^features\.norm_final\.", "trunk.norm."),
                (r"^features\.denseblock(\d)\.dense_block\.(\d+)\.", r"trunk.block\1.\2."),
                (r"\.dense_layer\.0\.", ".norm1."),
                (r"\.dense_layer\.2\.", ".conv1."),
                (r"\.dense_layer\.3\.", ".norm2."),
                (r"\.dense_layer\.5\.", ".conv2."),
                (r"^features\.transition(\d)\.transition_layer\.", r"trunk.transition\1."),
            ),
        ),
        Naming(
            "torchvision names, taken to have no max-pool behind the stem",
            (
                (r"^features\.conv0\.", "trunk.stem."),
                (r"^features\.norm0\.", "trunk.stem_norm."),
                (r"^features\.norm\d\.", "trunk.norm."),
                (
                    r"^features\.denseblock(\d)\.denselayer(\d+)\.",
                    lambda found: f"trunk.block{found[1]}.{int(found[2]) - 1}.",
                ),
                (r"^features\.transition(\d)\.norm\.", r"trunk.transition\1.0."),
                (r"^features\.transition(\d)\.conv\.", r"trunk.transition\1.2."),
            ),
        ),
        Naming(
            "pytorch-cifar names",
            (
                (r"^conv1\.", "trunk.stem."),
                (r"^bn\.", "trunk.norm."),
                (r"^dense(\d)\.", r"trunk.block\1."),
                _BLOCK_NORMS,
                (r"^trans(\d)\.bn\.", r"trunk.transition\1.0."),
                (r"^trans(\d)\.conv\.", r"trunk.transition\1.2."),
                (r"^linear\.", "classifier."),
            ),
            refused="that DenseNet has no batch norm behind its stem and puts a layer's new "
            "channels before the others, ours behind them",
        ),
    ),
    "resnext": (
        Naming(
            "GMF names",
            (
                (r"^conv1\.", "trunk.stem."),
                (r"^bn\.", "trunk.norm."),
                _STAGES,
                _BLOCK_NORMS,
                (r"\.conv2\.conv\.", ".conv2."),
                (r"\.shortcut\.0\.", ".shortcut."),
                (r"^(fc|linear)\.", "classifier."),
            ),
            needs=(("shortcut", "input"),),
        ),
        Naming(
            "pytorch-cifar names",
            (*_RESNET, (r"\.conv2\.conv\.", ".conv2."), (r"^(fc|linear)\.", "classifier.")),
            refused="that ResNeXt normalises behind its convolutions, ours before them "
            "(pre-activation)",
        ),
    ),
}
