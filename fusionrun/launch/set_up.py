"""Installs what a checkout needs, first the torch that this machine's GPUs and driver can use.

launch.sh and tests/run.sh run it once, with a new environment's Python: nothing but Python's own
library is there yet. The words are pip's, for all that isn't torch.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from fusionrun.common.gpus import Gpu, has_device_files, read_gpus
from fusionrun.common.wheels import CPU, LOWEST, WHEELS, Wheel, choose_wheel, driver_number

PATIENCE = 30.0  # seconds; a sick driver can keep nvidia-smi for ever
# names that clusters give to GPUs which PyPI's torch has left
OLDER_GPUS = re.compile(
    r"v100|volta|titan|p100|p[46]0?\b|p[1-6]\d00|pascal|gtx|10[5-8]0|[mk][468]0|maxwell", re.I
)


def main(words: list[str]) -> int:
    """pip's exit status, 0 when all is there."""
    if kept := usable_torch():
        say(f"torch {kept} is there and stays")
    else:
        install_torch()
    return pip("install", *words)


def usable_torch() -> str:
    """The version that this environment has, with its torchvision; "" for none, or one too old."""
    try:
        torch, _ = version("torch"), version("torchvision")
    except PackageNotFoundError:
        return ""
    numbers = tuple(int(part) for part in re.findall(r"\d+", torch)[:2])
    return torch if numbers >= LOWEST else ""


def install_torch() -> None:
    """What suits the machine, from an index of its own; without one it is left to pip."""
    gpus = read_gpus(PATIENCE)
    wheel, why = choose(gpus)
    say(f"{why}: {in_words(wheel, gpus)}")
    if wheel.index:
        instead = f"instead {in_words(WHEELS[0], gpus)}"
        newest = newest_version(wheel)
        if newest is None:
            say(f"{wheel.index} isn't reached, or lacks this Python; {instead}")
        elif not install(newest, wheel):
            say(f"torch {newest} can't be used, see above; {instead}")


def choose(gpus: Sequence[Gpu]) -> tuple[Wheel, str]:
    """The packages for this machine, or for the cluster that it belongs to, and why."""
    if gpus:
        driver = gpus[0].driver
        names = Counter(gpu.name for gpu in gpus)
        found = ", ".join(f"{count} x {name}" for name, count in names.items())
        wheel = choose_wheel([gpu.capability for gpu in gpus], driver)
        return wheel, f"{found}, driver {driver or 'unknown'}"
    if has_device_files():
        return WHEELS[0], "a GPU of which nvidia-smi tells nothing"
    # set up where jobs are submitted, for nodes that have the GPUs
    if gres := cluster_gpus():
        older = next(wheel for wheel in WHEELS if wheel.label == "cu126")
        return older if OLDER_GPUS.search(gres) else WHEELS[0], f"Slurm has {gres}"
    return CPU, "no NVIDIA GPU"


def in_words(wheel: Wheel, gpus: Sequence[Gpu]) -> str:
    """Where its torch is from, how large it is, and which of `gpus` can't use it."""
    lacks = []
    if lost := sorted({gpu.name for gpu in gpus if not wheel.has_kernels_for(gpu.capability)}):
        lacks.append(f"has no kernels for {', '.join(lost)}")
    if gpus and driver_number(gpus[0].driver) < wheel.driver:
        lacks.append(f"needs driver {wheel.driver} or newer")
    words = f"torch from {wheel.index or 'PyPI'}, {'about 1 GB' if wheel == CPU else 'about 6 GB'}"
    return words + (f", which {' and '.join(lacks)}" if lacks else "")


def cluster_gpus() -> str:
    """What Slurm calls the GPUs of its nodes, such as gpu:v100:4; "" without Slurm or GPUs."""
    told = answer(["sinfo", "--noheader", "--format=%G"])
    return " ".join(sorted(set(re.findall(r"gpu[\w:.-]*", told))))


def install(newest: str, wheel: Wheel) -> bool:
    """torch and its torchvision from `wheel`'s index; False, and neither, when they don't work."""
    words = [f"torch=={newest}", "torchvision", "--index-url", wheel.index]
    # it doesn't import when it came from somewhere else
    look = [sys.executable, "-c", "import torchvision"]
    if pip("install", *words) == 0 and subprocess.call(look) == 0:
        return True
    pip("uninstall", "--yes", "torch", "torchvision")
    return False


def newest_version(wheel: Wheel) -> str | None:
    """torch's newest for this Python in `wheel`'s index, such as 2.14.1+cpu; None without answer.

    That index is asked alone, by the way that pip is told of: other indexes, which would hide that
    this one is silent, aren't.
    """
    pip_words = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    question = ["index", "versions", "torch", "--index-url", wheel.index]
    # a network that lets nothing through says nothing either
    limits = ["--retries", "0", "--timeout", "5"]
    way = re.findall(
        r"^global\.(proxy|cert|client-cert|trusted-host)='(.*)'$",
        answer([*pip_words, "config", "list"]),
        re.M,
    )
    environment = {
        **{f"PIP_{name.upper().replace('-', '_')}": value for name, value in way},
        **os.environ,
        "PIP_CONFIG_FILE": os.devnull,
    }
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        environment.pop(name, None)
    told = answer([*pip_words, *limits, *question], environment)
    found = re.findall(rf"\b(\d+)\.(\d+)\.(\d+)\+{wheel.label}\b", told)
    versions = [numbers for each in found if wheel.allows(numbers := tuple(map(int, each)))]
    return "{}.{}.{}+{}".format(*max(versions), wheel.label) if versions else None


def answer(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a command prints; "" where it can't run, or takes too long."""
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def pip(*words: str) -> int:
    return subprocess.call([sys.executable, "-m", "pip", "--disable-pip-version-check", *words])


def say(line: str) -> None:
    print(f"fusionrun: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
