"""What NVIDIA's own tool says about this machine's GPUs, without torch and without waiting long."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20
DEVICE_FILES = Path("/dev")
# what the query asks for, in its order: {field: the name that other drivers have for it}
_FIELDS = {
    "index": "",
    "uuid": "",
    "name": "",
    "compute_cap": "",
    "driver_version": "",
    "memory.total": "",
    "memory.used": "",
    "utilization.gpu": "",
    "temperature.gpu": "",
    "power.draw": "",
    "power.limit": "",
    "compute_mode": "",
    "mig.mode.current": "",
    "ecc.errors.uncorrected.volatile.total": "",
    "clocks_throttle_reasons.active": "clocks_event_reasons.active",
}
# bits of the last one; idle clocks and the power limit, which a busy GPU lives at, are no trouble
_THROTTLES = (
    (0x60, "it is too hot"),
    (0x80, "its power supply brakes it"),
    (0x08, "its hardware slows it"),
)


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; None: not told."""

    index: int  # as nvidia-smi counts, whatever CUDA_VISIBLE_DEVICES says
    uuid: str  # GPU-5f2a...
    name: str
    capability: tuple[int, int] | None
    driver: str  # "" where it isn't told, as of the next words
    memory_total: int | None  # bytes
    memory_used: int | None  # by all processes
    utilisation: float | None  # percent of the time that some kernel ran
    temperature: float | None  # degrees Celsius
    power: float | None  # watts
    power_limit: float | None
    compute_mode: str  # Default, Exclusive_Process, Prohibited
    mig: bool  # divided into slices
    ecc_errors: int | None  # uncorrected ones since the driver was loaded
    throttle: str  # why it's slower than it could be, where that is trouble


def read_gpus(timeout: float) -> tuple[Gpu, ...]:
    """The machine's GPUs; () where nvidia-smi is missing, fails or takes longer than `timeout` s.

    One query. A driver that doesn't know one of its fields refuses them all and names that one: it
    is asked again without, and what wasn't asked is None.
    """
    fields, end = dict(_FIELDS), time.monotonic() + timeout
    while fields:
        told = _ask(fields, end - time.monotonic())
        unknown = re.search(r'Field "(.+?)" is not a valid field', told)
        if not unknown:
            rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines()]
            known = [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
            return tuple(_gpu(row) for row in known if row["index"].isdecimal())
        if unknown[1] not in fields:
            break
        other = fields[unknown[1]]
        fields = {other if name == unknown[1] else name: fields[name] for name in fields}
        fields.pop("", None)
    return ()


def has_device_files() -> bool:
    """Whether the system has an NVIDIA GPU, be nvidia-smi there or not.

    A container may have been given the third alone.
    """
    return any(DEVICE_FILES.glob("nvidia[0-9]*"))


def of_device(gpus: Sequence[Gpu], device: "torch.device") -> Gpu | None:
    """Which of `gpus` torch calls `device`; None for a CPU, and where it can't be told."""
    if device.type != "cuda":
        return None
    import torch

    return of_uuid(gpus, str(torch.cuda.get_device_properties(device).uuid))


def of_uuid(gpus: Sequence[Gpu], uuid: str) -> Gpu | None:
    """Which of `gpus` has the `uuid` as torch writes it, without a prefix.

    A slice of a divided GPU has one of its own: it belongs to the machine's only GPU, or to one
    that nobody can tell.
    """
    for gpu in gpus:
        if gpu.uuid.lower().removeprefix("gpu-") == uuid.lower():
            return gpu
    return gpus[0] if len(gpus) == 1 and gpus[0].mig else None


def _ask(fields: Mapping[str, str], timeout: float) -> str:
    """nvidia-smi's answer, "" for none. Never waits longer, even for one that can't be killed."""
    command = [
        "nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C isn't its business
            # launch.sh takes whoever has this for a rank, and would wait for it
            env={k: v for k, v in os.environ.items() if k != "FUSIONRUN_EXIT_FILE"},
        )
    except OSError:
        return ""
    try:
        return process.communicate(timeout=max(timeout, 0.0))[0]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # one that waits in a sick driver dies when that lets it go
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        return ""
    finally:
        if process.stdout:
            process.stdout.close()


def _gpu(row: Mapping[str, str]) -> Gpu:
    """A GPU from {field: its cell}; "[N/A]" and its like are no number."""

    def number(field: str) -> float | None:
        try:
            return float(row.get(field, ""))
        except ValueError:
            return None

    def scaled(field: str, unit: int) -> int | None:
        value = number(field)
        return None if value is None else round(value * unit)

    def word(field: str) -> str:
        cell = row.get(field, "")
        return "" if cell.startswith("[") or cell == "N/A" else cell

    capability = re.fullmatch(r"(\d+)\.(\d+)", row.get("compute_cap", ""))
    reasons = next((row[name] for name in row if name.endswith("_reasons.active")), "")
    bits = int(reasons, 16) if re.fullmatch(r"0x[0-9A-Fa-f]+", reasons) else 0
    return Gpu(
        index=int(row["index"]),
        uuid=row["uuid"],
        name=word("name"),
        capability=(int(capability[1]), int(capability[2])) if capability else None,
        driver=word("driver_version"),
        memory_total=scaled("memory.total", MIB),
        memory_used=scaled("memory.used", MIB),
        utilisation=number("utilization.gpu"),
        temperature=number("temperature.gpu"),
        power=number("power.draw"),
        power_limit=number("power.limit"),
        compute_mode=word("compute_mode"),
        mig=row.get("mig.mode.current") == "Enabled",
        ecc_errors=scaled("ecc.errors.uncorrected.volatile.total", 1),
        throttle=next((why for mask, why in _THROTTLES if bits & mask), ""),
    )
