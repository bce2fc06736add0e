"""Resume states leave the loop: a thread writes them while training goes on."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.common.memory import free_host_memory
from fusionrun.common.text import size
from fusionrun.training.checkpoint import ResumeFile

PATIENCE = 0.5  # seconds that an update waits for the disk before memory is taken instead
SLOW = 5.0  # seconds that a state waits for the one before, which is worth saying
PIECE = 4 * 2**20  # bytes that are written at a time


class Saver:
    """Writes a task's resume states, at most one at a time, while the training goes on.

    What lies on a GPU is copied into pinned memory that is kept for it, in the order of the stream
    that trains. What lies in the host's memory is written from there, so that it takes none:
    `release` waits until it has been read, and is called by `optimizer` before every update. That
    a state couldn't be written is raised by whichever method is called next.

    Entered, it leaves no state half written behind: not even where the training fails.
    """

    def __init__(
        self, file: ResumeFile, optimizer: torch.optim.Optimizer, say: Callable[[str], None]
    ) -> None:
        self._file = file
        self._optimizer = optimizer
        self._say = say
        self._pending: Future[None] | None = None  # written, or written and not looked at yet
        self._reading: _Reading | None = None  # of memory that training is about to change
        self._pinned: dict[str, Tensor] = {}  # room for copies, by place in the state
        self._has_waited = self._is_slow = False  # which is said once
        optimizer.register_step_pre_hook(lambda *_: self.release())

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.settle()
        except Exception as lost:
            if error is None:
                raise
            self._say(f"{self._file.path}: could not be written ({lost})")

    def save(self, state: dict[str, Any], kept: Iterable[Tensor] = ()) -> None:
        """Have `state` written as it is now, once the one before is. Raises OSError.

        `kept` are tensors that, as the optimizer's, nobody changes without a call of `release`.
        Where nothing is left for copies or a thread it's written at once, and that is said.
        """
        if self._pending is not None and wait([self._pending], SLOW).not_done and not self._is_slow:
            self._is_slow = True
            self._say(
                "the disk takes longer for a resume state than training to the next one, which "
                "waits for it: let checkpoint.every_epochs and every_minutes be more"
            )
        self.settle()
        try:
            on_gpu = [value for value in tensors(state) if value.is_cuda]
            self._require_room(on_gpu)
            copied = self._copied(state, self._lent(kept))
            self._reading = _Reading(sum(value.nbytes for value in tensors(state)))
            thread = ThreadPoolExecutor(1, "checkpoint")
            self._pending = thread.submit(self._write, copied, self._reading, event_of(on_gpu))
            thread.shutdown(wait=False)  # it ends when that is written
        except Exception as error:
            if not is_out_of_memory(error) and "new thread" not in str(error):
                raise
            self._pinned, self._reading = {}, None
            if not self._has_waited:
                self._say(f"{error}: training waits whenever a resume state is written")
            self._has_waited = True
            self._file.save(state)

    def check(self) -> None:
        """Raise what a state could not be written for, if that is known by now."""
        if self._pending is not None and self._pending.done():
            self.settle()

    def settle(self) -> None:
        """Wait until nothing is being written any more. Raises OSError."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def release(self) -> None:
        """Wait until what a state is made of may change.

        That is as long as its disk takes, but where that is slow and memory is free not much longer
        than PATIENCE.
        """
        reading, self._reading = self._reading, None
        if reading is not None and not reading.done.wait(PATIENCE):
            free = free_host_memory()
            if free is None or free > 2 * reading.size:
                reading.is_hurried = True
            reading.done.wait()

    def _write(
        self, state: dict[str, Any], reading: "_Reading", copied: torch.cuda.Event | None
    ) -> None:
        try:
            if copied is not None:
                torch.cuda.set_device(copied.device)  # else this thread opens the first GPU, too
                copied.synchronize()
            self._file.save(state, reading.save)
        finally:
            reading.done.set()

    def _lent(self, kept: Iterable[Tensor]) -> set[int]:
        """The addresses of what a state may be written from while training goes on."""
        optimizer = self._optimizer
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        moments = (moment for state in optimizer.state.values() for moment in state.values())
        return {value.data_ptr() for value in (*kept, *weights, *moments) if not value.is_cuda}

    def _require_room(self, on_gpu: Iterable[Tensor]) -> None:
        """Raise MemoryError where the host has none for copies: Linux would kill the process."""
        need = 0 if self._pinned else sum(value.nbytes for value in on_gpu)
        free = free_host_memory() if need else None
        if free is not None and 2 * need > free:
            raise MemoryError(f"{size(need)} of copies don't go with {size(free)} of free memory")

    def _copied(self, value: Any, lent: Set[int], name: str = "") -> Any:
        """`value` as it is now, but for what is `lent`."""
        if isinstance(value, Tensor):
            return self._copied_tensor(value.detach(), lent, name)
        if not isinstance(value, dict):
            return value  # plain, and made for the state
        copied = copy.copy(value)  # with the versions that a state dict tells
        copied.update({key: self._copied(v, lent, f"{name}.{key}") for key, v in value.items()})
        return copied

    def _copied_tensor(self, value: Tensor, lent: Set[int], name: str) -> Tensor:
        if not value.is_cuda:
            return value if value.data_ptr() in lent else value.clone()
        kept = self._pinned.get(name)
        if kept is None or (kept.shape, kept.stride()) != (value.shape, value.stride()):
            kept = self._pinned[name] = torch.empty_like(value, device="cpu", pin_memory=True)
        return kept.copy_(value, non_blocking=True)


class _Reading:
    """The file into which a state goes from memory that training waits for."""

    def __init__(self, size: int) -> None:
        self.size = size  # of the state, in bytes
        self.is_hurried = False  # from now on what is read waits in memory for the disk
        self.done = threading.Event()  # everything was read
        self._rest: deque[bytes] = deque()

    def save(self, state: dict[str, Any], file: BinaryIO) -> None:
        """As torch.save."""
        self._file = file
        torch.save(state, self)  # type: ignore[arg-type]  # it calls the two methods below
        self.done.set()
        while self._rest:
            file.write(self._rest.popleft())

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            if self.is_hurried:
                self._rest.append(bytes(piece))
            else:
                self._file.write(piece)

    def flush(self) -> None: ...


def tensors(value: Any) -> Iterator[Tensor]:
    """All that are in nested dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)


def event_of(on_gpu: Sequence[Tensor]) -> torch.cuda.Event | None:
    """When the stream that trains has done what it was asked so far; None without a GPU."""
    if not on_gpu:
        return None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(on_gpu[0].device))
    return event
