"""Resume states that a thread writes: what they hold, how they fail, whom they keep waiting."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.training import saving
from fusionrun.training import trainer as loop
from fusionrun.training.checkpoint import ResumeFile, load, save
from fusionrun.training.errors import TaskError
from fusionrun.training.optim import Group, cosine_to_zero, sgd
from fusionrun.training.saving import Saver
from tests.unit.training.test_trainer import (
    STEPS,
    TOTAL,
    CrashError,
    Kit,
    crash,
    make_kit,
    outcome,
    stop_after,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """Every flush to it goes through here: it can be held up, and break."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_free = threading.Event()
        self.is_free.set()
        self.flushes = 0
        self.breaks_at = -1
        self._flush = os.fsync
        monkeypatch.setattr("fusionrun.common.atomic_files.os.fsync", self)

    def __call__(self, descriptor: int) -> None:
        assert self.is_free.wait(60)
        self.flushes += 1
        if self.flushes >= self.breaks_at > 0:
            raise FULL
        self._flush(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.is_free.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


def saves_every_step(monkeypatch: pytest.MonkeyPatch, path: Path, kind: str = "fusion") -> Kit:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    return make_kit(path, kind, every_epochs=1000, every_minutes=0.0)


def plain(state: Any) -> Any:
    """A state as something that can be compared, but for its times."""
    if isinstance(state, Tensor):
        return (state.dtype, tuple(state.shape), state.stride(), state.tolist())
    if isinstance(state, dict):
        clocks = ("seconds", "train_seconds", "timestamp")
        return {key: plain(value) for key, value in state.items() if key not in clocks}
    return [plain(each) for each in state] if isinstance(state, list) else state


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fusion", "expert"])
@pytest.mark.parametrize("steps", [1, 2, STEPS + 1])
def test_a_state_is_that_of_its_step_however_far_training_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, kind: str, steps: int
) -> None:
    """Equal to what a stop writes at that step, with the same keys, types and layouts."""
    stop_after(make_kit(other := path.with_name("stopped.pth"), kind), steps)
    kit = make_kit(path, kind, every_epochs=1000)

    def save(images: Tensor) -> Tensor:  # at the beginning of the next step
        disk.is_free.clear()
        kit.trainer.save()
        return images

    def crash_later(images: Tensor) -> Tensor:
        disk.is_free.set()
        raise CrashError

    kit.counter.at = {steps + 1: save, steps + 2: crash_later}
    with pytest.raises(CrashError):
        kit.trainer.run()
    found, expected = load(path), load(other)
    assert plain(found) == plain(expected)
    assert type(found["model"]) is type(expected["model"])
    assert found["model"]._metadata == expected["model"]._metadata


@pytest.mark.parametrize("kind", ["fusion", "expert"])
def test_saved_at_every_step_behind_its_back_it_ends_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    straight = make_kit(path.with_name("straight.pth"), kind)
    straight.trainer.run()
    for patience in (60.0, 0.0):  # updates wait for the disk; memory is taken instead
        monkeypatch.setattr(saving, "PATIENCE", patience)
        kit = saves_every_step(monkeypatch, path, kind)
        kit.counter.at[8] = crash
        with pytest.raises(CrashError):
            kit.trainer.run()
        found = load(path)
        assert (found["epoch"], found["step"]) == divmod(7, STEPS)
        again = make_kit(path, kind, init=77)
        again.trainer.run()
        assert again.counter.steps == TOTAL - 7
        assert outcome(again.trainer) == outcome(straight.trainer)
        ResumeFile(path).remove()


class Moving(nn.Module):
    """Its forward pass changes what no optimizer knows: as batch norms do, or a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.average = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("count", torch.zeros(()))


def test_what_a_forward_pass_changes_is_copied(path: Path, disk: Disk) -> None:
    model = Moving()
    optimizer = sgd([Group.of("all", [model], 0.1, cosine_to_zero, 1.0)], 0.0)
    saver = Saver(ResumeFile(path), optimizer, print)
    disk.is_free.clear()
    saver.save({"model": model.state_dict()})
    with torch.no_grad():
        model.average.add_(1)
        model.count.add_(1)  # type: ignore[operator]
    model.weight.sum().backward()
    optimizer.step()
    disk.is_free.set()
    saver.settle()
    assert not any(value.any() for value in load(path)["model"].values())
    assert model.weight.any()


# --- failures ------------------------------------------------------------------------------------


def test_a_full_disk_is_told_at_the_next_step(
    path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    kit = saves_every_step(monkeypatch, path)
    disk.breaks_at = 2

    def look_after_it(images: Tensor) -> Tensor:
        assert kit.trainer._saver._pending is not None
        assert kit.trainer._saver._pending.exception(60) is not None
        return images

    kit.counter.at[3] = look_after_it
    with pytest.raises(OSError, match="No space left") as caught:
        kit.trainer.run()
    assert caught.value.filename == str(path)
    assert kit.counter.steps == 3
    found, problem = ResumeFile(path).load()
    assert found is not None and (found["step"], problem) == (1, "")
    assert not list(path.parent.glob(".*.tmp"))


@pytest.mark.parametrize("is_hurried", [False, True])
@pytest.mark.parametrize("count", [10, 3_000_000])
def test_a_disk_that_fills_up_is_named_whichever_byte_was_too_much(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int, is_hurried: bool
) -> None:
    """torch would tell what its own clean-up stumbled over."""
    healthy = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", **how: healthy(
            Path("/dev/full") if mode == "xb" else self, mode.replace("x", "w"), **how
        ),
    )
    reading = saving._Reading(1)
    reading.is_hurried = is_hurried
    with pytest.raises(OSError, match="No space left") as caught:
        save(path, {"weight": torch.zeros(count)}, reading.save)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("breaks_at", [1, 2, 4])
def test_what_fails_at_the_very_end_fails_the_task(path: Path, disk: Disk, breaks_at: int) -> None:
    disk.breaks_at = breaks_at
    with pytest.raises(OSError, match="No space left"):
        make_kit(path).trainer.run()
    found, _ = ResumeFile(path).load()
    assert (found["epoch"] if found else 0) == breaks_at - 1


def test_a_stop_that_could_not_save_is_no_stop(path: Path, disk: Disk) -> None:
    kit = make_kit(path)
    disk.breaks_at = 1
    kit.trainer.stop_requested = lambda: kit.counter.steps >= 2
    with pytest.raises(OSError, match="No space left"):
        kit.trainer.run()


def test_a_task_that_fails_otherwise_says_what_was_not_written(path: Path, disk: Disk) -> None:
    kit = make_kit(path)
    disk.breaks_at = 1

    def fail(images: Tensor) -> Tensor:
        raise TaskError("something else")

    kit.counter.at[STEPS + 1] = fail
    with pytest.raises(TaskError, match="something else"):
        kit.trainer.run()
    [said] = [text for text in kit.diary.messages if str(path) in text]
    assert "could not be written" in said and "No space left" in said


def test_whoever_takes_over_finds_what_was_being_written(path: Path, disk: Disk) -> None:
    """However training ends, or is given up between two steps."""
    kit = make_kit(path)
    disk.is_free.clear()
    steps = kit.trainer.steps()
    for _ in range(STEPS + 1):
        next(steps)
    assert not path.exists()
    threading.Timer(0.2, disk.is_free.set).start()
    steps.close()  # type: ignore[attr-defined]
    assert load(path)["epoch"] == 1


# --- who waits -----------------------------------------------------------------------------------


def filled(path: Path) -> tuple[Saver, torch.optim.Optimizer, dict[str, Tensor], list[str]]:
    said: list[str] = []
    weights = {str(k): nn.Parameter(torch.full((300_000,), float(k))) for k in range(6)}
    groups = [Group("all", list(weights.values()), 1.0, cosine_to_zero, 1.0)]
    state = {name: weight.detach() for name, weight in weights.items()}
    optimizer = sgd(groups, 0.0)
    return Saver(ResumeFile(path), optimizer, said.append), optimizer, state, said


def test_training_goes_on_while_the_disk_is_busy(path: Path, disk: Disk) -> None:
    saver, optimizer, state, _ = filled(path)
    disk.is_free.clear()
    saver.save(state)
    for _ in range(3):
        optimizer.step()
        for value in state.values():
            value += 1
    saver.check()
    assert not path.exists()
    disk.is_free.set()
    saver.settle()
    assert [value[0] for value in load(path).values()] == list(range(6))


def test_one_state_is_written_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    """That the next one waits is said, once, where it takes long."""
    monkeypatch.setattr(saving, "SLOW", 0.1)
    saver, _, state, said = filled(path)
    saver.save(state)
    for _ in range(2):
        assert len(said) == 0
        saver.settle()
        saver.save(state)
    for _ in range(2):
        saver.settle()
        disk.is_free.clear()
        saver.save(state)
        threading.Timer(0.3, disk.is_free.set).start()
        saver.save(state)
        assert len(said) == 1 and "the disk takes longer" in said[0]
    assert path.exists() or ResumeFile(path).previous.exists()
    saver.settle()
    assert {path.name for path in path.parent.iterdir()} == {
        "checkpoint.pth",
        "checkpoint_previous.pth",
    }


@pytest.mark.parametrize("has_memory", [True, False])
def test_a_slow_disk_holds_an_update_up_only_where_memory_is_short(
    path: Path, monkeypatch: pytest.MonkeyPatch, has_memory: bool
) -> None:
    """Whatever it does, the state is whole."""
    saver, optimizer, state, _ = filled(path)
    is_slow = threading.Event()
    is_slow.set()
    pieces: list[int] = []
    healthy = saving._Reading.write

    def write(self: saving._Reading, data: memoryview) -> None:
        if not self.is_hurried and len(data) > 1000 and is_slow.is_set():
            pieces.append(len(data))
            time.sleep(0.1)
        healthy(self, data)

    monkeypatch.setattr(saving._Reading, "write", write)
    monkeypatch.setattr(saving, "PATIENCE", 0.0)
    monkeypatch.setattr(saving, "free_host_memory", lambda: 1e12 if has_memory else 1e6)
    saver.save(state)
    optimizer.step()
    assert (len(pieces) < 6) == has_memory
    for value in state.values():
        value += 1
    saver.settle()
    assert [value[0] for value in load(path).values()] == list(range(6))


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def no_copies(*_: Any) -> Tensor:
    raise MemoryError("no copies")


@pytest.mark.parametrize("lacking", ["thread", "memory"])
def test_without_room_or_threads_it_is_written_at_once_and_said_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    saver, _, state, said = filled(path)
    if lacking == "thread":
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    else:
        monkeypatch.setattr(Saver, "_copied", no_copies)
    for _ in range(2):
        saver.save(state)
        assert path.exists()
        path.unlink()
    [told] = said
    assert "training waits" in told
    saver.release()
    saver.settle()


def test_other_errors_are_not_taken_for_a_lack_of_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    saver, _, state, said = filled(path)
    monkeypatch.setattr(Saver, "_copied", breaks)
    with pytest.raises(RuntimeError, match="device-side"):
        saver.save(state)
    assert not said and not path.exists()
