"""Which updates are made: none with numbers that aren't finite, and at which scale of the loss.

Everything is decided on the device, where the fused optimizers read it, so that nobody waits; the
host reads what happened when it reports.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionrun.training.optim import Group, clip_gradients
from fusionrun.training.precision import Precision

# as torch.amp.GradScaler's, which has no bounds (Micikevicius et al. 2018, section 3.2)
FIRST_SCALE, LARGEST_SCALE, LOWEST_SCALE = 2.0**16, 2.0**24, 1.0
GROWTH_STEPS = 2000  # in a row without an overflow; then the scale is doubled
LOST_STEPS = 20  # in a row with one at the lowest scale; then training is given up


class Seen(NamedTuple):
    """What the guard has seen."""

    bad_step: int  # the epoch's first that ended all updates, from 0; -1: none
    lost: int  # steps in a row that overflowed at the lowest scale
    skipped: int  # of the epoch's updates, for an overflow
    scale: float
    fine: int  # steps in a row at this scale

    @property
    def problem(self) -> str:
        """What ended all updates, "" while they are made."""
        if self.bad_step < 0:
            return ""
        if self.lost >= LOST_STEPS:
            return f"gradients overflowed fp16 in {self.lost} steps in a row, the last of them"
        return "loss or gradient was not finite"


class Guard:
    """Scales the loss where the precision needs it, and makes the optimizer skip updates.

    A loss that isn't finite ends all updates. So does a gradient, unless the loss is scaled: then
    it's an overflow, whose update alone is skipped and which halves the scale, and only LOST_STEPS
    of them in a row at the lowest scale are the end.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self._is_scaled = precision.is_scaled
        numbers = [torch.full((), float(n), device=device) for n in (-1, 0, 0, FIRST_SCALE, 0, 0)]
        self._bad_step, self._lost, self._skipped, self._scale, self._fine, self._step = numbers
        self.found_inf = torch.zeros((), device=device)  # not 0: optimizers skip their update
        self.lasting = (*numbers, self.found_inf)

    def begin_epoch(self) -> None:
        """Count skipped updates, and steps, from 0."""
        self._skipped.zero_()
        self._step.zero_()

    def scaled(self, loss: Tensor) -> Tensor:
        """What to derive in place of `loss`."""
        return loss * self._scale if self._is_scaled else loss

    def clip(self, groups: Sequence[Group]) -> Tensor:
        """As `clip_gradients`, of gradients that may be those of a scaled loss."""
        if self._is_scaled:
            parameters = (p for group in groups for p in group.parameters)
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, self._scale.reciprocal())
        return clip_gradients(groups)

    def judge(self, loss: Tensor, norm: Tensor) -> None:
        """Make optimizers skip this step's update, and perhaps all later ones: `found_inf`.

        `loss` and `norm` (of all gradients) are numbers on the device.
        """
        skips = None
        if self._is_scaled:
            skips = torch.isfinite(loss) & ~torch.isfinite(norm)
            self._rescale(skips)
            ends = ~torch.isfinite(loss) | (self._lost >= LOST_STEPS)
        else:
            ends = ~torch.isfinite(loss + norm)
        is_first = ends & (self._bad_step < 0)
        self._bad_step.copy_(torch.where(is_first, self._step, self._bad_step))
        ended = self._bad_step >= 0
        self.found_inf.copy_(ended if skips is None else ended | skips)
        self._step.add_(1)

    def _rescale(self, overflow: Tensor) -> None:
        grows = ~overflow & (self._fine + 1 >= GROWTH_STEPS)
        is_lost = overflow & (self._scale <= LOWEST_SCALE)
        self._lost.add_(1).mul_(is_lost)
        self._skipped.add_(overflow)
        self._fine.add_(1).mul_(~(overflow | grows))
        factor = 1.0 + 1.0 * grows - 0.5 * overflow
        self._scale.mul_(factor).clamp_(LOWEST_SCALE, LARGEST_SCALE)

    def seen(self) -> Seen:
        """As it is now; waits for the device."""
        numbers = (self._bad_step, self._lost, self._skipped, self._scale, self._fine)
        bad_step, lost, skipped, scale, fine = torch.stack(numbers).tolist()
        return Seen(int(bad_step), int(lost), int(skipped), scale, int(fine))

    def state(self) -> dict[str, float] | None:
        """For a resume state; None where nothing is scaled."""
        return self.seen()._asdict() if self._is_scaled else None

    def restore(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Continue as `state` was, with the epoch's `step`.

        None, of a run in another precision, leaves all else as it is.
        """
        self._step.fill_(step)
        if state is not None:
            for number, before in zip(self.lasting, Seen(**state), strict=False):
                number.fill_(before)
