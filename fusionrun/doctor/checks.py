"""The doctor's slower checks: devices compute; data, splits and experts are what they should be."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionrun.common.text import plural, size
from fusionrun.components.store import load_expert_weights
from fusionrun.data.datasets import Dataset
from fusionrun.data.split_files import HOLDOUT_FILE, META_FILE
from fusionrun.data.splits import Splits
from fusionrun.launch.preflight import (
    MEND_EXPERT,
    Finding,
    expert_paths,
    missing_experts,
    split_message,
)
from fusionrun.launch.resume import is_done, resume_path
from fusionrun.study.study import Study
from fusionrun.study.tasks import Task
from fusionrun.training.checkpoint import CheckpointError, ResumeFile
from fusionrun.training.errors import TaskError

COMPUTE_TOLERANCE = 1e-3  # relative to the norm; TF32 convolutions stay below it
COMPUTE_REPEATS = 5

# ---------------------------------------------------------------- devices and port


def check_gpu_memory(devices: Sequence[torch.device]) -> Iterator[Finding]:
    """Nobody else holds much of a GPU that this launch would use."""
    for device in devices:
        if device.type != "cuda":
            continue
        free, total = torch.cuda.mem_get_info(device)
        found = f"{size(free)} of {size(total)} free"
        if free < 0.9 * total:
            advice = "another process uses this GPU (nvidia-smi shows which): end it or wait"
            yield Finding(f"memory {device}", "warn", found, advice)
        else:
            yield Finding(f"memory {device}", "pass", found)


def check_compute(devices: Sequence[torch.device]) -> Iterator[Finding]:
    """Products, convolutions and their gradients come out right, and the same every time."""
    reference = compute(torch.device("cpu"), torch.float64)
    for device in devices:
        name, advice = f"compute {device}", "don't train on it; CUDA_VISIBLE_DEVICES leaves it out"
        try:
            results = [compute(device, torch.float32) for _ in range(COMPUTE_REPEATS)]
        except RuntimeError as error:
            yield Finding(name, "fail", f"broke: {str(error).splitlines()[0]}", advice)
            continue
        difference = float((results[0] - reference).norm() / reference.norm())
        if not difference <= COMPUTE_TOLERANCE:  # nan, too
            found = f"wrong results (relative difference {difference:.2g} from float64)"
            yield Finding(name, "fail", found, advice)
        elif not all(torch.equal(result, results[0]) for result in results):
            yield Finding(name, "fail", "other results when asked the same again", advice)
        else:
            found = f"right to {difference:.1g}, the same {COMPUTE_REPEATS} times"
            yield Finding(name, "pass", found)


def compute(device: torch.device, dtype: torch.dtype) -> Tensor:
    """A matrix product, a convolution and its weights' gradient as one vector, float64 on the CPU.

    A fixed problem, large enough to occupy most of a GPU's processors.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        product = numbers(768, 768) @ numbers(768, 768)
        images, kernels = numbers(16, 16, 16, 16), numbers(16, 16, 3, 3).requires_grad_()
        maps = nn.functional.conv2d(images, kernels, padding=1)
        (gradient,) = torch.autograd.grad(maps.relu().sum(), kernels)
    # each part counts alike, however large its numbers
    parts = [part.detach().cpu().double().flatten() for part in (product, maps, gradient)]
    return torch.cat([part / part.norm() for part in parts])


def check_load() -> Iterator[Finding]:
    """Nobody else computes here while the steps are timed."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > 0.5 * cores:
        found = f"{load:.1f} processes at work on {plural(cores, 'core')} before this one began"
        yield Finding("load", "warn", found, "times below are too long; ask again when it's quiet")


def check_port() -> Iterator[Finding]:
    """torchrun picks a free port of this machine, on which its processes meet."""
    try:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("localhost", port), timeout=5).close()
    except OSError as error:
        found = f"processes can't meet on localhost ({error.strerror or error})"
        advice = "check that `localhost` is in /etc/hosts and that no firewall or sandbox closes it"
        yield Finding("port", "fail", found, advice)
    else:
        yield Finding("port", "pass", "processes can meet on localhost")


# ---------------------------------------------------------------- data and splits


def check_data(data: Dataset) -> Iterator[Finding]:
    """What the loaded data set consists of, and what loading it had to leave out."""
    side = data.train_images.shape[-1]
    found = (
        f"{data.name}: {len(data.train_labels)} training and {len(data.test_labels)} test images "
        f"of {side}x{side}, {len(data.classes)} classes"
    )
    yield Finding("data", "pass", found)
    for note in data.notes:
        yield Finding("data", "warn", note, "mend or remove these files, or live without them")


def check_splits(study: Study, splits: Splits) -> Iterator[Finding]:
    """No image is on two sides of a line that results depend on."""
    experts = {int(index) for part in splits.expert_train for index in part}
    train, validation = set(splits.fusion_train.tolist()), set(splits.fusion_val.tolist())
    overlaps = {
        "an expert's training and the holdout": experts & (train | validation),
        "fusion training and validation": train & validation,
    }
    for sides, shared in overlaps.items():
        if shared:
            advice = "set data.splits_dir to another folder, where new splits are made"
            found = f"{plural(len(shared), 'image')} shared by {sides}"
            yield Finding("splits", "fail", found, advice)
    if any(overlaps.values()):
        return
    sizes = sorted({len(part) for part in splits.expert_train})
    each = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    if (study.splits_dir / META_FILE).is_file():
        origin = f"as stored in {study.splits_dir}"
    elif (study.splits_dir / HOLDOUT_FILE).is_file():
        origin = f"from the holdout in {study.splits_dir}"
    else:
        origin = f"`train` writes them to {study.splits_dir}"
    found = (
        f"no overlap: each expert {each} images, fusion {len(train)}, validation "
        f"{len(validation)}; {origin}"
    )
    yield Finding("splits", "pass", found)


# ---------------------------------------------------------------- experts and earlier results


def check_experts(study: Study, data: Dataset) -> Iterator[Finding]:
    """Every expert that is there loads, fits, and was trained for this data."""
    for model, paths in expert_paths(study).items():
        present = [path for path in paths if path.exists()]
        expert = study.build_expert(model, len(data.classes))
        loaded = []  # how good each says it is
        for path in present:
            try:
                about = load_expert_weights(expert, path)
            except CheckpointError as error:
                yield Finding("experts", "fail", str(error), MEND_EXPERT)
                continue
            yield from _check_origin(path, about, data)
            accuracy = about.get("val_accuracy")
            loaded.append("n/a" if accuracy is None else f"{accuracy:.1f} %")
        if loaded:
            found = f"{model}: {len(loaded)} fit, validation {', '.join(loaded)}"
            yield Finding("experts", "pass", found)
    yield from missing_experts(study)


def _check_origin(path: Path, about: Mapping[str, Any], data: Dataset) -> Iterator[Finding]:
    """What an expert's file says of its training against this study's data, if it says so."""
    side = data.train_images.shape[-1]
    classes = list(about.get("classes", data.classes))
    if classes != list(data.classes):
        found = (
            f"{path}: was trained for other classes: {_some(classes)}; here {_some(data.classes)}"
        )
        yield Finding("experts", "fail", found, "use experts of this data set, or train them anew")
        return
    theirs = [*about.get("mean", data.mean), *about.get("std", data.std)]
    ours = [*data.mean, *data.std]
    if any(abs(a - b) > 1e-3 for a, b in zip(theirs, ours, strict=True)):
        found = (
            f"{path}: was trained on inputs normalised with {_listed(theirs)} (mean, then std), "
            f"this study uses {_listed(ours)}"
        )
        yield Finding(
            "experts", "warn", found, "is it of the same data? It starts worse than it was"
        )
    if about.get("image_size", side) != side:
        found = f"{path}: was trained on {about['image_size']}x{about['image_size']} images, here"
        yield Finding("experts", "warn", f"{found} {side}x{side}", "it starts worse than it was")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:3])) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _listed(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def standing(study: Study) -> tuple[dict[str, int], list[Finding]]:
    """({task: epochs that an earlier launch did}, what is worth saying about that)."""
    done: dict[str, int] = {}
    findings = []
    for task in study.tasks:
        try:
            done[task.name], damage = _epochs_done(study, task)
        except (TaskError, CheckpointError) as error:
            done[task.name] = 0
            found, advice = split_message(str(error))
            advice = advice or f"move it away, and {task.name} starts over"
            findings.append(Finding("earlier results", "fail", found, advice))
        else:
            if damage:
                epochs = done[task.name]
                advice = f"{task.name} goes on after epoch {epochs}" if epochs else "it starts over"
                findings.append(Finding("earlier results", "warn", damage, advice))
    finished = sum(done[task.name] == task.epochs for task in study.tasks)
    begun = sum(0 < done[task.name] < task.epochs for task in study.tasks)
    if finished or begun:
        found = f"{finished} of {plural(len(study.tasks), 'task')} done, {begun} begun"
        findings.append(Finding("earlier results", "pass", found))
    return done, findings


def _epochs_done(study: Study, task: Task) -> tuple[int, str]:
    """(epochs done, what is wrong with the newest state). Raises as the task itself would."""
    if is_done(study, task):
        return task.epochs, ""
    path = resume_path(study, task)
    state, problem = ResumeFile(path).load()
    if state is None:
        return 0, problem
    study.identity(task).require_same(path, state.get("settings", {}))
    return min(int(state["epoch"]), task.epochs - 1), problem
