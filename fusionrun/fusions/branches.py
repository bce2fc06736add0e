"""How a row's experts are computed: one after another, or side by side where that is faster."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")

Outputs = tuple[Tensor, Tensor]  # of an expert: features (N, D_k), logits (N, C)
Compute = Callable[[Tensor], Outputs]  # an expert: images (N, 3, H, W) -> outputs
Branches = Callable[[Sequence[Compute], Tensor], list[Outputs]]
Run = Callable[[Sequence[Callable[[], None]]], object]  # does several jobs


def in_turn(experts: Sequence[Compute], images: Tensor) -> list[Outputs]:
    """What each of `experts` makes of `images`, computed one after another."""
    return [expert(images) for expert in experts]


@contextmanager
def in_streams(model: nn.Module) -> Iterator[None]:
    """In here `model`'s experts share a GPU: each is computed on a stream of its own.

    Its backward pass, too, as autograd derives an operation where it was computed. That is for
    work recorded as a graph, whose kernels otherwise wait for each other although none fills the
    GPU; eager work waits for the host that launches it. A model that has no experts, or whose
    experts share a part, is computed as ever; so is one on a CPU.
    """
    streams: list[torch.cuda.Stream] = []

    def branches(experts: Sequence[Compute], images: Tensor) -> list[Outputs]:
        if not images.is_cuda:
            return in_turn(experts, images)
        begun = torch.cuda.current_stream(images.device)
        while len(streams) < len(experts):
            streams.append(torch.cuda.Stream(images.device))  # type: ignore[no-untyped-call]
        outputs = []
        try:
            for stream, expert in zip(streams, experts, strict=False):
                stream.wait_stream(begun)
                with torch.cuda.stream(stream):
                    outputs.append(expert(images))
        finally:  # whoever undoes what a failed attempt has moved mustn't be overtaken by it
            for stream in streams:
                begun.wait_stream(stream)
        return outputs

    with _computing(model, branches):
        yield


@contextmanager
def in_threads(model: nn.Module, at_once: Callable[[], int]) -> Iterator[None]:
    """In here up to `at_once()` of `model`'s experts are computed on a CPU at the same time.

    Their backward passes, too, where `backward` is what derives (`torch.autograd.grad` isn't).
    Each has as many threads for an operation as this one, and the operations of an expert keep
    their order, so every number is as ever. Experts that draw random numbers do so in turn, and
    are derived side by side; those that draw while they are derived, and models that `in_streams`
    leaves as they are, are computed as ever.
    """
    threads = _Threads(model, at_once)
    try:
        with _computing(model, threads):
            yield
    finally:
        threads.close()


class _Threads:
    """Computes experts in threads, as many as `at_once` says at each pass."""

    def __init__(self, model: nn.Module, at_once: Callable[[], int]) -> None:
        self._model = model
        self._at_once = at_once
        self._draws: bool | None = None  # whether experts do in training; None: not yet known
        self._is_given_up = False
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0  # of the pool

    def __call__(self, experts: Sequence[Compute], images: Tensor) -> list[Outputs]:
        size = min(self._at_once(), len(experts)) if images.device.type == "cpu" else 1
        if size < 2 or self._is_given_up:
            return in_turn(experts, images)
        self._resize(size)
        before = _Generators()
        if self._model.training and self._draws is None:
            with _Draws() as draws:
                outputs = in_turn(experts, images)
            self._draws = draws.seen or before.have_moved()
            return _joined(outputs, self._run_watched)
        if self._model.training and self._draws:
            return _joined(in_turn(experts, images), self._run)
        buffers = list(self._model.buffers())
        kept = [buffer.clone() for buffer in buffers]
        outputs = self._run([partial(expert, images) for expert in experts])
        if not before.have_moved():
            return _joined(outputs, self._run)
        # one draws only now, or in evaluation: as if nothing had been computed yet
        self._is_given_up = True
        before.restore()
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
        return in_turn(experts, images)

    def _run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """What `jobs` return, done at the same time; raises what the first of them raises."""
        assert self._pool is not None
        do = _as_here()
        futures = [self._pool.submit(do, job) for job in jobs]
        wait(futures)  # nobody undoes what a thread still does
        futures.reverse()
        # popped, so that an error doesn't keep this list, and through it itself and all memory
        return [futures.pop().result() for _ in jobs]

    def _run_watched(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """What `jobs` return, done in turn; if they draw, nothing is done at the same time."""
        with _Draws() as draws:
            results = [job() for job in jobs]
        self._is_given_up |= draws.seen
        return results

    def _resize(self, size: int) -> None:
        if size != self._size:
            self.close()
            threads = torch.get_num_threads()  # of an operation
            self._pool = ThreadPoolExecutor(
                size, "expert", initializer=torch.set_num_threads, initargs=(threads,)
            )
            self._size = size

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _as_here() -> Callable[[Callable[[], T]], T]:
    """What does a job in another thread as torch would do it in this one."""
    is_deriving, is_inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts, half = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    keeps = torch.is_autocast_cache_enabled()

    def do(job: Callable[[], T]) -> T:
        # not torch.autocast, at whose end what was cast is forgotten, in all threads
        torch.set_autocast_enabled("cpu", casts)
        torch.set_autocast_dtype("cpu", half)
        torch.set_autocast_cache_enabled(keeps)
        with torch.inference_mode(is_inference), torch.set_grad_enabled(is_deriving):
            return job()

    return do


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whether any operation of torch in here draws random numbers, from whichever generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class _Generators:
    """Those that a whole process draws from, as they are when this is made."""

    def __init__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()

    def have_moved(self) -> bool:
        now = _Generators()
        return not (
            torch.equal(self._torch, now._torch)
            and self._python == now._python
            and np.array_equal(self._numpy[1], now._numpy[1])
            and self._numpy[2:] == now._numpy[2:]
        )

    def restore(self) -> None:
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def _joined(outputs: list[Outputs], run: Run) -> list[Outputs]:
    """`outputs` of experts as if they were one operation's, whose backward pass is run by `run`."""
    if not any(tensor.requires_grad for tensor in chain(*outputs)):
        return outputs
    flat = _Join.apply(torch.empty(0, requires_grad=True), outputs, run)
    return list(zip(flat[::2], flat[1::2], strict=True))


class _Join(torch.autograd.Function):
    """Hands on what experts have computed; its backward pass is all of theirs."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, outputs: list[Outputs], run: Run) -> tuple[Tensor, ...]:
        """`anchor` makes autograd derive this; (features, logits, features, ...)."""
        ctx.set_materialize_grads(False)
        ctx.outputs, ctx.run = outputs, run
        handed_on = [tensor.detach() for tensor in chain(*outputs)]
        learn = [tensor.requires_grad for tensor in chain(*outputs)]
        ctx.mark_non_differentiable(
            *(tensor for tensor, learns in zip(handed_on, learn, strict=True) if not learns)
        )
        return tuple(handed_on)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        jobs = []
        for k, outputs in enumerate(ctx.outputs):
            pairs = zip(outputs, gradients[2 * k : 2 * k + 2], strict=True)
            asked = [(output, gradient) for output, gradient in pairs if gradient is not None]
            if asked:
                tensors, given = zip(*asked, strict=True)
                jobs.append(partial(torch.autograd.backward, tensors, given))
        before = torch.default_generator.get_state()
        ctx.run(jobs)
        # an expert that computes parts of itself twice sets it, and puts back what it has found
        torch.default_generator.set_state(before)
        return None, None, None


@contextmanager
def _computing(model: nn.Module, branches: Branches) -> Iterator[None]:
    """In here the experts of `model` are computed by `branches`, if they have nothing in common."""
    experts = getattr(model, "experts", None)
    if not isinstance(experts, nn.ModuleList) or not _are_apart(experts):
        yield
        return
    before = model.branches
    model.branches = branches  # type: ignore[assignment]
    try:
        yield
    finally:
        model.branches = before


def _are_apart(experts: nn.ModuleList) -> bool:
    """Whether no part of one is another's, too."""
    parts = [
        {id(part) for part in chain(expert.modules(), expert.parameters(), expert.buffers())}
        for expert in experts
    ]
    return len(set[int]().union(*parts)) == sum(map(len, parts))
