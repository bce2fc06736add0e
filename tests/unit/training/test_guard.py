"""The guard of updates: overflows are skipped, real trouble ends the training, resumed bit for bit.

In float16 on the CPU, with overflows forced.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.training import guard as guards
from fusionrun.training.checkpoint import load, save
from fusionrun.training.errors import StopRequested, TaskError
from fusionrun.training.guard import FIRST_SCALE, LARGEST_SCALE, LOST_STEPS, LOWEST_SCALE, Guard
from fusionrun.training.optim import Group, adamw, cosine_to_zero, sgd
from fusionrun.training.precision import FP32, Precision
from tests.unit.training.test_trainer import (
    CPU,
    KINDS,
    STEPS,
    TOTAL,
    Kit,
    make_kit,
    outcome,
    parameters,
    poison,
    stop_after,
)

FP16 = Precision("fp16")
FINE, INFINITE, NAN = torch.tensor(1.0), torch.tensor(math.inf), torch.tensor(math.nan)


def make_optimizer(kind: str) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    parameter = nn.Parameter(torch.ones(1000))
    groups = [Group.of("all", [nn.ParameterList([parameter])], 0.1, cosine_to_zero, 1.0)]
    return {"sgd": sgd, "adamw": adamw}[kind](groups, 0.0), parameter


def judged(guard: Guard, loss: Tensor, norm: Tensor) -> bool:
    """Whether the update is skipped."""
    guard.judge(loss, norm)
    return bool(guard.found_inf)


def test_an_overflow_costs_one_update_and_half_the_scale() -> None:
    guard = Guard(FP16, CPU)
    for norm, is_skipped, scale in (
        (FINE, False, FIRST_SCALE),
        (INFINITE, True, FIRST_SCALE / 2),
        (NAN, True, FIRST_SCALE / 4),
        (FINE, False, FIRST_SCALE / 4),
    ):
        assert judged(guard, FINE, norm) == is_skipped
        assert guard.seen().scale == scale
    assert guard.seen().skipped == 2
    assert guard.seen().bad_step == -1
    guard.begin_epoch()
    assert guard.seen().skipped == 0


@pytest.mark.parametrize("precision", [FP32, Precision("bf16")])
@pytest.mark.parametrize(("loss", "norm"), [(NAN, FINE), (FINE, INFINITE), (INFINITE, NAN)])
def test_without_a_scale_nothing_is_learned_after_bad_numbers(
    precision: Precision, loss: Tensor, norm: Tensor
) -> None:
    guard = Guard(precision, CPU)
    guard.restore(None, step=6)
    assert not judged(guard, FINE, FINE)
    assert judged(guard, loss, norm)
    assert judged(guard, FINE, FINE)
    assert guard.seen().bad_step == 7
    assert guard.state() is None


def test_a_bad_loss_ends_training_however_large_the_scale() -> None:
    guard = Guard(FP16, CPU)
    guard.restore(None, step=3)
    assert judged(guard, NAN, NAN)
    assert judged(guard, FINE, FINE)
    assert guard.seen().bad_step == 3


def test_overflows_at_the_lowest_scale_end_training_unless_one_step_fits() -> None:
    guard = Guard(FP16, CPU)
    for _ in range(int(math.log2(FIRST_SCALE / LOWEST_SCALE))):
        judged(guard, FINE, INFINITE)
    assert guard.seen().scale == LOWEST_SCALE
    for _ in range(2):
        for _ in range(LOST_STEPS - 1):
            assert judged(guard, FINE, INFINITE)
        assert not judged(guard, FINE, FINE)
    assert guard.seen().scale == LOWEST_SCALE
    guard.begin_epoch()
    for _ in range(LOST_STEPS):
        assert guard.seen().bad_step == -1
        judged(guard, FINE, INFINITE)
    assert guard.seen().bad_step == LOST_STEPS - 1
    assert judged(guard, FINE, FINE)


def test_the_scale_grows_after_many_steps_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "GROWTH_STEPS", 3)
    guard = Guard(FP16, CPU)
    scales = []
    for norm in (FINE, FINE, FINE, FINE, FINE, INFINITE, FINE, FINE, FINE):
        judged(guard, FINE, norm)
        scales.append(guard.seen().scale / FIRST_SCALE)
    assert scales == [1, 1, 2, 2, 2, 1, 1, 1, 2]
    for _ in range(100):
        judged(guard, FINE, FINE)
    assert guard.seen().scale == LARGEST_SCALE


def test_gradients_too_small_for_float16_arrive() -> None:
    """And large ones are those of the loss itself: powers of two round nothing."""

    def gradient(precision: Precision, size: float) -> Tensor:
        weight = torch.full((4, 4), 0.5, requires_grad=True)
        guard = Guard(precision, CPU)
        group = Group("all", [weight], 0.1, cosine_to_zero, 1e9)  # type: ignore[list-item]
        with torch.autocast("cpu", torch.float16):
            loss = (torch.ones(1, 4) @ weight).float().sum() * size
        guard.scaled(loss).backward()  # type: ignore[no-untyped-call]
        guard.clip([group])
        assert weight.grad is not None
        return weight.grad

    assert (gradient(FP32, 1e-8) == 0).all()  # what happens without
    torch.testing.assert_close(gradient(FP16, 1e-8), torch.full((4, 4), 1e-8), rtol=1e-3, atol=0)
    assert torch.equal(gradient(FP16, 0.25), gradient(FP32, 0.25))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_whose_first_update_is_skipped_begins_at_its_second(kind: str) -> None:
    """torch's fused SGD leaves its momenta uninitialised then."""

    def after(overflows: int) -> tuple[Tensor, list[Tensor]]:
        guard = Guard(FP16, CPU)
        optimizer, parameter = make_optimizer(kind)
        optimizer.found_inf = guard.found_inf  # type: ignore[attr-defined]
        litter = [torch.full((1000,), 1e9) for _ in range(100)]
        del litter  # memory that would be found
        for norm in [INFINITE] * overflows + [FINE, FINE]:
            parameter.grad = torch.full_like(parameter, float(norm))
            guard.judge(FINE, norm)
            optimizer.step()
        return parameter.detach(), list(optimizer.state[parameter].values())

    (straight, straight_state), (found, state) = after(0), after(3)
    assert torch.equal(found, straight)
    for one, other in zip(state, straight_state, strict=True):
        assert torch.equal(one, other)


# --- in training ---------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pth"


def overflow_at(kit: Kit, *steps: int) -> None:
    """Make a gradient of these steps infinite; the loss is fine."""
    first = next(iter(kit.trainer.model.parameters()))
    first.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: gradient * math.inf if kit.counter.steps in steps else gradient
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_changes_no_weight_and_is_said(path: Path, kind: str) -> None:
    kit = make_kit(path, kind, precision=FP16)
    overflow_at(kit, 1, 2, 5)
    kit.trainer.stop_requested = lambda: kit.counter.steps >= 2
    before = parameters(kit.trainer.model)
    with pytest.raises(StopRequested):
        kit.trainer.run()
    after = parameters(kit.trainer.model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    kit.trainer.stop_requested = lambda: False
    kit = make_kit(path, kind, precision=FP16)
    kit.counter.steps = 2
    overflow_at(kit, 5)
    best = kit.trainer.run()
    assert best.epoch > 0
    assert len(kit.trainer.history) == TOTAL / STEPS
    said = [text for text in kit.diary.messages if "overflowed" in text]
    assert said == [
        f"epoch {epoch}: {count} of {STEPS} updates left out, as their gradients overflowed; the "
        f"loss scale is now {scale}"
        for epoch, count, scale in ((1, 2, 16384), (2, 1, 8192))
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, TOTAL])
def test_stopped_at_any_step_it_ends_the_same(
    path: Path, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "GROWTH_STEPS", 2)

    def kit_of(path: Path, done: int, **more: Any) -> Kit:
        kit = make_kit(path, kind, precision=FP16, every_epochs=1000, **more)
        # overflows at steps of the whole run
        first = next(iter(kit.trainer.model.parameters()))
        first.register_hook(  # type: ignore[no-untyped-call]
            lambda g: g * math.inf if kit.counter.steps + done in (1, 4, 7) else g
        )
        return kit

    straight = kit_of(path.with_name("straight.pth"), 0)
    straight.trainer.run()
    stop_after(kit_of(path, 0), steps)
    kit = kit_of(path, steps, init=77)
    kit.trainer.run()
    assert outcome(kit.trainer) == outcome(straight.trainer)
    assert load(path)["loss_scale"] == load(straight.trainer.checkpointing.file.path)["loss_scale"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "then"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_a_task_continues_in_another_precision(
    path: Path, kind: str, first: str, then: str
) -> None:
    stop_after(make_kit(path, kind, precision=Precision(first)), 4)  # type: ignore[arg-type]
    kit = make_kit(path, kind, init=77, precision=Precision(then))  # type: ignore[arg-type]
    kit.trainer.run()
    assert len(kit.trainer.history) == TOTAL / STEPS


def test_a_state_of_an_older_version_has_no_scale(path: Path) -> None:
    stop_after(make_kit(path), 4)
    state = load(path)
    del state["loss_scale"]
    save(path, state)
    kit = make_kit(path, init=77)
    kit.trainer.run()
    straight = make_kit(path.with_name("straight.pth"))
    straight.trainer.run()
    assert outcome(kit.trainer) == outcome(straight.trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_no_number_ends_training(path: Path, kind: str) -> None:
    kit = make_kit(path, kind, precision=FP16)
    poison(kit, "nan", 5)
    with pytest.raises(TaskError, match=r"not finite in epoch 2, step 2 of 3.*runtime\.amp=off"):
        kit.trainer.run()
    assert load(path)["epoch"] == 1


def test_gradients_that_always_overflow_end_training(path: Path) -> None:
    kit = make_kit(path, precision=FP16, epochs=20)
    overflow_at(kit, *range(1, 100))
    wanted = int(math.log2(FIRST_SCALE / LOWEST_SCALE)) + LOST_STEPS
    epoch, step = divmod(wanted - 1, STEPS)
    message = rf"overflowed fp16 in 20 steps .* in epoch {epoch + 1}, step {step + 1} of"
    with pytest.raises(TaskError, match=message):
        kit.trainer.run()


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    kits = [
        make_kit(tmp_path / f"{size}.pth", precision=FP16, micro_batch=size, epochs=1)
        for size in (None, 8)
    ]
    for kit in kits:
        kit.trainer.run()
    one, other = (kit.trainer.model.state_dict() for kit in kits)
    for name, value in one.items():
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(other[name], value, rtol=0.1, atol=0.05)
