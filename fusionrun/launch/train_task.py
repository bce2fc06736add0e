"""How a rank executes a task: an expert's training, or a row's, from weights to saved results."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionrun.common.seeds import derive_seed
from fusionrun.components.store import (
    About,
    load_expert_weights,
    read_manifest,
    save_component,
    save_model,
    save_single,
    state_hash,
)
from fusionrun.data.augmentation.policies import AUGMENTATIONS, Augmentation
from fusionrun.data.datasets import Dataset
from fusionrun.data.loader import ResidentLoader
from fusionrun.data.splits import Splits
from fusionrun.evaluation.alternatives import accuracy, compare
from fusionrun.experts import Expert
from fusionrun.fusions import FusionModel
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.study.paths import expert_file
from fusionrun.study.queue import Row, Task
from fusionrun.study.study import Study, load_data
from fusionrun.training.checkpoint import CheckpointError, ResumeFile
from fusionrun.training.losses import head_weights
from fusionrun.training.optim import (
    Group,
    adamw,
    cosine_to_tenth,
    cosine_to_zero,
    sgd,
    warm_restarts,
)
from fusionrun.training.trainer import Best, TaskError, Trainer, check_settings, collect_logits

EVALUATION_BATCH = 512  # images; without gradients there is room for more than in training
SAMPLE = 12  # training images that TensorBoard shows
NOT_AUGMENTED = AUGMENTATIONS["none"]

EXPERT_CLIP = 5.0  # largest gradient norm of the experts in a row
HEAD_CLIP = 1.0  # of fusion module and global head, and of an expert that trains alone


@dataclass(frozen=True)
class Workplace:
    """What every task on this rank works with."""

    study: Study
    device: torch.device
    threads: int
    data: Dataset
    images: Tensor  # training images (N, 3, H, W) uint8, on the device
    labels: Tensor  # (N,) int64, on the device
    splits: Splits
    launch: Mapping[str, Any]  # who works here, for the manifests
    stop_requested: Callable[[], bool]

    @property
    def bf16(self) -> bool:
        wanted = self.study.recipe.runtime.amp == "auto"
        return wanted and self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def loader(
        self, indices: np.ndarray, batch_size: int, augmentation: Augmentation = NOT_AUGMENTED
    ) -> ResidentLoader:
        return self._loader(self.images, self.labels, indices, batch_size, augmentation)

    def test_loader(self, batch_size: int) -> ResidentLoader:
        images, labels = self.data.test_images, self.data.test_labels
        everything = np.arange(len(labels))
        on_device = images.to(self.device), labels.to(self.device)
        return self._loader(*on_device, everything, batch_size, NOT_AUGMENTED)

    def _loader(
        self,
        images: Tensor,
        labels: Tensor,
        indices: np.ndarray,
        batch_size: int,
        augmentation: Augmentation,
    ) -> ResidentLoader:
        return ResidentLoader(
            images,
            labels,
            indices,
            num_classes=len(self.data.classes),
            batch_size=batch_size,
            mean=self.data.mean,
            std=self.data.std,
            augmentation=augmentation,
            channels_last=self.study.recipe.runtime.channels_last,
        )

    def settle(self, model: nn.Module) -> None:
        """Move `model` to the device, in the layout that its convolutions like best."""
        last = self.study.recipe.runtime.channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        model.to(self.device, memory_format=layout)  # type: ignore[call-overload]

    def about(self, model: str, expert: Expert, best: Best) -> dict[str, Any]:
        """What every component's file says of where it comes from."""
        return {
            "model": self.study.source(model),
            "arguments": self.study.model_arguments(model),
            "num_classes": expert.num_classes,
            "feature_dim": expert.feature_dim,
            "num_experts": self.study.recipe.experts.count,
            "classes": list(self.data.classes),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "image_size": self.data.train_images.shape[-1],
            "epoch": best.epoch,
            "val_accuracy": best.val_accuracy,
        }


def open_workplace(
    study: Study,
    device: torch.device,
    threads: int,
    *,
    progress: Callable[[str], None],
    launch: Mapping[str, Any] = MappingProxyType({}),
    stop_requested: Callable[[], bool] = lambda: False,
) -> Workplace:
    """Load the study's data onto the device. Raises DataError."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # from here on this process holds memory there
    deterministic = study.recipe.runtime.deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
    data, splits = load_data(study, progress)
    return Workplace(
        study=study,
        device=device,
        threads=threads,
        data=data,
        images=data.train_images.to(device),
        labels=data.train_labels.to(device),
        splits=splits,
        launch=launch,
        stop_requested=stop_requested,
    )


def is_done(study: Study, task: Task) -> bool:
    """Whether the task's result stands on disk, so that no launch does it again.

    Raises TaskError when a row's result stands there but was made with other settings.
    """
    if task.row is None:
        assert task.expert is not None
        return expert_file(study.checkpoint_dir, task.model, task.expert).exists()
    manifest = study.layout.row(task.model, task.row.variant).manifest
    if not manifest.is_file():
        return False
    check_settings(str(manifest), read_manifest(manifest)["settings"], study.settings(task))
    return True


def is_reusable(study: Study, task: Task) -> bool:
    """As `is_done`, but False where a foreign or damaged result stands: its task will say so."""
    try:
        return is_done(study, task)
    except (TaskError, CheckpointError):
        return False


def resume_path(study: Study, task: Task) -> Path:
    """Where the task's resume state lies."""
    if task.row is not None:
        return study.layout.row(task.model, task.row.variant).checkpoint
    assert task.expert is not None
    return study.layout.expert_resume(task.model, task.expert)


def train_expert(work: Workplace, task: Task, reporter: TaskReporter) -> None:
    """Train one expert on its part of the data and save its best epoch."""
    study, k = work.study, task.expert
    assert k is not None
    trainer = expert_trainer(work, task, reporter)
    best = trainer.run()
    path = expert_file(study.checkpoint_dir, task.model, k)
    assert isinstance(trainer.model, Expert)
    origin = {**work.about(task.model, trainer.model, best), "settings": study.settings(task)}
    about = About(component="expert", expert=k, **origin)
    save_component(path, best.state, about)
    trainer.resume_file.remove()
    reporter.message(f"saved {path} (weights {state_hash(best.state)[:12]})")


def expert_trainer(work: Workplace, task: Task, reporter: TaskReporter) -> Trainer:
    """What trains an expert: its network with new weights, its data, its optimizer."""
    k = task.expert
    assert k is not None
    images = work.splits.expert_train[k]
    seed = derive_seed(work.study.recipe.seed, task.model, k)
    return _alone(work, task, reporter, images, work.splits.expert_val[k], seed)


def _alone(
    work: Workplace,
    task: Task,
    reporter: TaskReporter,
    images: np.ndarray,
    validate: np.ndarray,
    seed: int,
) -> Trainer:
    """What trains one network by itself on `images`, as an expert."""
    study = work.study
    defaults = study.expert_defaults(task.model)
    augmentation = study.expert_augmentation(task.model)
    dropout = {"dropout": defaults.dropout} if defaults.dropout else {}
    torch.manual_seed(derive_seed(seed, "weights"))
    expert = study.build_expert(task.model, len(work.data.classes), **dropout)
    work.settle(expert)
    groups = [Group.of("expert", [expert], defaults.lr, cosine_to_zero, HEAD_CLIP)]
    return _trainer(
        work,
        task,
        reporter,
        model=expert,
        train=(images, defaults.batch_size, augmentation),
        validate=validate,
        optimizer=sgd(groups, defaults.weight_decay),
        groups=groups,
        weights=torch.ones(1, device=work.device),
        smoothing=defaults.label_smoothing,
        seed=seed,
    )


def train_row(work: Workplace, task: Task, reporter: TaskReporter) -> None:
    """Train a row's experts, fusion module and global head together; save, test, record."""
    row = task.row
    assert row is not None
    if row.is_single:
        _train_single(work, task, row, reporter)
    else:
        _train_fusion(work, task, row, reporter)


def _train_fusion(work: Workplace, task: Task, row: Row, reporter: TaskReporter) -> None:
    study = work.study
    torch.manual_seed(derive_seed(_row_seed(row), "weights"))
    experts, sources = load_experts(work, row.model)
    for source in sources:
        reporter.message(f"starts from {source}")
    trainer = row_trainer(work, task, reporter, experts, sources)
    # read before training changes them: the alternative that costs no fusion training at all
    before = _experts_alone(work, experts, work.loader(work.splits.fusion_val, EVALUATION_BATCH))
    best = trainer.run()
    model = trainer.model
    assert isinstance(model, FusionModel)
    model.load_state_dict(best.state)
    selected = trainer.history[best.epoch - 1]
    results = test_row(work, row, model, selected.val_accuracies[1:], before)
    origin = work.about(row.model, experts[0], best)
    about = About(component="row", fusion=study.source(row.fusion), **origin)
    validation = {
        "fused": selected.val_accuracies[0],
        "experts": selected.val_accuracies[1:],
        "before_experts": before,
    }
    measured = {"experts_from": sources, "validation": validation, "test": results}
    files = study.layout.row(row.model, row.variant)
    manifest = {**_provenance(work, task, row, best), **measured}
    save_model(files, model, about, selected.val_accuracies[1:], manifest)
    reporter.measured(results)
    trainer.resume_file.previous.unlink(missing_ok=True)
    reporter.message(f"saved {files.directory} (weights {state_hash(best.state)[:12]})")


def _train_single(work: Workplace, task: Task, row: Row, reporter: TaskReporter) -> None:
    """The control without any experts: one network, trained as they are, on all their images."""
    splits, seed = work.splits, _row_seed(row)
    trainer = _alone(work, task, reporter, splits.everything, splits.fusion_val, seed)
    best = trainer.run()
    network = trainer.model
    assert isinstance(network, Expert)
    network.load_state_dict(best.state)
    logits, labels = collect_logits(network, work.test_loader(EVALUATION_BATCH), bf16=work.bf16)
    about = About(component="row", fusion=row.fusion, **work.about(row.model, network, best))
    measured = {
        "validation": {"fused": best.val_accuracy},
        "test": {"fused": accuracy(logits[:, 0], labels)},
    }
    files = work.study.layout.row(row.model, row.variant)
    save_single(files, network, about, {**_provenance(work, task, row, best), **measured})
    reporter.measured(measured["test"])
    trainer.resume_file.previous.unlink(missing_ok=True)
    reporter.message(f"saved {files.directory} (weights {state_hash(best.state)[:12]})")


def _provenance(work: Workplace, task: Task, row: Row, best: Best) -> dict[str, Any]:
    """What a row's manifest says of how its weights came about."""
    return {
        "row": row.name,
        "variant": row.variant,
        "control": row.control,
        "seed": row.seed,
        "alpha": row.alpha,
        "settings": work.study.settings(task),
        "weights": state_hash(best.state),
        "threads": work.threads,
        "device": str(work.device),
        "launch": dict(work.launch),
    }


def _row_seed(row: Row) -> int:
    """The same for a row and its controls: they draw the same, so they can be compared in pairs."""
    return derive_seed(row.seed, row.model, row.fusion)


def row_trainer(
    work: Workplace,
    task: Task,
    reporter: TaskReporter,
    experts: Sequence[Expert],
    sources: Sequence[str],
) -> Trainer:
    """What trains a row: `experts` (from `sources`), a new fusion module and a global head.

    Their new weights come from torch's generator as it stands.
    """
    study, row = work.study, task.row
    assert row is not None
    defaults = study.fusion_defaults(row.fusion)
    fusion = study.build_fusion(row.fusion, experts[0].feature_dim)
    classes, detached = len(work.data.classes), row.control == "detached"
    model = FusionModel(experts, fusion, classes, detached=detached)
    work.settle(model)
    frozen = list(experts) if row.control == "frozen" else []
    for expert in frozen:
        expert.requires_grad_(False)
    groups = _row_groups(study, row, model)
    return _trainer(
        work,
        task,
        reporter,
        model=model,
        train=(
            work.splits.fusion_train,
            study.recipe.fusion.batch_size,
            study.fusion_augmentation(row.fusion),
        ),
        validate=work.splits.fusion_val,
        optimizer=adamw(groups, defaults.weight_decay),
        groups=groups,
        weights=head_weights(len(experts), row.alpha, work.device),
        smoothing=defaults.label_smoothing,
        seed=_row_seed(row),
        frozen=frozen,
        experts_from=sources,
    )


def _trainer(
    work: Workplace,
    task: Task,
    reporter: TaskReporter,
    *,
    model: nn.Module,
    train: tuple[np.ndarray, int, Augmentation],
    validate: np.ndarray,
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    weights: Tensor,
    smoothing: float,
    seed: int,
    frozen: Sequence[nn.Module] = (),
    experts_from: Sequence[str] = (),
) -> Trainer:
    recipe = work.study.recipe
    train_loader = work.loader(*train)
    reporter.sample = partial(train_loader.sample, derive_seed(seed, "order", 0), SAMPLE)
    micro = None if task.trains_alone else recipe.fusion.micro_batch
    return Trainer(
        model=model,
        train_loader=train_loader,
        val_loader=work.loader(validate, EVALUATION_BATCH),
        optimizer=optimizer,
        groups=groups,
        head_weights=weights,
        label_smoothing=smoothing,
        epochs=task.epochs,
        seed=seed,
        device=work.device,
        resume_file=ResumeFile(resume_path(work.study, task)),
        settings={**work.study.settings(task), **_bitwise_settings(work, experts_from)},
        reporter=reporter,
        stop_requested=work.stop_requested,
        every_epochs=recipe.checkpoint.every_epochs,
        every_minutes=recipe.checkpoint.every_minutes,
        batch_field=f"{'experts' if task.trains_alone else 'fusion'}.batch_size",
        micro_batch=micro if isinstance(micro, int) else None,
        shrink_when_full=micro == "auto",
        bf16=work.bf16,
        frozen=frozen,
    )


def _bitwise_settings(work: Workplace, experts_from: Sequence[str]) -> dict[str, Any]:
    """What a resumed task needs to be the same in, beside its settings, to end the same."""
    settings: dict[str, Any] = {"experts": list(experts_from)}
    if work.device.type == "cpu":
        settings["runtime.threads"] = work.threads  # they decide the order of sums
    return settings


def _row_groups(study: Study, row: Row, model: FusionModel) -> list[Group]:
    """Experts, fusion module and global head, each with its own rate, schedule and clip."""
    experts_lr, fusion_lr, head_lr = study.rates(row.fusion, model.global_head.in_features)
    groups = [
        Group.of("experts", model.experts, experts_lr, warm_restarts, EXPERT_CLIP),
        Group.of("fusion", [model.fusion], fusion_lr, cosine_to_tenth, HEAD_CLIP),
        Group.of("global_head", [model.global_head], head_lr, cosine_to_tenth, HEAD_CLIP),
    ]
    return [group for group in groups if group.parameters]


def load_experts(work: Workplace, model: str) -> tuple[list[Expert], list[str]]:
    """The experts as their own training left them, and where each comes from."""
    experts, sources = [], []
    for k in range(work.study.recipe.experts.count):
        path = expert_file(work.study.checkpoint_dir, model, k)
        expert = work.study.build_expert(model, len(work.data.classes))
        about = load_expert_weights(expert, path)
        _check_origin(work.study, model, k, path, about.get("settings", {}))
        experts.append(expert)
        sources.append(f"{path} ({_origin(about)}, weights {state_hash(expert.state_dict())[:12]})")
    return experts, sources


def _check_origin(study: Study, model: str, k: int, path: Path, settings: Any) -> None:
    """Refuse an expert of ours that isn't the one this recipe would train.

    In the study's own folder nothing may differ. In a folder of the user's choice experts are
    free to be trained otherwise, but not on other data: they could have seen this holdout.
    """
    if not isinstance(settings, dict) or not settings:
        return  # somebody else's expert; what it saw is its owner's business
    expected = study.settings(study.expert_task(model, k))
    if study.recipe.experts.checkpoint_dir is not None:
        expected = {key: value for key, value in expected.items() if key.startswith("data.")}
        settings = {key: value for key, value in settings.items() if key.startswith("data.")}
    check_settings(str(path), settings, expected)


def _origin(about: dict[str, Any]) -> str:
    if "epoch" not in about or "val_accuracy" not in about:
        return "not saved by fusionrun"
    return f"epoch {about['epoch']}, validation {about['val_accuracy']:.2f} %"


def _experts_alone(work: Workplace, experts: list[Expert], loader: ResidentLoader) -> list[float]:
    """Accuracy in percent of each expert by itself."""
    accuracies = []
    for expert in experts:
        logits, labels = collect_logits(expert, loader, bf16=work.bf16)
        accuracies.append(accuracy(logits[:, 0], labels))
    return accuracies


def test_row(
    work: Workplace,
    row: Row,
    model: FusionModel,
    val_accuracies: list[float],
    before_val_accuracies: list[float],
) -> dict[str, Any]:
    """The one reading of the test set: fused, tuned experts, experts before tuning."""
    loader = work.test_loader(EVALUATION_BATCH)
    logits, labels = collect_logits(model, loader, bf16=work.bf16)
    untuned, _ = load_experts(work, row.model)
    before = []
    for expert in untuned:
        work.settle(expert)
        before.append(collect_logits(expert, loader, bf16=work.bf16)[0][:, 0])
    return dict(
        compare(
            logits,
            labels,
            torch.stack(before, dim=1),
            val_accuracies=val_accuracies,
            before_val_accuracies=before_val_accuracies,
        )
    )
