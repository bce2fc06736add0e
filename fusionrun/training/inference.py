"""The forward pass of whatever is trained: an expert has one head, a fusion model 1 + E."""

import torch
from torch import Tensor, nn

from fusionrun.data.loader import ResidentLoader
from fusionrun.fusions import FusionOutput
from fusionrun.training.precision import Precision


def forward_heads(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all heads (N, H, C): of a fusion model the fused head, then the experts'."""
    output = model(images)
    if isinstance(output, FusionOutput):
        return torch.cat([output.logits.unsqueeze(1), output.expert_logits], dim=1)
    logits: Tensor = output[1]
    return logits.unsqueeze(1)


@torch.no_grad()
def collect_logits(
    model: nn.Module, loader: ResidentLoader, *, precision: Precision
) -> tuple[Tensor, Tensor]:
    """One pass in evaluation mode: float32 logits (N, H, C) and labels (N,), on the device."""
    model.eval()
    logits, labels = [], []
    for batch in loader.evaluation_batches():
        with precision.autocast(batch.images.device):
            logits.append(forward_heads(model, batch.images).float())
        labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)
