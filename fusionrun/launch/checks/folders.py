"""Where a launch writes: it may, and there is room."""

import contextlib
import heapq
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn

from fusionrun.common.locks import lock_problem
from fusionrun.common.text import size
from fusionrun.data.split_files import META_FILE
from fusionrun.fusions import FusionModel
from fusionrun.launch.checks.finding import Finding
from fusionrun.launch.resume import is_done, is_reusable, resume_path
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask
from fusionrun.training.checkpoint import ResumeFile

NUMBER_BYTES = 4  # every weight and every optimizer state is float32


def check_folders(study: Study) -> Iterator[Finding]:
    """Whatever the launch will write to takes a file; nothing is left behind."""
    places = {"output_dir": study.layout.output_dir}
    if any(isinstance(task, ExpertTask) and not is_done(study, task) for task in study.tasks):
        places["experts.checkpoint_dir"] = study.checkpoint_dir
    if not (study.splits_dir / META_FILE).is_file():
        places["data.splits_dir"] = study.splits_dir
    problems = {name: write_problem(path) for name, path in places.items()}
    layout = study.layout
    inside = [layout.state, layout.task_log("x").parent, layout.output_dir / "csv_logs"]
    inside += [layout.tensorboard("x").parent] if study.recipe.logs.tensorboard else []
    for path in inside if not problems["output_dir"] else []:
        if path.is_symlink() and not path.exists():
            problems[path.name] = f"{path} is a link to what isn't there"
        elif path.exists():
            problems[path.name] = write_problem(path)
    for problem in dict.fromkeys(filter(None, problems.values())):
        names = [name for name in problems if problems[name] == problem]
        advice = f"set {names[0]} to a folder that you may write to"
        if names[0] not in places:
            advice = "move it away, or set another output_dir"
        yield Finding("write permission", "fail", f"{', '.join(names)}: {problem}", advice)
    if not any(problems.values()):
        yield Finding("write permission", "pass", ", ".join(str(path) for path in places.values()))


def check_locks(study: Study) -> Iterator[Finding]:
    """Who works where is known by locks on files; some file systems have none."""
    places = {study.layout.output_dir: "output_dir", study.checkpoint_dir: "experts.checkpoint_dir"}
    places.setdefault(study.splits_dir, "data.splits_dir")
    for path, field in places.items():
        if found := lock_problem(path):
            found += ": nothing keeps a second launch from working on the same at the same time"
            advice = f"start one at a time, mount it with locks (Lustre: -o flock), or set {field}"
            yield Finding("locks", "warn", found, f"{advice} to a folder elsewhere")
            return


def nearest_existing(path: Path) -> Path:
    """`path`, or the lowest folder above it that is there."""
    path = path.absolute()
    while path != path.parent:
        with contextlib.suppress(OSError):  # a folder above it may not even be looked into
            path.stat()
            break
        path = path.parent
    return path


def write_problem(path: Path) -> str:
    """Why no file can be written to the folder `path`, or made on the way to it; "" if it can."""
    folder = nearest_existing(path)
    if not folder.is_dir():
        return f"{folder} is a file, expected a folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:  # has no name where the system can
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"{folder} can't be written to ({error.strerror})"
    return ""


def check_disk(study: Study, ranks: int) -> Iterator[Finding]:
    """The open tasks' checkpoints against the free space, for every file system they go to."""
    needs: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for path, count in expected_bytes(study, ranks).items():
        folder = nearest_existing(path)
        device = folder.stat().st_dev
        needs[device] = needs.get(device, 0) + count
        folders.setdefault(device, folder)
    for device, folder in folders.items():
        free, need = shutil.disk_usage(folder).free, needs[device]
        found = f"{size(need)} to be written at most, {size(free)} free in {folder}"
        if need > free:
            advice = f"free {size(need - free)} there, or set output_dir to a larger disk"
            yield Finding("disk space", "fail", found, advice)
        elif need > 0.8 * free:
            advice = "keep others from filling this disk"
            yield Finding("disk space", "warn", found, advice)
        else:
            yield Finding("disk space", "pass", found)


def expected_bytes(study: Study, ranks: int) -> dict[Path, int]:
    """{folder: bytes that the open tasks still add below it, at most}.

    A resume state is the weights, the best epoch's weights and the optimizer's state, in two
    generations: when the task is done an expert's go, of a row's the older one.
    """
    kept, experts = 0, 0
    passing: list[int] = []  # only as many at a time as there are ranks
    weights = weight_bytes(study)
    for task in study.tasks:
        if is_reusable(study, task):
            continue
        everything, learning = weights[task.name]
        present = present_bytes(resume_path(study, task))
        if isinstance(task, ExpertTask):
            state = 2 * everything + learning  # SGD keeps one number a weight
            passing.append(max(0, 2 * state - present))
            experts += everything
        elif task.row.is_full_ensemble:
            kept += len(task.needs) * everything
        else:
            state = 2 * everything + 2 * learning  # AdamW keeps two
            kept += everything + max(0, state - present)
            passing.append(state)
    needs = {study.layout.output_dir: kept + sum(heapq.nlargest(ranks, passing))}
    if experts:  # their folder may lie on another disk, or be the same
        needs[study.checkpoint_dir] = needs.get(study.checkpoint_dir, 0) + experts
    return needs


def weight_bytes(study: Study) -> dict[str, tuple[int, int]]:
    """{task: bytes of (all the weights that it trains or holds, those that learn)}."""
    sizes, classes = {}, study.recipe.data.num_classes
    with torch.device("meta"):
        build = cache(lambda model: study.build_expert(model, classes))
        for task in study.tasks:
            if isinstance(task, ExpertTask) or not task.row.experts:
                expert = build(task.model)
                sizes[task.name] = (_bytes(expert), _bytes(expert) - _frozen_bytes(expert))
                continue
            experts = [build(member.model) for member in task.row.experts]
            fusion = study.build_fusion(task.row.fusion, experts)
            everything = _bytes(FusionModel(experts, fusion, classes))
            still = _bytes if task.row.control == "frozen" else _frozen_bytes
            sizes[task.name] = (everything, everything - sum(map(still, experts)))
    return sizes


def _bytes(module: nn.Module) -> int:
    return NUMBER_BYTES * sum(int(value.numel()) for value in module.state_dict().values())


def _frozen_bytes(module: nn.Module) -> int:
    return NUMBER_BYTES * sum(p.numel() for p in module.parameters() if not p.requires_grad)


def present_bytes(resume: Path) -> int:
    """Bytes of a resume state that is there already, with its predecessor."""
    paths = (resume, ResumeFile(resume).previous)
    return sum(path.stat().st_size for path in paths if path.is_file())
