"""What a launch needs, looked at in a fraction of a second: neither data nor weights are read.

`train` runs these checks itself; `doctor` adds slower ones and times the training.
"""

import contextlib
import heapq
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fusionrun.common.distributed import LaunchError, RankInfo, usable_cpus
from fusionrun.common.locks import lock_problem
from fusionrun.common.text import plural, size
from fusionrun.data.split_files import META_FILE
from fusionrun.launch.resume import is_done, is_reusable, resume_path
from fusionrun.study.paths import expert_file
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask
from fusionrun.training.checkpoint import ResumeFile
from fusionrun.training.file_kinds import file_kind

State = Literal["pass", "warn", "fail"]

NUMBER_BYTES = 4  # every weight and every optimizer state is float32
REPLACE_EXPERT = (
    "its rows will fail: put the right file there, or move it away to have that expert trained"
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    name: str  # of what was looked at
    state: State
    found: str
    advice: str = ""  # what to do about it

    @property
    def line(self) -> str:
        return f"{self.name}: {self.found}" + (f". {self.advice}" if self.advice else "")


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]], *, broken: State = "fail") -> list[Finding]:
    """The findings of all checks in order; a check that breaks is a finding of state `broken`."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else "no message"
            found = f"this check broke: {type(error).__name__}: {reason}"
            findings.append(Finding(name, broken, found, "what it covers is unknown"))
    return findings


def cheap_checks(study: Study, rank_info: RankInfo) -> list[Finding]:
    """What takes a fraction of a second to find out, on this machine of the launch."""
    ranks = rank_info.local_world_size
    return run_checks(
        [
            ("write permission", lambda: check_folders(study)),
            ("locks", lambda: check_locks(study)),
            ("disk space", lambda: check_disk(study, rank_info.world_size)),
            ("device", lambda: check_device(study, ranks)),
            ("CPU threads", lambda: check_threads(study, ranks)),
            ("experts", lambda: check_expert_files(study)),
        ],
        broken="warn",  # a launch that could have worked shouldn't fail by its checks
    )


def require_startable(study: Study, rank_info: RankInfo, warn: Callable[[str], None]) -> None:
    """The part of `doctor` that every launch can afford. Raises LaunchError; `warn` gets the rest.

    One rank, say 0, does it for all on its machine.
    """
    findings = cheap_checks(study, rank_info)
    for finding in findings:
        if finding.state == "warn":
            warn(finding.line)
    failures = [finding.line for finding in findings if finding.state == "fail"]
    if failures:
        raise LaunchError("; ".join(failures))


# ---------------------------------------------------------------- folders and disk


def check_folders(study: Study) -> Iterator[Finding]:
    """Whatever the launch will write to takes a file; nothing is left behind."""
    places = {"output_dir": study.layout.output_dir}
    if any(isinstance(task, ExpertTask) and not is_done(study, task) for task in study.tasks):
        places["experts.checkpoint_dir"] = study.checkpoint_dir
    if not (study.splits_dir / META_FILE).is_file():
        places["data.splits_dir"] = study.splits_dir
    problems = {name: _write_problem(path) for name, path in places.items()}
    for name, problem in problems.items():
        if problem:
            advice = f"set {name} to a folder that you may write to"
            yield Finding("write permission", "fail", f"{name}: {problem}", advice)
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


def _write_problem(path: Path) -> str:
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
    models = {}
    count = study.recipe.experts.count
    sizes = {}
    with torch.device("meta"):
        for model in dict.fromkeys(task.model for task in study.tasks):
            models[model] = study.build_expert(model, study.recipe.data.num_classes)
        for task in study.tasks:
            expert = models[task.model]
            if isinstance(task, ExpertTask) or task.row.is_single:
                sizes[task.name] = (_bytes(expert), _bytes(expert))
                continue
            heads = _bytes(study.build_fusion(task.row.fusion, expert.feature_dim))
            heads += _bytes(nn.Linear(expert.feature_dim, expert.num_classes))
            everything = count * _bytes(expert) + heads
            sizes[task.name] = (everything, heads if task.row.control == "frozen" else everything)
    return sizes


def _bytes(module: nn.Module) -> int:
    return NUMBER_BYTES * sum(int(value.numel()) for value in module.state_dict().values())


def present_bytes(resume: Path) -> int:
    """Bytes of a resume state that is there already, with its predecessor."""
    paths = (resume, ResumeFile(resume).previous)
    return sum(path.stat().st_size for path in paths if path.is_file())


# ---------------------------------------------------------------- devices and threads


def check_device(study: Study, ranks: int) -> Iterator[Finding]:
    """The GPUs that the recipe asks for are there, and none is overlooked."""
    wanted = study.recipe.runtime.device
    count = torch.cuda.device_count() if wanted != "cpu" else 0
    if count:
        names = [torch.cuda.get_device_name(index) for index in range(count)]
        found = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        shared = f"; {ranks} ranks share {'it' if count == 1 else 'them'}" if ranks > count else ""
        yield Finding("device", "pass", found + shared)
    elif wanted == "cuda":
        advice = "check nvidia-smi and CUDA_VISIBLE_DEVICES, or set runtime.device=auto"
        yield Finding("device", "fail", "torch sees no GPU, runtime.device is cuda", advice)
    elif wanted == "auto" and Path("/dev/nvidia0").exists():
        found = "this machine has an NVIDIA GPU that torch doesn't see; the CPU would train"
        advice = "check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch was installed with CUDA"
        yield Finding("device", "warn", found, advice)
    else:
        yield Finding("device", "pass", "CPU" if wanted == "cpu" else "CPU; there is no GPU")


def check_threads(study: Study, ranks: int) -> Iterator[Finding]:
    """No more threads than cores, or the threads of a rank wait for each other."""
    cores = usable_cpus()
    threads = study.recipe.runtime.threads or max(1, cores // ranks)
    found = f"{plural(ranks, 'rank')} x {plural(threads, 'thread')} on {plural(cores, 'core')}"
    if ranks * threads <= cores:
        yield Finding("CPU threads", "pass", found)
    elif threads == 1:  # rows that share cores take turns: together as fast as one by one
        yield Finding("CPU threads", "pass", f"{found}: they share cores")
    else:
        advice = f"set runtime.threads={max(1, cores // ranks)}, or leave it out"
        yield Finding("CPU threads", "warn", f"{found}: they wait for each other", advice)


# ---------------------------------------------------------------- experts


def check_expert_files(study: Study) -> Iterator[Finding]:
    """Which experts are there, by their files' outlines alone: what is cut short shows at once."""
    present = [path for paths in expert_paths(study).values() for path in paths if path.exists()]
    broken = {}
    for path in present:
        try:
            file_kind(path)
        except (ValueError, OSError) as error:
            broken[path] = str(error)
    for path, problem in broken.items():
        yield Finding("experts", "warn", f"{path} {problem}", REPLACE_EXPERT)
    if len(present) > len(broken):
        yield Finding("experts", "pass", f"{len(present) - len(broken)} are there")
    yield from missing_experts(study)


def missing_experts(study: Study) -> Iterator[Finding]:
    """What will be trained; a warning where the recipe says that experts are somewhere."""
    paths = expert_paths(study)
    missing = {model: sum(not path.exists() for path in paths[model]) for model in paths}
    if not any(missing.values()):
        return
    epochs = plural(study.recipe.experts.epochs, "epoch")
    which = ", ".join(f"{count} {model}" for model, count in missing.items() if count)
    found = f"to be trained, {epochs} each: {which}"
    named = study.recipe.experts.checkpoint_dir is not None
    begun = (study.layout.state / "experts").is_dir()  # this study trains them into that folder
    if named and not begun and sum(missing.values()) == sum(map(len, paths.values())):
        found = f"none in {study.checkpoint_dir}; {found}"
        yield Finding("experts", "warn", found, "if you have them, check experts.checkpoint_dir")
    else:
        yield Finding("experts", "pass", found)


def expert_paths(study: Study) -> dict[str, list[Path]]:
    """{architecture: its experts' files}."""
    count = study.recipe.experts.count
    return {
        model: [expert_file(study.checkpoint_dir, model, k) for k in range(count)]
        for model in dict.fromkeys(task.model for task in study.tasks)
    }


# ---------------------------------------------------------------- words


def split_message(message: str) -> tuple[str, str]:
    """(what was found, what to do): our errors say them in that order, a sentence each."""
    found, _, advice = message.partition(". ")
    return found, advice
