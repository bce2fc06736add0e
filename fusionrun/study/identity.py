"""What makes a task the same experiment, wherever, however and by which version it is run."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fusionrun.common.plugins import source_hash
from fusionrun.common.typed_fields import flatten
from fusionrun.study.models import identity_defaults, identity_fields
from fusionrun.study.recipe import DataConfig, ExpertsConfig, FusionConfig, Recipe
from fusionrun.study.tasks import RowTask, Task
from fusionrun.training.identity import THREADS, Identity

# recorded, never compared: where things lie, and how the hardware is used
PATHS = (
    *("data.root", "data.train_folder", "data.test_folder", "data.cache_dir", "data.splits_dir"),
    *("experts.checkpoint_dir", "experts.pattern"),
)
KNOBS = ("data.download", "experts.together", "fusion.micro_batch", THREADS)
UNCOMPARED = frozenset({*PATHS, *KNOBS})

RECIPE_DEFAULTS: Mapping[str, Any] = {
    **flatten(DataConfig(), "data"),
    **flatten(ExpertsConfig(), "experts"),
    **flatten(FusionConfig(), "fusion"),
    "control": None,
    "expert_seed": None,  # the recipe's
    "network": 0,
}


def identity_of_task(
    recipe: Recipe, task: Task, evidence: Mapping[str, Any] = MappingProxyType({})
) -> Identity:
    """Of an expert's training or a row's; `evidence` is what is known of the names in EVIDENCE."""
    row = task.row if isinstance(task, RowTask) else None
    models = row.architectures if row else (task.model,)
    used = (recipe.data.name, *models, row.fusion if row else "")
    fields = {
        **flatten(recipe.data, "data"),
        **_of_models(recipe, models, alone=task.trains_alone, in_rows=row is not None),
        **{f"plugins.{n}": described(p) for n, p in recipe.plugins.items() if n in used},
        "experts.count": recipe.experts.count,
        "experts.classes": recipe.experts.classes,
        "model": row.members if row and row.is_mixed else task.model,  # not by its given name
    }
    if row is None or not row.experts:
        fields |= flatten(recipe.experts, "experts")
        seed = task.row.seed if isinstance(task, RowTask) else task.seed
        fields["seed"] = recipe.seed if seed is None else seed
        if row and row.network:
            fields["network"] = row.network
        if row and row.is_full_ensemble:
            fields["fusion"] = row.fusion
    else:
        fields |= flatten(recipe.fusion, "fusion")
        del fields["fusion.alpha"]  # the row has its own
        fields |= {"fusion": row.fusion, "control": row.control}
        fields |= {"seed": row.seed, "expert_seed": row.expert_seed, "alpha": row.alpha}
    return Identity({**_lasting(fields), **evidence}, _defaults(recipe, models), UNCOMPARED)


def identity_of_study(recipe: Recipe, models: Iterable[str]) -> Identity:
    """What all launches into one output directory share, for rows of the architectures `models`."""
    fields: dict[str, Any] = {
        "seed": recipe.seed,
        **flatten(recipe.data, "data"),
        **flatten(recipe.experts, "experts"),
        **flatten(recipe.fusion, "fusion"),
    }
    fields |= _of_models(recipe, models, alone=True, in_rows=True)
    return Identity(_lasting(fields), _defaults(recipe, models), UNCOMPARED)


def _of_models(
    recipe: Recipe, models: Iterable[str], *, alone: bool, in_rows: bool
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for model in models:
        fields |= identity_fields(recipe, model, alone=alone, in_rows=in_rows)
    return fields


def _lasting(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in UNCOMPARED}


def _defaults(recipe: Recipe, models: Iterable[str]) -> dict[str, Any]:
    """Of the recipe's fields, of the architectures' settings and of their arguments."""
    return {**RECIPE_DEFAULTS, **identity_defaults(recipe, models)}


def described(plugin: str) -> str:
    """A plug-in by its name and its file's code, not by where the file lies."""
    return f"{plugin.rpartition(':')[2]} (source {source_hash(plugin)})"
