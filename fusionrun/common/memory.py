"""Memory of this process and of its device, in bytes; None where the system doesn't tell."""

import contextlib
import ctypes
import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> float | None:
    """The most since `reset_peak`: what this process held of its GPU, or of a CPU's memory.

    Of a GPU what torch reserved, which nobody else can use; tensors fill 85 to 95 % of it.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    return _kernel_bytes("/proc/self/status", "VmHWM")


def reset_peak(device: torch.device) -> float | None:
    """Give back what isn't used and measure the peak from here on; returns the bytes held."""
    give_back(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_reserved(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_memory(device)


def give_back(device: torch.device) -> None:
    """Let others have what no tensor needs any more, on the device and the host."""
    gc.collect()  # a traceback or a hook may hold tensors in a circle
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError):  # only glibc has it, and needs it
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Have this process use again what its tensors leave, until it's given back.

    Else glibc returns it and asks for it anew, and the system sets each page to zero: on a CPU that
    is 4 % of a ResNet row's step.
    """
    with contextlib.suppress(AttributeError):  # only glibc has it
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        # without the one the other would fix it at 128 KiB, from where on all is returned
        if libc.mallopt(m_mmap_threshold, 2**30):
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def total_memory(device: torch.device) -> float | None:
    """What a GPU, or a slice of one, has; None of a CPU, whose memory isn't its own."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory)


def held_by_others(device: torch.device) -> float:
    """What other processes have of a GPU, their contexts and this one's included; 0 of a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return float(max(0, total - free - torch.cuda.memory_reserved(device)))


def free_memory(device: torch.device) -> float | None:
    """What tasks on a device of this kind can have, once this process is gone; the least GPU's.

    Of a CPU what the machine has free, and less where the container, the batch system's control
    group or `ulimit -v` allows this process less.
    """
    if device.type == "cuda":
        count = torch.cuda.device_count()
        return float(
            min(torch.cuda.mem_get_info(i)[0] + torch.cuda.memory_reserved(i) for i in range(count))
        )
    return free_host_memory()


def free_host_memory() -> float | None:
    """As `free_memory` of a CPU, without torch having to look for GPUs."""
    limits = [_kernel_bytes("/proc/meminfo", "MemAvailable"), *_free_in_containers()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _kernel_bytes("/proc/self/status", "VmSize")
    if soft != resource.RLIM_INFINITY and used is not None:
        limits.append(soft - used)
    known = [limit for limit in limits if limit is not None]
    return max(0.0, min(known)) if known else None


def _free_in_containers() -> Iterator[float]:
    """What each control group above this process has left; cached files make room when asked."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    root = Path("/sys/fs/cgroup")
    for group in groups:  # hierarchy:controllers:path, of version 2 without controllers
        _, controllers, path = group.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = root, ("memory.max", "memory.current", "")
        if controllers:
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        folder = top / path.strip("/")
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
                limit, used = (int((place / name).read_text()) for name in names[:2])
                rows = dict(row.split() for row in (place / "memory.stat").read_text().splitlines())
                files = sum(int(rows[f"{names[2]}{age}_file"]) for age in ("active", "inactive"))
                yield float(limit - used + files)
            if place == top:
                break


def _kernel_bytes(file: str, name: str) -> float | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:  # no Linux
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024.0 * float(kibibytes[0]) if kibibytes else None
