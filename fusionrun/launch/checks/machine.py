"""The machine's devices and cores, against what the recipe asks for."""

import os
from collections.abc import Iterator, Sequence

import torch

from fusionrun.common.distributed import mig_slices, usable_cpus
from fusionrun.common.gpus import Gpu, has_device_files, of_device, read_gpus
from fusionrun.common.text import one_line, plural, size
from fusionrun.common.wheels import (
    CPU,
    DRIVERS,
    WHEELS,
    choose_wheel,
    driver_number,
    has_kernels,
    pip_line,
)
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.study import Study

PATIENCE = 10.0  # seconds for nvidia-smi, which a sick driver can keep for ever
BUSY_SHARE, BUSY_BYTES = 0.1, 2**30  # a desktop's share of a GPU's memory is less
BUSY_PERCENT = 50.0
HIDE_ALL = ("", "-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES; the last is Slurm's
WITHOUT = "runtime.device=cpu trains without"
LEAVE_OUT = "CUDA_VISIBLE_DEVICES leaves it out"


def check_device(study: Study, ranks: int) -> Iterator[Finding]:
    """The GPUs that the recipe asks for are there, torch can use them, and none is overlooked."""
    wanted = study.recipe.runtime.device
    if wanted == "cpu":
        yield Finding("device", "pass", "CPU")
        return
    gpus = read_gpus(PATIENCE)
    count = torch.cuda.device_count()
    if not count:
        yield _without_gpu(wanted, gpus)
        return
    try:
        names = [torch.cuda.get_device_name(index) for index in range(count)]
        unusable = list(_without_kernels(names, gpus))
        own = [of_device(gpus, torch.device("cuda", index)) for index in range(count) if gpus]
    except RuntimeError as error:
        if closed := [each for each in _not_free(gpus, ranks) if each.state == "fail"]:
            yield from closed
            return
        advice = f"check nvidia-smi and what the system's log says of NVRM; {WITHOUT}"
        if not gpus:
            older = pip_line(WHEELS[1])
            advice = f"update the driver, or install torch for an older one: {older}; {WITHOUT}"
        found = f"torch can't use it: {one_line(error)}"
        yield _old_driver(gpus) or Finding("device", "fail", found, advice)
        return
    if unusable:
        yield from unusable
        return
    found = _counted(names)
    if "MIG" in names[0]:  # CUDA shows a process the first slice only
        count = len(mig_slices()) or 1
        found = f"{count} x {names[0]}"
    if ranks > count:
        found += f"; {ranks} ranks share {'it' if count == 1 else 'them'}"
    elif ranks < count:
        found += f"; {count - ranks} stay{'s' * (count - ranks == 1)} idle"
    yield Finding("device", "pass", found)
    if "MIG" in names[0] and not mig_slices() and ranks > 1:
        found = f"a process sees one MIG slice: all {ranks} ranks get the same"
        advice = "name the slices in CUDA_VISIBLE_DEVICES (nvidia-smi -L), as launch.sh does"
        yield Finding("device", "warn", found, advice)
    if study.recipe.runtime.amp == "bf16":
        yield from _emulating(names)
    yield from _not_free([gpu for gpu in own if gpu and not gpu.mig], ranks)


def _without_gpu(wanted: str, gpus: Sequence[Gpu]) -> Finding:
    """Why torch sees no GPU, and whether that is in the way."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted == "cuda":
        found = "torch sees no GPU, runtime.device is cuda"
        advice = "check nvidia-smi and CUDA_VISIBLE_DEVICES, or set runtime.device=auto"
    elif not gpus and not has_device_files():
        return Finding("device", "pass", "CPU; there is no GPU")
    elif visible is not None and visible.strip() in HIDE_ALL:
        return Finding("device", "pass", "CPU; CUDA_VISIBLE_DEVICES hides the GPUs")
    elif not gpus:
        found = "this machine has an NVIDIA GPU that torch doesn't see; the CPU would train"
        advice = "check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch was installed with CUDA"
        return Finding("device", "warn", found, advice)
    else:
        found = f"torch doesn't see this machine's {_names(gpus)}"
        advice = f"check CUDA_VISIBLE_DEVICES ({visible or 'not set'}) and the driver; {WITHOUT}"
    if not gpus:
        return Finding("device", "fail", found, advice)
    wheel = choose_wheel([gpu.capability for gpu in gpus], gpus[0].driver)
    if wheel == CPU and wanted == "auto":
        return Finding("device", "pass", f"CPU; torch has left {_names(gpus)}")
    if torch.version.cuda is None:
        found = f"torch {torch.__version__} is built without CUDA, this machine has {_names(gpus)}"
        return Finding("device", "fail", found, f"install another: {pip_line(wheel)}; {WITHOUT}")
    if all(gpu.mig for gpu in gpus):
        found = f"{_names(gpus)}: MIG is on, and torch sees no slice"
        advice = f"nvidia-smi mig -cgi PROFILE -C makes some, nvidia-smi -L shows them; {WITHOUT}"
    elif all(gpu.compute_mode == "Prohibited" for gpu in gpus):
        found = f"{_names(gpus)}: compute mode is Prohibited, nothing runs"
        advice = f"`nvidia-smi -c DEFAULT` (as root) lets processes in; {WITHOUT}"
    return _old_driver(gpus) or Finding("device", "fail", found, advice)


def _names(gpus: Sequence[Gpu]) -> str:
    return _counted([gpu.name for gpu in gpus])


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _old_driver(gpus: Sequence[Gpu]) -> Finding | None:
    """That the driver is too old for torch's CUDA, where that is known."""
    cuda = int((torch.version.cuda or "0").partition(".")[0])
    needed, driver = DRIVERS.get(cuda), gpus[0].driver if gpus else ""
    if needed is None or driver_number(driver) >= needed:
        return None
    found = f"driver {driver} is too old for torch {torch.__version__}: CUDA {cuda} needs {needed}"
    capabilities = [gpu.capability for gpu in gpus]
    wheel = choose_wheel(capabilities, driver)
    others = any(wheel.runs_on(each, driver) for each in capabilities)
    another = f", or install torch for an older one: {pip_line(wheel)}" if others else ""
    return Finding("device", "fail", found, f"update the driver{another}; {WITHOUT}")


def _without_kernels(names: Sequence[str], gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """The GPUs that this torch has nothing to run on; every task would fail on them one by one."""
    built_for = [each for each in torch.cuda.get_arch_list() if each.startswith(("sm", "compute"))]
    cards = [torch.cuda.get_device_capability(index) for index in range(len(names))]
    lacking = [index for index, card in enumerate(cards) if not has_kernels(card, built_for)]
    if not built_for or not lacking:
        return
    others = [index for index in range(len(names)) if index not in lacking]
    wheel = choose_wheel(cards, gpus[0].driver if gpus else "")
    if all(wheel.has_kernels_for(cards[index]) for index in lacking):
        advice = f"install a torch with kernels for it: {pip_line(wheel)}"
    elif max(cards) > (7, 5) and not wheel.has_kernels_for(max(cards)):  # newer than is known here
        advice = f"install a newer torch: {pip_line(wheel)}"
    else:
        advice = f"no torch has kernels for {'all of these GPUs' if others else 'it'} any more"
    if others:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(len(names))))
        left = ",".join(visible.split(",")[index].strip() for index in others)
        advice += f"; CUDA_VISIBLE_DEVICES={left} leaves it out"
    for name, card in dict.fromkeys((names[index], cards[index]) for index in lacking):
        found = (
            f"{name} has compute capability {card[0]}.{card[1]}, torch "
            f"{torch.__version__} is built for {' '.join(built_for)}"
        )
        yield Finding("device", "fail", found, f"{advice}; {WITHOUT}")


def _emulating(names: Sequence[str]) -> Iterator[Finding]:
    """The kinds of GPUs that compute in bfloat16 only by way of float32."""
    if torch.version.hip is not None:
        return
    for name in dict.fromkeys(names):
        if torch.cuda.get_device_capability(names.index(name)) < (8, 0):
            found = f"{name} only emulates bfloat16, more slowly than it computes in float32"
            yield Finding("device", "warn", found, "runtime.amp=auto takes float16 there")


def _not_free(own: Sequence[Gpu], ranks: int) -> Iterator[Finding]:
    """GPUs of this launch that others use, or that take fewer processes than it has ranks."""
    for gpu in own:
        name, is_exclusive = f"GPU {gpu.index}", gpu.compute_mode.startswith("Exclusive")
        default = f"`nvidia-smi -i {gpu.index} -c DEFAULT` (as root) lets in more"
        used, total, share = gpu.memory_used or 0, gpu.memory_total or 0, gpu.utilisation or 0.0
        is_busy = used > max(BUSY_SHARE * total, BUSY_BYTES) or share >= BUSY_PERCENT
        holds = f"others hold {size(used)} of its {size(total)} and keep it {share:.0f} % busy"
        if gpu.compute_mode == "Prohibited":
            found = "its compute mode is Prohibited: nothing runs on it"
            yield Finding(name, "fail", found, f"{default}; {LEAVE_OUT}")
        elif is_exclusive and ranks > len(own):
            found = (
                f"its compute mode lets in one process, and {ranks} ranks share "
                f"{plural(len(own), 'GPU')}"
            )
            yield Finding(name, "fail", found, f"start {len(own)} (RANKS={len(own)}); {default}")
        elif is_exclusive and is_busy:
            found = f"its compute mode lets in one process, and {holds}"
            advice = f"nvidia-smi shows whose: end it or wait; {LEAVE_OUT}"
            yield Finding(name, "fail", found, advice)
        elif is_busy:
            advice = f"nvidia-smi shows whose: end it, wait, or go on more slowly; {LEAVE_OUT}"
            yield Finding(name, "warn", holds, advice)


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
