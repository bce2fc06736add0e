"""The forward pass of whatever is trained: an expert has one head, a fusion model 1 + E."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionrun.data.augmentation.batch import one_hot
from fusionrun.data.loader import Batch, ResidentLoader
from fusionrun.fusions import FusionModel, FusionOutput
from fusionrun.fusions.branches import in_turn
from fusionrun.training.fitting import Parts, short_of_memory
from fusionrun.training.losses import head_correct, head_losses
from fusionrun.training.precision import Precision, keep_casts
from fusionrun.training.scores import averaged_accuracy


def forward_heads(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all heads (N, H, C): of a fusion model the fused head, then the experts'."""
    return heads_of(model(images))


def heads_of(output: FusionOutput | tuple[Tensor, Tensor]) -> Tensor:
    """The same, from what a model answered."""
    if isinstance(output, FusionOutput):
        return torch.cat([output.logits.unsqueeze(1), output.expert_logits], dim=1)
    return output[1].unsqueeze(1)


@torch.no_grad()
def collect_logits(
    models: Sequence[nn.Module],
    loader: ResidentLoader,
    precision: Precision,
    parts: Parts | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass in evaluation mode: float32 logits (N, H, C) and labels (N,), on the device.

    H are the heads of all `models`, one model's after another's; a fusion model that comes first
    has those after it computed as its experts. In as many `parts` as memory needs; who asks often
    keeps them. Raises ShortOfMemoryError.
    """
    first, *others = models
    branches = first.branches if isinstance(first, FusionModel) else in_turn
    for model in models:
        model.eval()

    def ask(batch: Batch) -> tuple[Tensor, Tensor]:
        with precision.autocast(batch.images.device):
            outputs = [first(batch.images), *branches(others, batch.images)]
        return torch.cat([heads_of(each).float() for each in outputs], dim=1), batch.labels

    asked = (parts or Parts()).of(loader.evaluation_batches(), ask, in_caches=True)
    with keep_casts(loader.device):
        logits, labels = zip(*asked, strict=True)
    return torch.cat(logits), torch.cat(labels)


def validation_scores(
    model: nn.Module, loader: ResidentLoader, precision: Precision, parts: Parts
) -> tuple[list[float], list[float], float | None]:
    """Of one pass in evaluation mode: plain cross-entropy and accuracy in percent of every

    head, and the accuracy of the mean of the experts' probabilities, where there are experts.
    Raises ShortOfMemoryError.
    """
    with short_of_memory(loader.device, "in validation"):
        return _scores(*collect_logits([model], loader, precision, parts))


def _scores(logits: Tensor, labels: Tensor) -> tuple[list[float], list[float], float | None]:
    """Of answers (N, H, C) to labels (N,)."""
    targets = one_hot(labels, logits.shape[-1])
    losses = head_losses(logits, targets)
    accuracies = 100 * head_correct(logits, targets).double() / len(labels)
    return losses.tolist(), accuracies.tolist(), averaged_accuracy(logits[:, 1:], labels)
