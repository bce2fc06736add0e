"""Which of torch's packages a machine's GPUs and driver can use; nothing of torch is imported."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

Capability = tuple[int, int]  # (7, 0) of a V100
INDEX = "https://download.pytorch.org/whl"
LOWEST = (2, 11)  # of torch, as in requirements.txt


@dataclass(frozen=True)
class Wheel:
    """Packages of torch and torchvision that are built alike; mixed ones don't import."""

    label: str  # 2.14.1+cu126 is of cu126; "" of PyPI's own
    driver: int  # the oldest that they run on: the first number of its version
    built_for: tuple[str, ...] = ()  # as torch.cuda.get_arch_list() has it
    below: tuple[int, int] | None = None  # the first torch without such a package

    @property
    def index(self) -> str:
        """Where they are; "" for PyPI."""
        return f"{INDEX}/{self.label}" if self.label else ""

    @property
    def torch(self) -> str:
        """pip's words for its torch, of those that requirements.txt allows."""
        limit = f",<{self.below[0]}.{self.below[1]}" if self.below else ""
        return f"torch>={LOWEST[0]}.{LOWEST[1]}{limit}"

    def allows(self, version: tuple[int, ...]) -> bool:
        """Whether a torch of that version is one of them."""
        return version >= LOWEST and (self.below is None or version < self.below)

    def runs_on(self, capability: Capability | None, driver: str) -> bool:
        """Whether such a GPU with such a driver can use them; what isn't known is no obstacle."""
        return self.has_kernels_for(capability) and driver_number(driver) >= self.driver

    def has_kernels_for(self, capability: Capability | None) -> bool:
        return capability is None or has_kernels(capability, self.built_for)


# The oldest driver for each CUDA, whose minor versions all run on it (NVIDIA's CUDA Compatibility).
DRIVERS = {12: 525, 13: 580}
TURING_TO_BLACKWELL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
MAXWELL_TO_HOPPER = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
# In the order of preference, from PyTorch's tables of releases and architectures (pytorch issues
# 172663, 178665, 190385): CUDA 13 has left the GPUs before Turing, torch 2.15 CUDA 12.6.
WHEELS = (
    Wheel("", DRIVERS[13], TURING_TO_BLACKWELL),
    Wheel("cu126", DRIVERS[12], MAXWELL_TO_HOPPER, below=(2, 15)),
    Wheel("cu128", DRIVERS[12], TURING_TO_BLACKWELL, below=(2, 12)),
)
CPU = Wheel("cpu", 0)


def choose_wheel(capabilities: Sequence[Capability | None], driver: str) -> Wheel:
    """What most of a machine's GPUs can use; CPU where there are none, or all are too old.

    `driver` is the machine's, "" if unknown. One that is too old for all of torch is taken for one
    that will be updated.
    """
    for known in (driver, ""):
        counts = [sum(wheel.runs_on(each, known) for each in capabilities) for wheel in WHEELS]
        if max(counts):
            return WHEELS[counts.index(max(counts))]
    # newer ones than were known here: PyPI's torch may know them by now
    return WHEELS[0] if any(each and each > (7, 5) for each in capabilities) else CPU


def installed_wheel() -> Wheel:
    """Of which build this Python's torch is."""
    label = version("torch").partition("+")[2]
    return Wheel(label, 0) if re.fullmatch(r"cpu|cu\d+", label) else WHEELS[0]


def pip_line(wheel: Wheel) -> str:
    """The command that puts `wheel` in the place of this Python's torch.

    To pip 2.14.1 is what 2.14.1+cu126 is: it must be told to install it all the same.
    """
    words = ["-m", "pip", "install", "--force-reinstall", wheel.torch, "torchvision"]
    return shlex.join(
        [sys.executable, *words, *(["--index-url", wheel.index] if wheel.index else [])]
    )


def driver_number(driver: str) -> float:
    """580.65 of driver 580.65.06; infinite where it isn't told."""
    found = re.match(r"\d+(\.\d+)?", driver)
    return float(found[0]) if found else float("inf")


def has_kernels(capability: Capability, built_for: Iterable[str]) -> bool:
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
