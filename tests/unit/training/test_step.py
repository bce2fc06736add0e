"""The step as a static program: bit for bit what it was, with all that lasts in its place."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionrun.common.seeds import derive_seed
from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.data.loader import Batch
from fusionrun.experts import build_expert
from fusionrun.fusions import FUSIONS, FusionModel, build_fusion
from fusionrun.training.guard import FIRST_SCALE, GROWTH_STEPS, LARGEST_SCALE, LOWEST_SCALE
from fusionrun.training.inference import forward_heads
from fusionrun.training.losses import head_correct, head_losses
from fusionrun.training.precision import FP32, Precision
from fusionrun.training.trainer import Trainer
from tests.unit.training.test_trainer import CLASSES, EPOCHS, Kit, make_kit, make_loader

ARGUMENTS: dict[str, dict[str, Any]] = {
    "densenet": {"growth": 4, "blocks": (1, 1), "stem": 8},
    "resnet": {"width": 8, "blocks": (1,)},
    "improved_wide_resnet": {"depth": 10, "widen": 1, "width": 4},
    "resnext": {"depth": 11, "cardinality": 2, "base_width": 4, "stem": 4},
}
MIXED = ("densenet", "resnext")
FP16 = Precision("fp16")


def row(models: tuple[str, str], fusion: str, *, detached: bool = False) -> FusionModel:
    experts = [build_expert(model, CLASSES, dropout=0.2, **ARGUMENTS[model]) for model in models]
    return FusionModel(experts, build_fusion(fusion, 2, 16), CLASSES, detached=detached)


class Before:
    """A step as it was before it was a static program: plain rates, numbers bound anew."""

    def __init__(self, trainer: Trainer, micro_batch: int | None) -> None:
        self.model, self.by, self.micro_batch = trainer.model, trainer.optimisation, micro_batch
        ours = self.by.optimizer
        named = [(g.parameters, g.name) for g in self.by.groups]
        decay = ours.param_groups[0]["weight_decay"]
        groups = [{"params": parameters, "name": name} for parameters, name in named]
        if isinstance(ours, torch.optim.SGD):
            self.optimizer: Any = torch.optim.SGD(
                groups, lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
            )
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=decay, fused=True)
        self.losses = torch.zeros(len(self.by.head_weights), dtype=torch.float64)
        self.correct = torch.zeros_like(self.losses)
        self.bad_step = torch.tensor(-1.0)
        self.skipped = self.fine = torch.zeros(())
        self.scale = torch.tensor(FIRST_SCALE)
        self.is_scaled = self.by.precision.is_scaled

    def step(self, batch: Batch, seed: int, step: int, epoch: int, epochs: int) -> None:
        for entry, group in zip(self.optimizer.param_groups, self.by.groups, strict=True):
            entry["lr"] = group.lr * group.schedule(epoch, epochs)
        torch.manual_seed(seed)
        self.optimizer.zero_grad()
        parts = []
        for part in batch.split(self.micro_batch):
            share = len(part.labels) / len(batch.labels)
            with self.by.precision.autocast(torch.device("cpu")):
                logits = forward_heads(self.model, part.images)
            losses = head_losses(logits, part.targets, self.by.label_smoothing) * share
            loss = losses @ self.by.head_weights
            (loss * self.scale if self.is_scaled else loss).backward()
            parts.append((losses.detach(), head_correct(logits.detach(), part.targets)))
        losses, correct = (torch.stack(each).sum(dim=0) for each in zip(*parts, strict=True))
        if self.is_scaled:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.scale.reciprocal())
        clip = nn.utils.clip_grad_norm_
        norm = torch.stack([clip(group.parameters, group.clip) for group in self.by.groups]).sum()
        self.judge(losses @ self.by.head_weights, norm, step)
        self.optimizer.step()
        self.losses = self.losses + losses * len(batch.labels)
        self.correct = self.correct + correct

    def judge(self, loss: Tensor, norm: Tensor, step: int) -> None:
        ends, skips = ~torch.isfinite(loss + norm), torch.tensor(False)
        if self.is_scaled:
            skips, ends = torch.isfinite(loss) & ~torch.isfinite(norm), ~torch.isfinite(loss)
            grows = ~skips & (self.fine + 1 >= GROWTH_STEPS)
            self.skipped = self.skipped + skips
            self.fine = (self.fine + 1) * ~(skips | grows)
            scale = self.scale * (1.0 + 1.0 * grows - 0.5 * skips)
            self.scale = scale.clamp(LOWEST_SCALE, LARGEST_SCALE)
        self.bad_step = torch.where(ends & (self.bad_step < 0), float(step), self.bad_step)
        self.optimizer.found_inf = ((self.bad_step >= 0) | skips).float()


def assert_as_before(make: Callable[[], Kit], micro_batch: int | None = None) -> None:
    """Two epochs of what `make` makes leave the same bits as the same steps did before."""
    kit, other = make(), make()
    ours, before = kit.trainer, Before(other.trainer, micro_batch)
    for epoch in range(2):
        order = other.trainer.loaders.train.training_batches(derive_seed(5, "order", epoch))
        other.trainer.start_epoch()  # modes
        for step, (batch, same) in enumerate(zip(ours.start_epoch(), order, strict=True)):
            ours.train_step(batch)
            ours.after_step()
            before.step(same, derive_seed(5, "dropout", epoch, step), step, epoch, EPOCHS)
        meter, guard = ours.step.meter, ours.step.guard.seen()
        assert torch.equal(meter.losses, before.losses)
        assert torch.equal(meter.correct, before.correct)
        assert meter.images == ours.loaders.train.num_images
        if ours.optimisation.precision.is_scaled:
            scale, fine = float(before.scale), int(before.fine)
            assert (guard.skipped, guard.scale, guard.fine) == (int(before.skipped), scale, fine)
        ours.finish_epoch()
        before.losses, before.correct = before.losses * 0, before.correct * 0
        before.skipped = before.skipped * 0
    states = kit.trainer.model.state_dict(), other.trainer.model.state_dict()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    moments = ours.optimisation.optimizer.state_dict()["state"]
    for key, expected in before.optimizer.state_dict()["state"].items():
        for name, value in expected.items():
            assert torch.equal(moments[key][name], value), name


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("models", [*((name, name) for name in ARGUMENTS), MIXED], ids="-".join)
def test_a_row_learns_the_same_bits(tmp_path: Path, models: tuple[str, str], fusion: str) -> None:
    def make() -> Kit:
        torch.manual_seed(1)
        return make_kit(tmp_path / "file.pth", model=row(models, fusion))

    assert_as_before(make)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_an_expert_learns_the_same_bits(tmp_path: Path, augmentation: str) -> None:
    loader = make_loader(0, 40, augmentation, layout=True)
    assert_as_before(lambda: make_kit(tmp_path / "file.pth", "expert", train_loader=loader))


@pytest.mark.parametrize("kind", ["fusion", "expert"])
@pytest.mark.parametrize("precision", [FP32, Precision("bf16"), FP16], ids=lambda p: p.name)
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_parts_and_precisions_learn_the_same_bits(
    tmp_path: Path, kind: str, precision: Precision, micro_batch: int | None
) -> None:
    changes = {"precision": precision, "micro_batch": micro_batch}
    assert_as_before(lambda: make_kit(tmp_path / "file.pth", kind, **changes), micro_batch)


@pytest.mark.parametrize("control", ["frozen", "detached", "recompute"])
def test_controls_learn_the_same_bits(tmp_path: Path, control: str) -> None:
    def make() -> Kit:
        torch.manual_seed(1)
        model = row(("resnet", "resnet"), "multiplicative", detached=control == "detached")
        frozen = list(model.experts) if control == "frozen" else []
        for expert in frozen:
            expert.requires_grad_(False)
        path, recompute = tmp_path / "file.pth", control == "recompute"
        return make_kit(path, model=model, frozen=frozen, recompute=recompute)

    assert_as_before(make)


@pytest.mark.parametrize("kind", ["fusion", "expert"])
def test_what_lasts_stays_in_its_place(tmp_path: Path, kind: str) -> None:
    """Also over an epoch's end and an overflow, so that what was recorded once stays right."""
    kit = make_kit(tmp_path / "file.pth", kind, precision=FP16)
    step, optimizer = kit.trainer.step, kit.trainer.optimisation.optimizer
    places = [tensor.data_ptr() for tensor in step.lasting()]
    rates = [group["lr"] for group in optimizer.param_groups]
    kit.counter.at = {2: lambda images: images * math.inf}
    for _ in range(2):
        for batch in kit.trainer.start_epoch():
            kit.trainer.train_step(batch)
        step.meter.begin_epoch()
        step.guard.begin_epoch()
    assert [tensor.data_ptr() for tensor in step.lasting()] == places
    assert all(g["lr"] is rate for g, rate in zip(optimizer.param_groups, rates, strict=True))
    assert optimizer.found_inf is step.guard.found_inf  # type: ignore[attr-defined]
    named = {id(tensor) for tensor in step.lasting()}
    assert {id(tensor) for tensor in kit.trainer.model.state_dict(keep_vars=True).values()} <= named
