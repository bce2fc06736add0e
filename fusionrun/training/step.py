"""One update as a static program: what lasts is changed in place, and no number is waited for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fusionrun.data.loader import Batch
from fusionrun.training.epoch import Meter
from fusionrun.training.fitting import Fitting
from fusionrun.training.guard import Guard
from fusionrun.training.inference import heads_of
from fusionrun.training.losses import head_correct, head_losses
from fusionrun.training.optim import Group
from fusionrun.training.precision import Precision


@dataclass(frozen=True)
class Optimisation:
    """What an update minimises, and how."""

    optimizer: torch.optim.Optimizer
    groups: Sequence[Group]
    head_weights: Tensor  # (H,) of the heads' losses, on the training device
    label_smoothing: float
    batch_field: str  # of the recipe, for advice when memory runs out
    precision: Precision
    # images that pass through the model at a time, None: all; auto: half as many when memory runs
    # out, and so on. The optimizer sees the whole batch
    micro_batch: int | Literal["auto"] | None = None
    # compute a row's experts again in the backward pass; auto: where memory runs out
    recompute: bool | Literal["auto"] = False
    frozen: Sequence[nn.Module] = ()  # stay in evaluation mode, without gradients
    # whether others' updates are made in between; while it has, it does nothing with less memory
    has_company: Callable[[], bool] = lambda: False
    graphs: bool = True  # a GPU replays full batches from a CUDA graph, see training/graphs.py
    compiles: bool = True  # and with kernels made for the network, see training/compiling.py


class Step:
    """One update of a model from a batch.

    All that it reads and writes and that outlives it (`lasting`: weights, statistics of norms,
    moments, the guard's and the meter's numbers; and the rates) are tensors that stay where they
    are. Its `program` asks no number of the device's, so whoever records what it asks of a GPU can
    have that done again with another batch in the same place.
    """

    def __init__(
        self, model: nn.Module, optimisation: Optimisation, say: Callable[[str], None]
    ) -> None:
        self.model, self.optimisation = model, optimisation
        self.device = optimisation.head_weights.device
        how = optimisation.micro_batch, optimisation.recompute, optimisation.has_company
        self.fitting = Fitting(model, *how)
        self.meter = Meter(optimisation.head_weights)  # of the current epoch
        self.guard = Guard(optimisation.precision, self.device)
        optimisation.optimizer.found_inf = self.guard.found_inf  # type: ignore[attr-defined]
        self._say = say

    def __call__(self, batch: Batch, seed: int) -> Tensor:
        """The update, with dropout as `seed` wants it; the mean loss of every head (H,).

        Where memory runs out it is begun again with less. Raises ShortOfMemoryError where that
        can't be; then nothing has changed.
        """
        images, optimisation = len(batch.labels), self.optimisation
        self.fitting.remember()
        while True:
            self.seed(seed)  # at every attempt: dropout never depends on one that failed
            try:
                losses, correct, norm = self._learn(batch)
                break
            except Exception as error:  # whose traceback holds the activations until it's left
                if not self.fitting.is_short(error):
                    raise
            optimisation.optimizer.zero_grad()
            advice = f"lower {optimisation.batch_field}, or put fewer ranks on a GPU"
            if optimisation.micro_batch is None:
                advice = f"set fusion.micro_batch=auto, {advice}"
            self._say(self.fitting.shrink(images, self.device, advice))
        self._update(losses, correct, norm, images)
        return losses

    def program(self, batch: Batch) -> Tensor:
        """As a call, once the generators are seeded and where memory is known to suffice."""
        losses, correct, norm = self._learn(batch)
        self._update(losses, correct, norm, len(batch.labels))
        return losses

    def seed(self, seed: int) -> None:
        """torch.manual_seed visits all kinds of devices, which takes ninety times as long."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _learn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Leave the batch's clipped gradients in the weights: its (H,) losses, (H,) correct

        answers, and the norm of all gradients before. Nothing else changes but norms' statistics.
        """
        optimisation, parts = self.optimisation, []
        optimisation.optimizer.zero_grad()
        for part in batch.split(self.fitting.micro_batch):
            share = len(part.labels) / len(batch.labels)
            with optimisation.precision.autocast(self.device):
                logits = heads_of(self.model(part.images))
            losses = head_losses(logits, part.targets, optimisation.label_smoothing) * share
            loss = self.guard.scaled(losses @ optimisation.head_weights)
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append((losses.detach(), head_correct(logits.detach(), part.targets)))
        losses, correct = (torch.stack(each).sum(dim=0) for each in zip(*parts, strict=True))
        return losses, correct, self.guard.clip(optimisation.groups)

    def _update(self, losses: Tensor, correct: Tensor, norm: Tensor, images: int) -> None:
        self.guard.judge(losses @ self.optimisation.head_weights, norm)
        self.optimisation.optimizer.step()
        self.meter.add(losses, correct, images)

    def lasting(self) -> Iterator[Tensor]:
        """Every tensor that a step changes and a later one reads."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimisation.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from (*self.guard.lasting, self.meter.losses, self.meter.correct)
