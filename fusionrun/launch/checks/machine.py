"""The machine's devices and cores, against what the recipe asks for."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fusionrun.common.distributed import usable_cpus
from fusionrun.common.text import one_line, plural
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.study import Study

# the last packages with kernels for GPUs older than the T4's generation, compute capability 7.5
OLDER_GPUS = (
    "pip install 'torch<2.15' torchvision --index-url https://download.pytorch.org/whl/cu126"
)


def check_device(study: Study, ranks: int) -> Iterator[Finding]:
    """The GPUs that the recipe asks for are there, torch can use them, and none is overlooked."""
    wanted = study.recipe.runtime.device
    count = torch.cuda.device_count() if wanted != "cpu" else 0
    if count:
        try:
            names = [torch.cuda.get_device_name(index) for index in range(count)]
            unusable = list(_without_kernels(names))
        except RuntimeError as error:  # such as a driver older than torch's CUDA
            advice = (
                f"update the driver, or install torch for an older one: {OLDER_GPUS}; "
                f"runtime.device=cpu trains without"
            )
            unusable = [Finding("device", "fail", f"torch can't use it: {one_line(error)}", advice)]
        if unusable:
            yield from unusable
            return
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


def _without_kernels(names: list[str]) -> Iterator[Finding]:
    """The GPUs that this torch has nothing to run on; every task would fail on them one by one."""
    built_for = [each for each in torch.cuda.get_arch_list() if each.startswith(("sm", "compute"))]
    for index, name in enumerate(names):
        capability = torch.cuda.get_device_capability(index)
        if built_for and not has_kernels(capability, built_for):
            found = (
                f"{name} has compute capability {capability[0]}.{capability[1]}, torch "
                f"{torch.__version__} is built for {' '.join(built_for)}"
            )
            newer = "pip install --upgrade torch torchvision"
            package = OLDER_GPUS if capability < (7, 5) else newer
            advice = f"install a torch with kernels for it: {package}"
            yield Finding("device", "fail", found, advice)


def has_kernels(capability: tuple[int, int], built_for: Iterable[str]) -> bool:
    """Whether something of torch's list, such as sm_80 or compute_90, runs on such a GPU.

    Machine code (sm) runs on GPUs of its generation that aren't older, what the driver compiles
    (compute) on all that aren't; with an `a` behind the number on that very one.
    """
    for each in built_for:
        if found := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", each):
            kind, least, letter = found[1], (int(found[2]), int(found[3])), found[4]
            generation = capability[0] == least[0] or (kind == "compute" and letter != "f")
            if capability == least or (letter != "a" and generation and capability > least):
                return True
    return False


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
