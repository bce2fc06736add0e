"""Parameter groups with their own rate, schedule and clip, and the optimizers over them."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])
Schedule = Callable[[int, int], float]  # (epoch from 0, epochs) -> factor of the base rate


def cosine_to_zero(epoch: int, epochs: int) -> float:
    """Cosine annealing from 1 towards 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def cosine_to_tenth(epoch: int, epochs: int) -> float:
    """Cosine annealing from 1 towards 0.1."""
    return 0.1 + 0.9 * cosine_to_zero(epoch, epochs)


def warm_restarts(epoch: int, epochs: int) -> float:
    """Cosine annealing with warm restarts (SGDR, Loshchilov & Hutter 2017), from 1 towards 0.1.

    The first period is a quarter of the epochs; each next one is twice as long.
    """
    period = max(1, round(epochs / 4))
    while epoch >= period:
        epoch -= period
        period *= 2
    return cosine_to_tenth(epoch, period)


def annealed_restart(epoch: int, epochs: int) -> float:
    """The same with two periods, from 1 towards 0.1 each: a third of the epochs, then all the rest.

    So the last epoch ends a cycle, of however many epochs; of `warm_restarts` it mostly doesn't:
    100 epochs end at 0.88.
    """
    first = max(1, round(epochs / 3))
    return cosine_to_tenth(*((epoch, first) if epoch < first else (epoch - first, epochs - first)))


# of the experts' rate in a row, by the names of the recipe's fusion.schedule
EXPERT_SCHEDULES: Mapping[str, Schedule] = {
    "restarts": warm_restarts,
    "annealed": annealed_restart,
}


@dataclass(frozen=True)
class Group:
    """Parameters that learn together."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    schedule: Schedule
    clip: float  # largest norm of the group's gradient

    @staticmethod
    def of(
        name: str, modules: Iterable[nn.Module], lr: float, schedule: Schedule, clip: float
    ) -> "Group":
        """The group of all trainable parameters of `modules`."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        return Group(name, parameters, lr, schedule, clip)


def _eager(kind: Kind) -> Kind:
    """`kind` without its methods' wrappers, which import torch's compiler: a second for each rank.

    All they do is to keep the compiler, and gradients, out of the method.
    """
    plain = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in plain}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step})  # type: ignore[return-value]


def sgd(groups: Sequence[Group], weight_decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9, one fused kernel over all groups."""
    return _begun(
        _eager(torch.optim.SGD)(
            _param_groups(groups),
            lr=groups[0].lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=weight_decay,
            fused=True,
        )
    )


def adamw(groups: Sequence[Group], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel over all groups."""
    return _begun(
        _eager(torch.optim.AdamW)(
            _param_groups(groups),
            lr=groups[0].lr,
            weight_decay=weight_decay,
            fused=True,
            capturable=groups[0].parameters[0].is_cuda,  # by a graph
        )
    )


def _param_groups(groups: Sequence[Group]) -> list[dict[str, object]]:
    """With rates that can be changed in place, of the type that the fused kernels read."""
    return [
        {
            "params": group.parameters,
            "lr": torch.full(
                (),
                group.lr,
                dtype=torch.float32 if group.parameters[0].is_cuda else torch.float64,
                device=group.parameters[0].device,
            ),
            "name": group.name,
        }
        for group in groups
    ]


def _begun(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`optimizer` with moments of 0, for which it would make room at its first step itself.

    Were memory to run out there, some groups would have learned and others not. And SGD that skips
    its first update leaves in its momenta what the memory held (torch 2.14).
    """
    is_adamw = isinstance(optimizer, torch.optim.AdamW)
    names = ("exp_avg", "exp_avg_sq") if is_adamw else ("momentum_buffer",)
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            if is_adamw:
                state["step"] = torch.zeros((), device=parameter.device)
            for name in names:
                state[name] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `load_optimizer` restores: moments as they are, rates as plain numbers."""
    state = optimizer.state_dict()
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore the moments of `state`, in the memory layout of the parameters.

    Fused kernels read it as raw memory, and it differs where the recipe's `runtime.channels_last`
    changed since the state was saved. Rates and settings are the optimizer's own.
    """
    groups = optimizer.param_groups
    optimizer.load_state_dict(state)
    optimizer.param_groups = groups
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter.detach()).copy_(value)
    _begun(optimizer)  # older versions had no moments before the first step


def set_learning_rates(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group], epoch: int, epochs: int
) -> dict[str, float]:
    """Set every group's rate for `epoch` (from 0), in place; returns {group name: rate}."""
    rates = {group.name: group.lr * group.schedule(epoch, epochs) for group in groups}
    for entry in optimizer.param_groups:
        entry["lr"].fill_(rates[entry["name"]])
    return rates


def clip_gradients(groups: Sequence[Group]) -> Tensor:
    """Clip each group's gradient norm to its own limit; returns the sum of the norms before.

    The sum stays on the device; it is non-finite exactly when some gradient is.
    """
    norms = [nn.utils.clip_grad_norm_(group.parameters, group.clip) for group in groups]
    return torch.stack(norms).sum()
