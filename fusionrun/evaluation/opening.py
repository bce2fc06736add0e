"""Opening a study that is there already, to measure it: nothing of it is made or changed."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, divide_threads
from fusionrun.common.text import one_line
from fusionrun.common.wheels import choose_wheel, has_kernels, pip_line
from fusionrun.components.manifest import Manifest, read_manifest
from fusionrun.components.starting_experts import with_origin_notes
from fusionrun.data.room import room_for_data
from fusionrun.data.split_files import stored_split
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask
from fusionrun.training.checkpoint import CheckpointError, peek
from fusionrun.training.identity import SPLIT


def require_writable(folder: Path) -> None:
    """Raise LaunchError, before hours are spent, where nothing can be written below `folder`."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return
    found = f"{place} is read-only" if place.is_dir() else f"{place} is a file"
    raise LaunchError(f"{folder}: can't be written ({found}); --output DIR names another folder")


def open_study(
    study: Study,
    rank_info: RankInfo,
    progress: Callable[[str], None],
    *,
    new_splits: bool = False,
) -> RunContext:
    """The study's data and splits on this rank's device.

    Nothing is made that belongs to the study, but for `new_splits` of one that trained nothing yet.
    Raises DataError, LaunchError.
    """
    runtime = study.recipe.runtime
    device = choose_device(rank_info, runtime.device)
    if device.type == "cuda":
        _require_usable(device)
    threads = divide_threads(rank_info, runtime.threads)
    expected = trained_split(study)
    if expected is not None or not new_splits:
        _require_split(study.splits_dir, expected)
        new_splits = False
    with room_for_data(device):
        context = open_context(study, device, threads, progress=progress, new_splits=new_splits)
    for note in filter(None, (trained_elsewhere(study, device), selected_otherwise(study))):
        progress(f"fusionrun: {note}")
        context = replace(context, data=replace(context.data, notes=(*context.data.notes, note)))
    return with_origin_notes(replace(context, progress=progress))


def finished_rows(study: Study) -> Iterator[Manifest]:
    """What the rows that are there say of themselves."""
    for row in study.rows:
        with suppress(CheckpointError):
            yield read_manifest(study.layout.row(row.model, row.variant).manifest)


def selected_otherwise(study: Study) -> str:
    """What to say of detached rows that an older version trained; mostly ""."""
    found = [m for m in finished_rows(study) if m.control == "detached"]
    older = ", ".join(str(m.row) for m in found if "selected_by" not in m.validation)
    if not older:
        return ""
    return (
        f"{older}: an older version chose the epoch by the fused head, not by the mean of the "
        f"experts' probabilities that the control reports"
    )


def trained_elsewhere(study: Study, device: torch.device) -> str:
    """What to say where rows were trained on another kind of device than this one; mostly ""."""
    kinds = {str(manifest.device).partition(":")[0] for manifest in finished_rows(study)}
    names = {"cuda": "a GPU", "cpu": "a CPU"}
    others = " and ".join(names[kind] for kind in names if kind in kinds - {device.type})
    if not others:
        return ""
    return (
        f"rows that were trained on {others} are measured on {names[device.type]}: their answers "
        f"to some images may differ from those of the test after training, which evaluate replaces"
    )


def _require_usable(device: torch.device) -> None:
    """Raise LaunchError for a GPU whose driver is too old for torch, or that it can't run on."""
    try:
        name, card = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    except RuntimeError as error:
        raise LaunchError(
            f"torch can't use the GPU: {one_line(error)}. Update the driver, or set "
            "runtime.device=cpu"
        ) from error
    if not has_kernels(card, built_for := torch.cuda.get_arch_list()) and built_for:
        raise LaunchError(
            f"torch {torch.__version__} is not built for {name}, compute capability {card[0]}."
            f"{card[1]}. Install another: {pip_line(choose_wheel([card], ''))}, or set "
            "runtime.device=cpu"
        )


def trained_split(study: Study) -> str | None:
    """The hash of the split that the study's rows and experts say they were trained on."""
    for manifest in finished_rows(study):
        if SPLIT in manifest.settings:
            return str(manifest.settings[SPLIT])
    experts = (task for task in study.tasks if isinstance(task, ExpertTask))
    for path in (study.expert_file(*each.member) for each in experts):
        settings = (peek(path) or {}).get("settings") if path.is_file() else None
        if isinstance(settings, dict) and SPLIT in settings:
            return str(settings[SPLIT])
    return None


def _require_split(folder: Path, expected: str | None) -> None:
    """Raise LaunchError unless the folder has the split of hash `expected`; None: any."""
    found = stored_split(folder)
    if found is not None and expected in (None, found.hash):
        return
    there = "no split that can be read" if found is None else f"the split {found.hash}"
    wanted = f"the split {expected}, on which it was trained" if expected else "the study's split"
    raise LaunchError(
        f"{folder}: found {there}, expected {wanted}. Name the folder that has it with "
        "data.splits_dir=DIR; nothing makes it again"
    )
