"""Memory of this process and of its device, in bytes; None where the system doesn't tell."""

import contextlib
import ctypes
import gc
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> float | None:
    """The most so far: allocated by this process on its GPU, or its resident memory on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _kernel_bytes("/proc/self/status", "VmHWM")


def reset_peak(device: torch.device) -> float | None:
    """Give back what isn't used and measure the peak from here on; returns the bytes in use."""
    with contextlib.suppress(AttributeError):  # only glibc has it, and needs it
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_memory(device)


def free_memory(device: torch.device) -> float | None:
    """What tasks on a device of this kind can have, once this process is gone; the least GPU's."""
    if device.type == "cuda":
        count = torch.cuda.device_count()
        return float(
            min(torch.cuda.mem_get_info(i)[0] + torch.cuda.memory_reserved(i) for i in range(count))
        )
    return _kernel_bytes("/proc/meminfo", "MemAvailable")


def _kernel_bytes(file: str, name: str) -> float | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:  # no Linux
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024.0 * float(kibibytes[0]) if kibibytes else None
