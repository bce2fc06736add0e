"""A recipe made concrete: its rows, tasks and places, with every name it uses checked."""

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.common.plugins import load_plugin
from fusionrun.common.text import nearest
from fusionrun.data.augmentation.policies import AUGMENTATIONS, Augmentation
from fusionrun.data.datasets import DATASETS
from fusionrun.experts import BUILDERS, Expert, argument_names, build_expert
from fusionrun.fusions import FUSIONS, FusionModule, build_fusion
from fusionrun.study.defaults import (
    EXPERT_DEFAULTS,
    FUSION_DEFAULTS,
    PLUGIN_EXPERT,
    PLUGIN_FUSION,
    ExpertDefaults,
    FusionDefaults,
    adapted_rates,
)
from fusionrun.study.identity import identity_of_task
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import SINGLE, ExpertsConfig, FusionConfig, Recipe, RecipeError
from fusionrun.study.rows import Row, make_rows
from fusionrun.study.tasks import ExpertTask, RowTask, Task, make_tasks
from fusionrun.training.identity import Identity


@dataclass(frozen=True)
class Study:
    """What one launch works on, the same on every rank."""

    name: str
    recipe: Recipe
    layout: Layout
    checkpoint_dir: Path  # of the experts before fusion
    splits_dir: Path
    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]  # of this launch; a filter can leave some rows' out

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
        """The launch's tasks that are rows."""
        return [task for task in self.tasks if isinstance(task, RowTask)]

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
        """What a name of the recipe stands for: FILE.py:NAME of a plug-in, or itself."""
        return self.recipe.plugins.get(name, name)

    def model_arguments(self, model: str) -> dict[str, Any]:
        return self.recipe.models.get(model, {})

    def build_expert(self, model: str, num_classes: int, **more: Any) -> Expert:
        """One of the recipe's architectures; `more` arguments override its own."""
        arguments = {**self.model_arguments(model), **more}
        return build_expert(self.source(model), num_classes, **arguments)

    def build_fusion(self, fusion: str, feature_dim: int) -> FusionModule:
        return build_fusion(self.source(fusion), self.recipe.experts.count, feature_dim)

    def expert_defaults(self, model: str) -> ExpertDefaults:
        """Settings of the experts' training: the recipe's, else the architecture's."""
        own, base = self.recipe.experts, EXPERT_DEFAULTS.get(model, PLUGIN_EXPERT)
        return ExpertDefaults(
            lr=_or(own.lr, base.lr),
            weight_decay=_or(own.weight_decay, base.weight_decay),
            batch_size=int(_or(own.batch_size, base.batch_size)),
            augmentation=base.augmentation if own.augmentation == "auto" else own.augmentation,
            mixup_alpha=base.mixup_alpha,
            label_smoothing=_or(own.label_smoothing, base.label_smoothing),
            dropout=float(self.model_arguments(model).get("dropout", base.dropout)),
        )

    def fusion_defaults(self, fusion: str) -> FusionDefaults:
        """Settings of a row's training but for its rates: the recipe's, else the fusion type's."""
        own, base = self.recipe.fusion, FUSION_DEFAULTS.get(fusion, PLUGIN_FUSION)
        return FusionDefaults(
            experts_lr=base.experts_lr,
            head_lr=base.head_lr,
            weight_decay=_or(own.weight_decay, base.weight_decay),
            augmentation=base.augmentation if own.augmentation == "auto" else own.augmentation,
            mixup_alpha=base.mixup_alpha,
            label_smoothing=_or(own.label_smoothing, base.label_smoothing),
        )

    def expert_augmentation(self, model: str) -> Augmentation:
        return _mixed(self.expert_defaults(model), self.recipe.experts)

    def fusion_augmentation(self, fusion: str) -> Augmentation:
        return _mixed(self.fusion_defaults(fusion), self.recipe.fusion)

    def rates(self, fusion: str, feature_dim: int) -> tuple[float, float, float]:
        """Rates of (experts, fusion module, global head): the recipe's, else adapted ones."""
        own = self.recipe.fusion
        experts, heads = adapted_rates(fusion, feature_dim)
        fusion_lr = _or(own.fusion_lr, heads)
        return _or(own.experts_lr, experts), fusion_lr, _or(own.global_head_lr, fusion_lr)

    def expert_task(self, model: str, k: int) -> ExpertTask:
        """The task that trains expert `k` of `model`."""
        experts = (task for task in self.tasks if isinstance(task, ExpertTask))
        return next(task for task in experts if (task.model, task.expert) == (model, k))

    def row_task(self, row: Row) -> RowTask:
        """The task that trains `row`."""
        return next(t for t in self.tasks if isinstance(t, RowTask) and t.row == row)

    def identity(self, task: Task, evidence: Mapping[str, Any] = MappingProxyType({})) -> Identity:
        """What makes a task the experiment it is; `evidence` of the data, split and experts."""
        return identity_of_task(self.recipe, task, evidence)


def _mixed(
    defaults: ExpertDefaults | FusionDefaults, own: ExpertsConfig | FusionConfig
) -> Augmentation:
    """The set of per-image operations, with the mixing of images that the recipe wants."""
    alpha = _or(own.mixing_alpha, defaults.mixup_alpha if own.mixing == "mixup" else 1.0)
    chosen = AUGMENTATIONS[defaults.augmentation]
    return replace(chosen, mixing=own.mixing, mixing_alpha=alpha)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _folder(place: str, path: str | Path) -> Path:
    """The shell leaves the ~ of output_dir=~/runs alone, so somebody has to read it."""
    with _blame(place):
        return Path(path).expanduser()


def plan_study(recipe: Recipe, name: str) -> Study:
    """Check every name of the recipe against the tables, then lay out its rows and tasks.

    Raises RecipeError.
    """
    _check_names(recipe, name)
    layout = Layout(_folder(f"{name}: output_dir", recipe.output_dir))
    rows = make_rows(recipe.all_rows(), seed=recipe.seed, alpha=recipe.fusion.alpha)
    work = _work_per_image(recipe, rows, name)
    data, experts, fusion = recipe.data, recipe.experts, recipe.fusion
    own_share = 1 / experts.count  # of what the experts divide among them
    if data.split == "iid":
        own_share = min(data.unique_fraction, (1 - data.shared_fraction) * own_share)
        own_share += data.shared_fraction
    pool_share = 1 - data.holdout_fraction
    fusion_share = data.holdout_fraction * (1 - data.val_fraction)

    def row_cost(row: Row) -> float:
        if row.is_single:
            return (pool_share + fusion_share) * experts.epochs * work[row.model]
        return fusion_share * experts.count * fusion.epochs * work[row.model]

    tasks = make_tasks(
        rows,
        num_experts=experts.count,
        expert_epochs=experts.epochs,
        fusion_epochs=fusion.epochs,
        expert_cost=lambda model: pool_share * own_share * experts.epochs * work[model],
        row_cost=row_cost,
    )
    return Study(
        name=name,
        recipe=recipe,
        layout=layout,
        checkpoint_dir=_folder(
            f"{name}: experts.checkpoint_dir", experts.checkpoint_dir or layout.expert_checkpoints
        ),
        splits_dir=_folder(f"{name}: data.splits_dir", data.splits_dir or layout.splits),
        rows=rows,
        tasks=tasks,
    )


def _check_names(recipe: Recipe, name: str) -> None:
    def check(path: str, value: str, valid: Iterable[str]) -> None:
        if value not in valid:
            raise RecipeError(f"{name}: {path}: found {value!r}; {nearest(value, valid)}")

    models, fusions, datasets = _known_names(recipe, name)
    for index, row in enumerate(recipe.rows):
        check(f"rows.{index}.model", row.model, models)
        check(f"rows.{index}.fusion", row.fusion, [*fusions, SINGLE])
    if recipe.grid is not None:
        for index, model in enumerate(recipe.grid.models):
            check(f"grid.models.{index}", model, models)
        for index, fusion in enumerate(recipe.grid.fusions):
            check(f"grid.fusions.{index}", fusion, fusions)
    for model, arguments in recipe.models.items():
        check(f"models.{model}", model, models)
        for argument in arguments:
            known = argument_names(recipe.plugins.get(model, model))
            check(f"models.{model}.{argument}", argument, known)
    check("data.name", recipe.data.name, datasets)
    for key, folder in (("root", recipe.data.root), ("cache_dir", recipe.data.cache_dir)):
        _folder(f"{name}: data.{key}", folder or "")
    check("experts.augmentation", recipe.experts.augmentation, [*AUGMENTATIONS, "auto"])
    check("fusion.augmentation", recipe.fusion.augmentation, [*AUGMENTATIONS, "auto"])


def _known_names(recipe: Recipe, name: str) -> tuple[list[str], list[str], list[str]]:
    """(architectures, fusion types, data sets): ours, and those of the recipe's plug-ins."""
    models, fusions, datasets = list(BUILDERS), list(FUSIONS), list(DATASETS)
    for plugin, source in recipe.plugins.items():
        place = f"{name}: plugins.{plugin}"
        if not re.fullmatch(r"\w+", plugin) or plugin in (*models, *fusions, *datasets, SINGLE):
            raise RecipeError(f"{place}: expected a new name, of letters, digits and _")
        with _blame(place):
            found = load_plugin(source)
        if not isinstance(found, type):
            datasets.append(plugin)
        elif issubclass(found, Expert):
            models.append(plugin)
        elif issubclass(found, FusionModule):
            fusions.append(plugin)
        else:
            raise RecipeError(
                f"{place}: found {found.__name__}, expected a subclass of fusionrun.experts.Expert "
                f"or fusionrun.fusions.FusionModule, or a function that loads a data set"
            )
    return models, fusions, datasets


def _work_per_image(recipe: Recipe, rows: tuple[Row, ...], name: str) -> dict[str, float]:
    """Multiply-accumulates per image of each architecture; builds everything once, weightless."""
    work: dict[str, float] = {}
    feature_dims: dict[str, int] = {}
    for model in dict.fromkeys(row.model for row in rows):
        with torch.device("meta"), _blame(f"{name}: models.{model}"):
            arguments = recipe.models.get(model, {})
            source = recipe.plugins.get(model, model)
            expert = build_expert(source, recipe.data.num_classes, **arguments)
        feature_dims[model] = expert.feature_dim
        size = recipe.data.image_size
        with _blame(f"{name}: data.image_size: {model} can't take {size}x{size} images"):
            work[model] = multiply_accumulates(expert, size)
    built: set[tuple[str, str]] = set()
    for row in rows:
        place = f"rows.{row.index}" if row.index < len(recipe.rows) else f"grid: {row.name}"
        if not row.is_single and (row.model, row.fusion) not in built:
            with torch.device("meta"), _blame(f"{name}: {place}.fusion"):
                source = recipe.plugins.get(row.fusion, row.fusion)
                build_fusion(source, recipe.experts.count, feature_dims[row.model])
            built.add((row.model, row.fusion))
    return work


@contextlib.contextmanager
def _blame(place: str) -> Iterator[None]:
    """Whatever a network can't be built with is the recipe's mistake at `place`: RecipeError.

    Our own checks raise ValueError; torch finds sizes without end (RuntimeError, and TypeError
    for those beyond 64 bits).
    """
    try:
        yield
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise RecipeError(f"{place}: {str(error).splitlines()[0]}") from None
