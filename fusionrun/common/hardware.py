"""What numbers were computed with, for those who compare them with others."""

from collections.abc import Mapping
from typing import Any

import torch

from fusionrun.common.gpus import of_device, read_gpus

ASK_SECONDS = 5.0  # for nvidia-smi's answer


def hardware(device: torch.device, precision: str, *, tf32: bool) -> dict[str, Any]:
    """For records: what computes on `device`, and in which precision.

    The driver is None where nvidia-smi doesn't tell it in time.
    """
    about: dict[str, Any] = {"gpu": None, "precision": precision, "torch": str(torch.__version__)}
    if device.type == "cuda":
        gpu = of_device(read_gpus(ASK_SECONDS), device)
        about |= {
            "gpu": torch.cuda.get_device_name(device),
            "tf32": tf32,
            "driver": gpu.driver if gpu else None,
            "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return about


def computes_on(about: Mapping[str, Any]) -> str:
    """In words: an NVIDIA H100 in bf16; "" of a record that older versions made."""
    if "precision" not in about:
        return ""
    return f"{about['gpu'] or 'a CPU'} in {about['precision']}"
