"""The experts' files, by what stands in them: they fit, and every weight is a number."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from os.path import lexists
from pathlib import Path

import torch
from torch import Tensor

from fusionrun.common.text import plural
from fusionrun.components.mismatch import unusable
from fusionrun.components.read_checkpoint import ExpertFile, expert_in
from fusionrun.components.starting_experts import foreign_names
from fusionrun.components.store import ComponentInfo, component_info
from fusionrun.data.datasets import Survey
from fusionrun.data.split_files import HOLDOUT_FILE
from fusionrun.launch.checks.finding import Finding
from fusionrun.launch.resume import is_reusable
from fusionrun.study.paths import EXPERT_NAMES
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask
from fusionrun.training.checkpoint import CheckpointError, load, peek

REPLACE_EXPERT = "put the right file there, or move it away to have that expert trained"


def check_expert_files(study: Study, survey: Survey) -> Iterator[Finding]:
    """Those that are there are of their architecture, for this data, and differ.

    Only of models of which a row is still to be trained; no row needs the others.
    """
    open_models = _open_models(study)
    fit = 0
    strangers: list[Path] = []  # whose training nobody here knows of
    broken: dict[str, list[Path]] = {}  # by what is wrong with them
    for (model, seed), paths in expert_paths(study).items():
        loaded: dict[Path, Mapping[str, Tensor]] = {}
        if model in open_models:
            yield from _doubtful_names(study, model, seed, paths)
        for k, path in paths.items() if model in open_models else ():
            if not lexists(path):
                continue
            try:
                file = _read(study, model, k, path, survey)
                loaded[path] = file.weights
                strangers += [] if file.about else [path]
            except CheckpointError as error:
                broken.setdefault(str(error).removeprefix(f"{path}: "), []).append(path)
        fit += len(loaded)
        yield from same_weights(loaded)
    for problem, (first, *more) in broken.items():
        also = f" ({', '.join(path.name for path in more)} as well)" if more else ""
        yield Finding("experts", "fail", f"{first}{also}: {problem}", REPLACE_EXPERT)
    if fit:
        names = [named for paths in expert_paths(study).values() if (named := foreign_names(paths))]
        yield Finding("experts", "pass", "; ".join([f"{fit} are there", *names]))
    yield from _unknown_holdout(study, strangers)
    yield from missing_experts(study)


def _unknown_holdout(study: Study, strangers: Sequence[Path]) -> Iterator[Finding]:
    """A warning where a holdout will be drawn for experts that were trained elsewhere."""
    if strangers and not (study.splits_dir / HOLDOUT_FILE).exists():
        found = (
            f"{plural(len(strangers), 'expert')} not saved by fusionrun, and no {HOLDOUT_FILE} in "
            f"{study.splits_dir}: fusion is trained and validated on a new holdout, whose images "
            f"they may have been trained on"
        )
        advice = "set data.splits_dir to the folder of the split that they were trained with"
        yield Finding("experts", "warn", found, advice)


def _open_models(study: Study) -> set[str]:
    rows = [task.row for task in study.row_tasks if not is_reusable(study, task)]
    return {model for row in rows for model in row.architectures}


def _doubtful_names(
    study: Study, model: str, seed: int | None, paths: Mapping[int, Path]
) -> Iterator[Finding]:
    """Where other files may be meant than those that are taken, or others' numbers are."""
    sets = list(study.expert_sets(model, seed))
    for files in sets:
        if not files.is_certain and not all(path.exists() for path in paths.values()):
            first, *more = files.paths.values()
            there, count = [str(first), *(path.name for path in more)], study.recipe.experts.count
            found = f"of {count} only {', '.join(there)}: is the first one number 0 or 1?"
            name = EXPERT_NAMES[0].format(model=model, k="<k>")
            advice = f"add the others, or name them {name}.pth with k from 0 to {count - 1}"
            yield Finding("experts", "fail", found, advice)
    for k, path in paths.items():
        others = {files.expert(k) for files in sets} - {path, None}
        rivals = [p for p in others if p and {_split_of(p), _split_of(path)} != {"iid", "noniid"}]
        if rivals:
            found = f"expert {k} of {model}: {path} is taken, {rivals[0]} is there as well"
            yield Finding("experts", "warn", found, "move away the one that isn't meant")
    split = study.recipe.data.split
    odd = [path for path in paths.values() if _split_of(path) not in ("", split.replace("_", ""))]
    if odd:
        found = f"{odd[0]} was trained on another split, by its name, than data.split={split}"
        yield Finding("experts", "warn", found, "set data.split as the experts were trained")


def _split_of(path: Path) -> str:
    """What a file's name says of the split that its expert was trained on."""
    return next((word for word in ("noniid", "iid") if f"_{word}_" in path.name), "")


def _read(study: Study, model: str, k: int, path: Path, survey: Survey) -> ExpertFile:
    """Weights are read and left on the disk, none where only the data's own code knows classes.

    Raises CheckpointError when they can't be the expert's.
    """
    payload = peek(path)
    if payload is None:
        payload = load(path)  # says what is wrong with it
    if survey.num_classes is None:
        return ExpertFile({}, component_info(payload, path), ())
    with torch.device("meta"):
        expert = study.build_expert(model, survey.num_classes, k=k)
    file = expert_in(payload, path, expert)
    problem = unusable(expert, file.weights)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    if file.about and survey.classes and (found := other_classes(file.about, survey.classes)):
        raise CheckpointError(f"{path}: {found}")
    return file


def same_weights(loaded: Mapping[Path, Mapping[str, Tensor]]) -> Iterator[Finding]:
    """A warning for each two experts that are one: only as much is read as tells them apart."""
    for (first, one), (second, other) in combinations(loaded.items(), 2):
        if one and one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one):
            found = f"{first} and {second.name} have the same weights"
            yield Finding(
                "experts", "warn", found, "a fusion of one expert with itself gains little"
            )


def other_classes(about: ComponentInfo, classes: Sequence[str]) -> str:
    """How the classes of an expert of ours differ from the data's; "" where they don't."""
    if list(about.classes) == list(classes):
        return ""
    return f"was trained for other classes: {_shortened(about.classes)}; here {_shortened(classes)}"


def _shortened(names: Sequence[str]) -> str:
    """The first of many names, and how many there are."""
    return ", ".join(map(str, names[:3])) + (f", ... ({len(names)})" if len(names) > 3 else "")


def missing_experts(study: Study) -> Iterator[Finding]:
    """What will be trained; a warning where the recipe says that experts are somewhere."""
    paths, recipe = expert_paths(study), study.recipe.experts
    missing = {
        kind: sum(not lexists(path) for path in each.values()) for kind, each in paths.items()
    }
    if not any(missing.values()):
        return
    epochs = plural(recipe.epochs, "epoch")
    which = ", ".join(
        f"{count} {model}" + ("" if seed is None else f" with seed {seed}")
        for (model, seed), count in missing.items()
        if count
    )
    found = f"to be trained, {epochs} each: {which}"
    named = recipe.checkpoint_dir is not None or recipe.pattern is not None
    begun = (study.layout.state / "experts").is_dir()  # this study trains them into that folder
    if not named or begun:
        yield Finding("experts", "pass", found)
        return
    if sum(missing.values()) != sum(map(len, paths.values())):
        found = f"the others are not in {study.checkpoint_dir}; {found}"
        advice = "if you have them, check their names and experts.pattern"
        yield Finding("experts", "warn", found, advice)
        return
    has = sorted(each.name for each in study.checkpoint_dir.glob("*"))[:4]
    there = f" (which has {', '.join(has)}, ...)" if has else ""
    found = f"none in {study.checkpoint_dir}{there}; {found}"
    if recipe.pattern is None or not _open_models(study):
        advice = "if you have them, check experts.checkpoint_dir and experts.pattern"
        yield Finding("experts", "warn", found, advice)
    else:
        found = f"no file fits experts.pattern {recipe.pattern!r}: {found}"
        yield Finding("experts", "fail", found, "correct it, or leave it out to have them trained")


def expert_paths(study: Study) -> dict[tuple[str, int | None], dict[int, Path]]:
    """{(architecture, seed): {number: file} of such experts that the launch's rows need}."""
    found: dict[tuple[str, int | None], dict[int, Path]] = {}
    for task in study.tasks:
        if isinstance(task, ExpertTask):
            path = study.expert_file(*task.member)
            found.setdefault((task.model, task.seed), {})[task.expert] = path
    return found
