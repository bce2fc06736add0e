"""The machine's devices and cores, against what the recipe asks for."""

from collections.abc import Iterator
from pathlib import Path

import torch

from fusionrun.common.distributed import usable_cpus
from fusionrun.common.text import plural
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.study import Study


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
