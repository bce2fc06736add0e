"""The numbers that a model computes with: which ones a device gets, and how they are asked for."""

from dataclasses import dataclass
from typing import Literal

import torch

Amp = Literal["auto", "bf16", "fp16", "off"]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """What convolutions and matrix products compute in; weights and their updates are float32."""

    name: Literal["fp32", "tf32", "bf16", "fp16"]  # as people call it

    @property
    def is_half(self) -> bool:
        return self.name in HALVES

    @property
    def is_scaled(self) -> bool:
        """Whether losses are scaled, so that small gradients don't become 0 (training/guard.py)."""
        return self.name == "fp16"

    def autocast(self, device: torch.device) -> torch.autocast:
        """In here a model's forward pass on `device` computes so."""
        half = HALVES.get(self.name)
        return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)

    @classmethod
    def of(cls, amp: Amp, tf32: bool, device: torch.device) -> "Precision":
        """What `runtime.amp` and `runtime.tf32` mean on `device`.

        auto is bfloat16 where the GPU computes in it (one that emulates it, as a V100 or T4, is
        slower than in float32), float16 on other GPUs, and float32 on a CPU.
        """
        if amp in ("bf16", "fp16"):
            return cls(amp)
        if device.type != "cuda":
            return cls("fp32")
        # torch's is_bf16_supported asks the current GPU, which may be of another kind
        is_amd = torch.version.hip is not None
        has_both = not is_amd and torch.cuda.get_device_capability(device) >= (8, 0)
        if amp == "auto":
            return cls("bf16" if has_both or is_amd else "fp16")
        return cls("tf32" if tf32 and has_both else "fp32")


FP32 = Precision("fp32")


def keep_casts(device: torch.device) -> torch.autocast:
    """In here weights are cast once: what `Precision.autocast` made of them stays to its end.

    For passes that change no weights. It casts nothing by itself.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=False)
