"""A study: a recipe made concrete, with its rows, its tasks and where everything of it lies."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionrun.common.seeds import derive_seed
from fusionrun.common.text import nearest
from fusionrun.data.augmentation.policies import AUGMENTATIONS, Augmentation
from fusionrun.data.splits import class_range
from fusionrun.experts import Expert, build_expert
from fusionrun.fusions import FusionModule, build_fusion
from fusionrun.study import models, paths
from fusionrun.study.defaults import (
    ExpertDefaults,
    FusionDefaults,
    adapted_rates,
    expert_defaults,
    fusion_defaults,
)
from fusionrun.study.identity import identity_of_task
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.rows import Member, Row
from fusionrun.study.tasks import ExpertTask, RowTask, Task
from fusionrun.training.identity import Identity


@dataclass(frozen=True)
class Study:
    """What one launch works on, the same on every rank."""

    name: str
    recipe: Recipe
    layout: paths.Layout
    checkpoint_dir: Path  # of the experts before fusion
    splits_dir: Path
    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]  # of this launch; a filter can leave some rows' out

    def measured_in(self, folder: Path | None) -> "Study":
        """The same study, of which what is measured goes to `folder`; None: to its own."""
        return replace(self, layout=replace(self.layout, elsewhere=folder))

    def only(self, rows: Collection[Row]) -> "Study":
        """The same study for a launch that works on `rows` alone, and on the experts they need."""
        kept = [task for task in self.row_tasks if task.row in rows]
        return self.with_tasks({name for task in kept for name in (task.name, *task.needs)})

    def with_tasks(self, names: Collection[str]) -> "Study":
        """The same study for a launch that works on the tasks called so alone."""
        kept = [task for task in self.tasks if task.name in names]
        return replace(self, tasks=tuple(replace(task, index=i) for i, task in enumerate(kept)))

    @property
    def row_tasks(self) -> list[RowTask]:
        """The launch's tasks that are rows of the table, which networks of an ensemble aren't."""
        tasks = (task for task in self.tasks if isinstance(task, RowTask))
        return [task for task in tasks if task.row.network is None]

    def matching(self, patterns: Sequence[str]) -> "Study":
        """The same study for a launch of the rows whose model/fusion fits one of the patterns.

        Raises RecipeError for a pattern that fits none.
        """
        rows: list[Row] = []
        names = {f"{row.model}/{row.variant}": row for row in self.rows}
        for pattern in patterns:
            found = [row for name, row in names.items() if fnmatchcase(name, pattern)]
            if not found:
                hint = nearest(pattern, names)
                raise RecipeError(f"{self.name}: --only: {pattern!r} fits no row; {hint}")
            rows += found
        return self.only(rows)

    def source(self, name: str) -> str:
        """What a name of the recipe stands for: itself, or FILE.py:NAME of a plug-in.

        The file's whole path: components keep it, and are loaded from any folder.
        """
        plugin = self.recipe.plugins.get(name)
        return name if plugin is None else str(Path(plugin).absolute())

    def expert_file(self, model: str, k: int, seed: int | None = None) -> Path:
        """The checkpoint of expert `k` before fusion; where it will be, if there is none yet."""
        ours = paths.expert_file(self.checkpoint_dir, model, k, seed)
        found = (files.expert(k) for files in self.expert_sets(model, seed))
        return next((path for path in found if path is not None), ours)

    def is_given(self, member: Member) -> bool:
        """Whether experts.pattern names its file: it is used as it is, whatever trained it."""
        sets = self.expert_sets(member.model, member.seed)
        return next((files.is_given for files in sets if files.expert(member.k)), False)

    def expert_sets(self, model: str, seed: int | None = None) -> Iterator[paths.ExpertFiles]:
        """All that may be the architecture's experts before fusion, what is taken first."""
        own = self.recipe.experts
        split = self.recipe.data.split
        return paths.expert_sets(
            self.checkpoint_dir, model, seed, count=own.count, pattern=own.pattern, split=split
        )

    def model_arguments(self, model: str) -> dict[str, Any]:
        """What the architecture is built with."""
        return models.arguments_of(self.recipe, model)

    def model_settings(self, model: str) -> models.ModelSettings:
        """How its experts are trained."""
        return models.settings_of(self.recipe, model)

    def build_expert(
        self, model: str, num_classes: int, *, k: int | None = None, **more: Any
    ) -> Expert:
        """One of the recipe's architectures, with its first stages frozen as the recipe has it.

        `more` arguments override its own. As expert `k` it has the outputs that this one has.
        """
        arguments = {**self.model_arguments(model), **more}
        expert = build_expert(self.source(model), num_classes, **arguments)
        if k is not None and self.recipe.experts.classes == "own":
            expert.answer_only(class_range(num_classes, k, self.recipe.experts.count))
        expert.freeze(self.model_settings(model).frozen_stages)
        return expert

    def build_fusion(self, fusion: str, experts: Sequence[Expert]) -> FusionModule:
        """One for `experts`, of the feature size that they meet in."""
        size = self.recipe.fusion.dim or max(expert.feature_dim for expert in experts)
        return build_fusion(self.source(fusion), len(experts), size)

    def expert_defaults(self, model: str) -> ExpertDefaults:
        """Settings of the experts' training: the recipe's, else the architecture's."""
        own, base = self.recipe.experts, expert_defaults(model)
        return ExpertDefaults(
            lr=first_set(self.model_settings(model).lr, first_set(own.lr, base.lr)),
            weight_decay=first_set(own.weight_decay, base.weight_decay),
            batch_size=int(first_set(own.batch_size, base.batch_size)),
            augmentation=base.augmentation if own.augmentation == "auto" else own.augmentation,
            mixup_alpha=base.mixup_alpha,
            label_smoothing=first_set(own.label_smoothing, base.label_smoothing),
            dropout=float(self.model_arguments(model).get("dropout", base.dropout)),
        )

    def fusion_defaults(self, fusion: str) -> FusionDefaults:
        """Settings of a row's training but for its rates: the recipe's, else the published ones."""
        own, base = self.recipe.fusion, fusion_defaults(self._published(self.source(fusion)))
        return FusionDefaults(
            experts_lr=base.experts_lr,
            head_lr=base.head_lr,
            weight_decay=first_set(own.weight_decay, base.weight_decay),
            augmentation=base.augmentation if own.augmentation == "auto" else own.augmentation,
            mixup_alpha=base.mixup_alpha,
            label_smoothing=first_set(own.label_smoothing, base.label_smoothing),
        )

    def expert_augmentation(self, model: str) -> Augmentation:
        own = self.recipe.experts
        return _mixed(self.expert_defaults(model), own.mixing, own.mixing_alpha)

    def fusion_augmentation(self, fusion: str) -> Augmentation:
        own = self.recipe.fusion
        return _mixed(self.fusion_defaults(fusion), own.mixing, own.mixing_alpha)

    def rates(self, fusion: str, feature_dim: int) -> tuple[float, float, float]:
        """Rates of (experts, fusion module, global head): the recipe's, else adapted ones."""
        own = self.recipe.fusion
        experts, heads = adapted_rates(self._published(self.source(fusion)), feature_dim)
        fusion_lr = first_set(own.fusion_lr, heads)
        head_lr = first_set(own.global_head_lr, fusion_lr)
        return first_set(own.experts_lr, experts), fusion_lr, head_lr

    def _published(self, fusion: str) -> str | None:
        """The fusion type whose own settings hold; None: those that all types share do."""
        return None if self.recipe.fusion.recipe == "shared" else fusion

    def row_seed(self, row: Row) -> int:
        """From which all that is random in a row's training derives.

        The same for a row and its controls, and in a shared recipe for all fusion types: they draw
        the same order of batches and augmentation, so they can be compared in pairs.
        """
        who = row.members if row.is_mixed else row.model  # not by its given name
        fusion = row.fusion if row.is_single else self._published(row.fusion)
        # of a full ensemble the first network is the single one
        which = [part for part in (fusion, row.network) if part]
        return derive_seed(row.seed, who, *which)

    def row_rate(self, model: str, experts_lr: float) -> float:
        """Of experts of `model` in rows: the architecture's own, else `experts_lr`."""
        return first_set(self.model_settings(model).row_lr, experts_lr)

    def expert_task(self, member: Member) -> ExpertTask:
        """The task that trains this expert."""
        experts = (task for task in self.tasks if isinstance(task, ExpertTask))
        return next(task for task in experts if task.member == member)

    def row_task(self, row: Row) -> RowTask:
        """The task that trains `row`."""
        return next(t for t in self.tasks if isinstance(t, RowTask) and t.row == row)

    def identity(self, task: Task, evidence: Mapping[str, Any] = MappingProxyType({})) -> Identity:
        """What makes a task the experiment it is; `evidence` of the data, split and experts."""
        return identity_of_task(self.recipe, task, evidence)


def _mixed(
    defaults: ExpertDefaults | FusionDefaults, mixing: str, alpha: float | None
) -> Augmentation:
    """The set of per-image operations, with the mixing of images that the recipe wants."""
    alpha = first_set(alpha, defaults.mixup_alpha if mixing == "mixup" else 1.0)
    chosen = AUGMENTATIONS[defaults.augmentation]
    return replace(chosen, mixing=mixing, mixing_alpha=alpha)


def first_set(value: float | None, default: float) -> float:
    """`value`, where the recipe has one."""
    return default if value is None else value
