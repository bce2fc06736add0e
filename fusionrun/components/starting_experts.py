"""The experts that a row starts from: as their own training, or somebody else's, left them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusionrun.common.text import plural
from fusionrun.components.namings import NAMINGS
from fusionrun.components.read_checkpoint import load_expert_weights, peek_expert
from fusionrun.components.store import ComponentInfo, state_hash
from fusionrun.data.split_files import stored_split
from fusionrun.experts import Expert
from fusionrun.study.context import RunContext
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe
from fusionrun.study.rows import Member
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask
from fusionrun.training.identity import HASH_DIGITS, Identity, of_data


def plan_from_experts(recipe: Recipe, name: str) -> Study:
    """As `plan_study`, with what the recipe leaves open of the networks as the experts need it.

    Some experts that others trained have weights of the same names and shapes as ours and compute
    something else with them: the naming says which argument makes ours that network. It becomes
    the recipe's, and with it that of every expert, file and later launch.
    """
    study = plan_study(recipe, name)
    models = dict(recipe.models)
    for member in (task.member for task in study.tasks if isinstance(task, ExpertTask)):
        model = member.model
        own = study.model_arguments(model)
        for naming in NAMINGS.get(model, ()):
            open_ones: dict[str, Any] = {n: v for n, v in naming.needs if n not in own}
            path = study.expert_file(*member)
            if open_ones and path.is_file():
                with torch.device("meta"):
                    expert = study.build_expert(model, recipe.data.num_classes, **open_ones)
                file = peek_expert(expert, path)
                if file is not None and file.needs == naming.needs:
                    models[model] = {**recipe.models.get(model, {}), **open_ones}
    return study if models == recipe.models else plan_study(replace(recipe, models=models), name)


def load_experts(context: RunContext, members: Sequence[Member]) -> tuple[list[Expert], list[str]]:
    """The experts as their own training left them, and where each comes from."""
    experts, sources = [], []
    for member in members:
        path = context.study.expert_file(*member)
        expert = context.build_expert(member.model, k=member.k)
        file = load_expert_weights(expert, path)
        identity = context.identity(context.study.expert_task(member))
        require_origin(identity, path, file.about, may_differ=True)  # a launch has looked at it
        experts.append(expert)
        other = "" if file.about is None else departure(identity, file.about)
        said = ", ".join(filter(None, (file.origin, other)))
        weights = state_hash(expert.state_dict())[:HASH_DIGITS]
        sources.append(f"{path} ({said}, weights {weights})")
    return experts, sources


def with_origin_notes(context: RunContext) -> RunContext:
    """The context, among whose notes stands what is from elsewhere: the split, rows' experts.

    That is what it took to read these, and of ours what this recipe would train otherwise.
    """
    study, split = context.study, stored_split(context.study.splits_dir)
    notes = [split.adopted] if split is not None and split.adopted else []
    sets: dict[tuple[str, int | None], list[Member]] = {}
    for member in dict.fromkeys(member for t in study.row_tasks for member in t.row.experts):
        sets.setdefault((member.model, member.seed), []).append(member)
    for (model, _), needed in sets.items():
        with torch.device("meta"):
            expert = study.build_expert(model, len(context.data.classes))
        told: Counter[str] = Counter()
        paths = {member.k: study.expert_file(*member) for member in needed}
        for member, path in zip(needed, paths.values(), strict=True):
            file = peek_expert(expert, path)
            if file is not None:
                identity = context.identity(study.expert_task(member))
                told[departure(identity, file.about) if file.about else file.origin] += 1
        told.pop("", None)
        named = foreign_names(paths)
        folder = paths[needed[0].k].parent
        place = f"{folder}: {named}" if named else folder
        if named and not told:
            notes.append(f"{place}: {len(paths)} {model} experts")
        notes += [f"{place}: {plural(count, 'expert')} {text}" for text, count in told.items()]
        if study.recipe.experts.classes == "own":
            notes.append(
                f"{place}: {model} experts answer for their own classes alone (experts.classes=own)"
                f"; those of others get a probability of 0"
            )
    return replace(context, data=replace(context.data, notes=(*context.data.notes, *notes)))


def foreign_names(paths: Mapping[int, Path]) -> str:
    """Of experts' files those with other names than this study would give, in a few words."""
    there = [
        path.name
        for k, path in paths.items()
        if path.exists() and path.name != f"expert_{k}_best.pth"
    ]
    return " to ".join(dict.fromkeys([there[0], there[-1]])) if there else ""


def departure(identity: Identity, about: ComponentInfo | None) -> str:
    """In what an expert isn't the one of this `identity`, in words; "" where nothing differs."""
    if about is None:
        return "not saved by fusionrun"
    if about.fusion:
        return f"tuned in a row ({about.fusion})"
    if not about.settings:
        return "saved without the settings of their training"
    others = identity.differences(about.settings)
    return f"trained with other settings ({'; '.join(others)})" if others else ""


def require_origin(
    identity: Identity, path: Path | str, about: ComponentInfo | None, *, may_differ: bool
) -> None:
    """Raise IdentityError for an expert of ours that isn't the one of this `identity`.

    It `may_differ` in how it was trained where somebody chose it, but not in its data: it could
    have seen this holdout.
    """
    if about is None or not about.settings:
        return  # somebody else's expert; what it saw is its owner's business
    if may_differ:
        identity.of_data.require_same(path, of_data(about.settings))
        return
    pattern = f"{{model}}/expert_{{k}}_best{Path(path).suffix}"
    identity.require_same(
        path,
        about.settings,
        f"Set them back; or have others trained, in another experts.checkpoint_dir (without one: "
        f"output_dir); or, if rows are to start from these all the same, say so with "
        f"'experts.pattern={pattern}', and it is told wherever those rows are shown",
    )
