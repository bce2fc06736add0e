"""A GPU's step as one CUDA graph: recorded once, proven, then replayed with a few calls.

Launched kernel by kernel, a step of thousands of them takes as long as its host needs to ask for
each; the graph is asked for as a whole.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fusionrun.common.memory import give_back
from fusionrun.data.loader import Batch
from fusionrun.fusions import FusionModel
from fusionrun.fusions.branches import in_streams
from fusionrun.training.compiling import (
    FUSED_TOLERANCE,
    SLOW,
    compiled_trunks,
    obstacle,
    repays,
    seconds_of,
)
from fusionrun.training.recording import Replay, record
from fusionrun.training.step import Step

Way = tuple[str, Callable[[nn.Module], AbstractContextManager[None]]]

# How a step may be recorded, best first; active while it is warmed up and recorded.
WAYS: tuple[Way, ...] = (
    ("experts side by side", in_streams),
    ("one kernel after another", lambda model: nullcontext()),
)
RECORDS = ("cuda",)  # types of devices that can
EAGER_STEPS = 3  # of full batches before one is recorded: libraries have chosen their kernels then
# Largest relative difference of losses, and of the gradients of a parameter group, between the
# recorded step and the one launched kernel by kernel: half precision, summed in any order, stays
# below, what reads memory that is gone doesn't. In deterministic mode no bit may differ.
TOLERANCE = 2e-2
# Of how much a group's weights are moved, which Adam decides by the signs of gradients however
# small: an update that is left out, made twice or of another rate is 1 apart and more.
UPDATE_TOLERANCE = 0.5


def fastest(
    step: Step, images: int, steps_left: Callable[[], int], say: Callable[[str], None]
) -> Callable[[Batch, int], Tensor]:
    """`step`, replayed from a graph for batches of that many `images` where its device can."""
    may = step.optimisation.graphs and step.device.type in RECORDS
    return GraphedStep(step, images, steps_left, say) if may else step


def ways(model: nn.Module) -> list[Way]:
    """Those of WAYS that make a difference for `model`."""
    has_experts = isinstance(model, FusionModel)
    return [(name, way) for name, way in WAYS if way is not in_streams or has_experts]


class GraphedStep:
    """Called as a step is; full batches are replayed from a graph once one has proven itself.

    To that end one step is taken twice from the same state, kernel by kernel and replayed; what
    differs, fails or keeps numbers on the host isn't recorded, and that is said. Where enough steps
    are left it is recorded again with kernels made for the network, and the faster graph stays.
    Smaller batches are always taken kernel by kernel.
    """

    def __init__(
        self,
        step: Step,
        images: int,
        steps_left: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self._step, self._images, self._steps_left, self._say = step, images, steps_left, say
        self._is_given_up = False
        self._form: object = None  # of the steps that were, or will be, recorded
        self._eager_left = EAGER_STEPS
        self._batch: Batch | None = None  # the place that the graph reads from
        self._replay: Replay | None = None
        said = "the step's CUDA graph is given up, single kernels take less memory and more time"
        step.fitting.spare.append((self._give_up, said))

    def __call__(self, batch: Batch, seed: int) -> Tensor:
        """As of Step."""
        if self._is_given_up or len(batch.labels) != self._images:
            return self._step(batch, seed)
        fitting = self._step.fitting
        form = (batch.images.shape, fitting.micro_batch, fitting.is_recomputing)
        if form != self._form:  # the first, or memory has run out since
            self._replay, self._form, self._eager_left = None, form, EAGER_STEPS
        if self._replay is not None:
            return self._replayed(batch, seed)
        if self._eager_left:
            self._eager_left -= 1
            return self._step(batch, seed)
        return self._recorded(batch, seed)

    def _replayed(self, batch: Batch, seed: int) -> Tensor:
        assert self._batch is not None and self._replay is not None
        fill(self._batch, batch)
        return self._replay(seed).clone()

    def _recorded(self, batch: Batch, seed: int) -> Tensor:
        """Exactly one step, replayed if it could be recorded."""
        step, before, problems, is_short = self._step, list[Tensor](), list[str](), False
        started = time.monotonic()
        try:
            before = [each.detach().clone() for each in step.lasting()]
            expected, host = observed(step, batch, seed, before)
            if not expected.losses.isfinite().all() or any(
                not each.isfinite().all() for each in expected.gradients
            ):
                return expected.losses  # which proves nothing; the next step may
            problems += [host] if host else []
            proof = Proof(batch, seed, before, expected)
            for name, way in () if host else ways(step.model):
                put_back(step, before)
                found = self._attempt(way, proof, TOLERANCE)
                if isinstance(found, Tensor):
                    seconds = time.monotonic() - started
                    self._say(f"steps are one CUDA graph from now on ({name}; {seconds:.1f} s)")
                    if self._may_compile():
                        self._compile(way, proof)
                        put_back(step, before)
                        found = self._replayed(batch, seed)
                    return found
                problems.append(f"{name}: {found}")
                give_back(step.device)
        except Exception as error:
            problems.append(in_words(error))
            is_short = step.fitting.is_short(error)
        # not before the traceback is gone, which holds tensors
        put_back(step, before)
        if is_short:  # fewer at a time leave room for a graph of each
            self._form = None
            step.fitting.give_way(step.device)
        self._is_given_up = True
        self._say(f"steps stay single kernels, without a CUDA graph: {'; '.join(problems)}")
        return step(batch, seed)

    def _attempt(
        self,
        way: Callable[[nn.Module], AbstractContextManager[None]],
        proof: "Proof",
        tolerance: float,
    ) -> Tensor | str:
        """Record the step in one way: its losses, replayed, or what is wrong with it."""
        step, (batch, seed, before, expected) = self._step, proof
        try:
            self._batch = Batch(*(torch.empty_like(each) for each in vars(batch).values()))
            fill(self._batch, batch)
            with way(step.model):
                self._replay = record(partial(step.program, self._batch), step.seed, step.device)
            put_back(step, before)
            found = Effect.of(step, self._replayed(batch, seed), before)
            much = difference(found, expected)
        except Exception as error:
            self._replay = None
            if step.fitting.is_short(error) and step.fitting.has_company():
                raise
            return in_words(error)
        if much <= (0.0 if torch.are_deterministic_algorithms_enabled() else tolerance):
            return found.losses
        self._replay = None
        return f"its numbers differ from theirs by {much:.2g}"

    def _may_compile(self) -> bool:
        """Whether that is wanted, and a task of slow steps would repay it."""
        is_wanted = self._step.optimisation.compiles
        if not is_wanted or torch.are_deterministic_algorithms_enabled():
            return False
        return repays(self._step.model, self._steps_left(), SLOW)

    def _compile(
        self, way: Callable[[nn.Module], AbstractContextManager[None]], proof: "Proof"
    ) -> None:
        """Record the step once more, with kernels made for it, if that pays; keep what is faster.

        What lasts isn't as it was afterwards.
        """
        step, plain = self._step, (self._batch, self._replay)
        without = seconds_of(self._replay, proof.seed, step.device)
        if not repays(step.model, self._steps_left(), without):
            return
        if missing := obstacle():
            self._say(f"kernels can't be made for this network: {missing}")
            return
        self._say("kernels are made for this network now, which can take minutes")
        started = time.monotonic()

        @contextmanager
        def fused(model: nn.Module) -> Iterator[None]:
            with way(model), compiled_trunks(model):
                yield

        put_back(step, proof.before)
        try:
            found = self._attempt(fused, proof, FUSED_TOLERANCE)
        except Exception as error:  # no memory for a second graph: the first one needs no other
            found = in_words(error)
        words = found if isinstance(found, str) else ""
        if not words:
            set_up = time.monotonic() - started
            with_them = seconds_of(self._replay, proof.seed, step.device)
            words = f"{1e3 * with_them:.1f} ms a step, {1e3 * without:.1f} without; {set_up:.0f} s"
            if with_them < without:
                self._say(f"kernels made for this network are used ({words})")
                return
        self._batch, self._replay = plain
        step.optimisation.optimizer.zero_grad()  # they lie in the other graph's memory
        give_back(step.device)
        self._say(f"kernels made for this network are not used ({words})")

    def _give_up(self) -> bool:
        """Leave the graph's memory to others; whether there was one."""
        was_there = self._replay is not None
        self._replay, self._is_given_up = None, self._is_given_up or was_there
        return was_there


class Effect(NamedTuple):
    """What a step leaves behind, apart from it."""

    losses: Tensor  # (H,)
    gradients: list[Tensor]  # of each parameter group, flat
    updates: list[Tensor]  # of its weights
    lasting: list[Tensor]  # in deterministic mode

    @classmethod
    def of(cls, step: Step, losses: Tensor, before: Sequence[Tensor]) -> "Effect":
        """With what lasts as it was `before` the step."""
        were = dict(zip(step.model.parameters(), before, strict=False))
        groups = [
            [p for p in group.parameters if p.grad is not None]
            for group in step.optimisation.groups
        ]
        exact = torch.are_deterministic_algorithms_enabled()
        return cls(
            losses,
            [flat(losses, (p.grad for p in group if p.grad is not None)) for group in groups],
            [flat(losses, (p.detach() - were[p] for p in group)) for group in groups],
            [each.detach().clone() for each in step.lasting() if exact],
        )


class Proof(NamedTuple):
    """A step that what is recorded has to repeat: kernel by kernel it came to `expected`."""

    batch: Batch
    seed: int
    before: Sequence[Tensor]  # what lasts, as it was
    expected: Effect


def flat(like: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """All numbers of `parts`, of none an empty tensor where `like` is."""
    return torch.cat([like[:0], *(part.flatten() for part in parts)])


def difference(found: Effect, expected: Effect) -> float:
    """The largest relative one of a loss or a group's gradient, and of its update where that is

    beyond UPDATE_TOLERANCE; of what lasts, inf for any bit.
    """
    if not all(map(torch.equal, found.lasting, expected.lasting)):
        return math.inf
    moved = apart(found.updates, expected.updates)
    if not moved <= UPDATE_TOLERANCE:  # NaN, too
        return moved
    return apart([*found.losses, *found.gradients], [*expected.losses, *expected.gradients])


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two of them, relative to the norm of the expected one."""
    norm = torch.linalg.vector_norm
    pairs = zip(found, expected, strict=True)
    relative = [norm(one - other) / norm(other).clamp(min=1e-30) for one, other in pairs]
    return float(torch.stack(relative).max())  # NaN if one is


def observed(step: Step, batch: Batch, seed: int, before: Sequence[Tensor]) -> tuple[Effect, str]:
    """What a step comes to, launched kernel by kernel, and what a recording of it would miss."""
    step.seed(seed)
    places, draws = host_state(step.model), host_draws(step.device)
    with HostReads() as reads:
        losses = step.program(batch)
    effect = Effect.of(step, losses, before)
    if reads.found:
        return effect, f"the model reads numbers from the device ({', '.join(reads.found)})"
    if host_draws(step.device) != draws:
        return effect, "the model draws random numbers on the host"
    for (part, name), value in host_state(step.model).items():
        was = places.get((part, name))
        if value is not was and (isinstance(value, Tensor) or value != was):
            return effect, f"the model's {f'{part}.{name}'.lstrip('.')} changes from step to step"
    return effect, ""


def host_state(model: nn.Module) -> dict[tuple[str, str], Any]:
    """{(module, attribute): plain values, lengths of collections, and tensors as objects}.

    A tensor that is replaced instead of changed would be the same one in every replay.
    """
    found: dict[tuple[str, str], Any] = {}
    for part, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers, **module._parameters}.items():
            if isinstance(value, (bool, int, float, str, Tensor)):
                found[part, name] = value
            elif isinstance(value, (list, dict, set, deque)):
                found[part, name] = len(value)
    return found


def host_draws(device: torch.device) -> tuple[Any, ...]:
    """Where the host's generators stand, but for the one that the device's numbers come from."""
    _, numbers, place, *_ = np.random.get_state(legacy=True)
    torchs = b"" if device.type == "cpu" else torch.default_generator.get_state().numpy().tobytes()
    return random.getstate(), np.asarray(numbers).tobytes(), place, torchs


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of operations whose result, or its shape, is read from a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
        if reads and func.overloadpacket is torch.ops.aten.index:  # only masks are
            reads = {i.dtype for i in args[1] if i is not None} & {torch.bool, torch.uint8}
        if reads:
            self.found.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def fill(place: Batch, batch: Batch) -> None:
    """Have the tensors of `place` hold what those of `batch` do."""
    for name, tensor in vars(place).items():
        tensor.copy_(getattr(batch, name))


@torch.no_grad()
def put_back(step: Step, before: Sequence[Tensor]) -> None:
    """Have everything that lasts be as `before`; nothing, where that couldn't be kept."""
    for tensor, was in zip(step.lasting(), before, strict=False):
        tensor.copy_(was)


def in_words(error: Exception) -> str:
    """The first of its lines: CUDA's errors have many."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
