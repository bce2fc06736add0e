"""The set-up of a new environment, with a pip that only writes down what it is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT

PIP = """
import os, sys
words = [each for each in sys.argv[1:] if each != "--disable-pip-version-check"]
if words == ["config", "list"]:
    print("global.extra-index-url='file:///x'", "global.proxy='http://there:1'", sep="\\n")
    sys.exit()
if "versions" in words:
    others = {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"} & set(os.environ)
    alone = os.environ["PIP_CONFIG_FILE"] == "/dev/null" and not others
    is_reached = alone and os.environ["PIP_PROXY"] == "http://there:1"
    print(os.environ["OFFERED"] if is_reached else "")
    sys.exit(not os.environ["OFFERED"])
with open(os.environ["LOG"], "a") as log:
    print(*words, file=log)
sys.exit("--index-url" in words and "PIP_BREAKS" in os.environ)
"""
CPUS = "torch (2.14.1+cpu)\nAvailable versions: 2.14.1+cpu, 2.13.0+cpu, 2.10.0+cpu"
CU126 = "torch (2.14.1+cu126)\nAvailable versions: 2.15.0+cu126, 2.14.1+cu126, 2.14.0+cu126"
URL = "https://download.pytorch.org/whl"


def set_up(folder: Path, tools: dict[str, str], **more: str) -> tuple[list[str], list[str]]:
    """What it said, and what pip was told, on a machine with these `tools`."""
    for name, answer in tools.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\ncat <<'X'\n{answer}\nX\n")
        path.chmod(0o755)
    (folder / "pip.py").write_text(PIP)
    (folder / "torchvision.py").write_text(more.pop("TORCHVISION", ""))
    log = folder / "log.txt"
    log.touch()
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "PYTHONPATH": f"{folder}:{ROOT}",
        "LOG": str(log),
        "OFFERED": "",
        "PIP_FIND_LINKS": "/somewhere",
        **more,
    }
    done = subprocess.run(
        # -S: without the packages of the tests' own Python
        [sys.executable, "-S", "-m", "fusionrun.launch.set_up", "-r", "requirements.txt"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    told = log.read_text().splitlines()
    assert told[-1] == "install -r requirements.txt"
    return done.stdout.splitlines(), told[:-1]


def smi(*cards: tuple[str, str], driver: str) -> dict[str, str]:
    """nvidia-smi that lists cards of (name, compute capability)."""
    rows = [
        f"{index}, GPU-{index}, {name}, {capability}, {driver}, 32768, 1, 0, 30, 40, 250, Default, "
        "[N/A], 0, 0x0"
        for index, (name, capability) in enumerate(cards)
    ]
    return {"nvidia-smi": "\n".join(rows)}


V100 = smi(*[("Tesla V100", "7.0")] * 4, driver="535.104.05")


def test_a_machine_without_a_gpu_gets_the_cpus_packages(tmp_path: Path) -> None:
    said, told = set_up(tmp_path, {}, OFFERED=CPUS)
    assert said == [f"fusionrun: no NVIDIA GPU: torch from {URL}/cpu, about 1 GB"]
    assert told == [f"install torch==2.14.1+cpu torchvision --index-url {URL}/cpu"]


def test_an_older_gpu_gets_the_last_packages_with_its_kernels(tmp_path: Path) -> None:
    said, told = set_up(tmp_path, V100, OFFERED=CU126)
    assert said == [
        f"fusionrun: 4 x Tesla V100, driver 535.104.05: torch from {URL}/cu126, about 6 GB"
    ]
    assert told == [f"install torch==2.14.1+cu126 torchvision --index-url {URL}/cu126"]


def test_todays_gpus_get_pypis(tmp_path: Path) -> None:
    said, told = set_up(tmp_path, smi(("NVIDIA H100", "9.0"), driver="580.65.06"))
    assert said == ["fusionrun: 1 x NVIDIA H100, driver 580.65.06: torch from PyPI, about 6 GB"]
    assert told == []


def test_a_gpu_that_no_torch_runs_on_is_named(tmp_path: Path) -> None:
    cards = [("Tesla K80", "3.7"), ("NVIDIA A100", "8.0"), ("NVIDIA A100", "8.0")]
    (line,), _ = set_up(tmp_path, smi(*cards, driver="580.65.06"))
    assert line.endswith("torch from PyPI, about 6 GB, which has no kernels for Tesla K80")
    line, instead = set_up(tmp_path, smi(("Tesla V100", "7.0"), driver="470.82"))[0]
    assert line.endswith("cu126, about 6 GB, which needs driver 525 or newer")
    assert instead.endswith("which has no kernels for Tesla V100 and needs driver 580 or newer")


def test_an_index_that_is_not_reached_is_said(tmp_path: Path) -> None:
    said, told = set_up(tmp_path, smi(("NVIDIA A100", "8.0"), driver="535.104.05"))
    assert said[1:] == [
        f"fusionrun: {URL}/cu126 isn't reached, or lacks this Python; instead torch from PyPI, "
        "about 6 GB, which needs driver 580 or newer"
    ]
    assert told == []


def test_a_torch_that_is_there_stays(tmp_path: Path) -> None:
    for name, version in [("torch", "2.13.0+cu126"), ("torchvision", "0.28.0+cu126")]:
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (tmp_path / f"{name}-{version}.dist-info/METADATA").write_text(metadata)
    said, told = set_up(tmp_path, {}, OFFERED=CPUS)  # as on a node without a GPU, or for the tests
    assert (said, told) == (["fusionrun: torch 2.13.0+cu126 is there and stays"], [])
    (tmp_path / "torch-2.13.0+cu126.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0+cu126\n"
    )
    assert set_up(tmp_path, {}, OFFERED=CPUS)[1][-1].startswith("install torch==2.14.1+cpu")


@pytest.mark.parametrize(
    "why", [{"PIP_BREAKS": "1"}, {"TORCHVISION": "raise RuntimeError('no torchvision::nms')"}]
)
def test_packages_that_do_not_work_are_taken_back(tmp_path: Path, why: dict[str, str]) -> None:
    said, told = set_up(tmp_path, {}, OFFERED=CPUS, **why)
    assert said[1:] == [
        "fusionrun: torch 2.14.1+cpu can't be used, see above; instead torch from PyPI, about 6 GB"
    ]
    assert told[1:] == ["uninstall --yes torch torchvision"]


@pytest.mark.parametrize(
    ("gres", "where"),
    [
        ("gpu:v100:4(S:0-1)", f"{URL}/cu126"),
        ("gpu:tesla_p100:2", f"{URL}/cu126"),
        ("gpu:1080ti:8\ngpu:2080ti:8", f"{URL}/cu126"),
        ("gpu:quadro_p6000:2", f"{URL}/cu126"),
        ("(null)\ngpu:a100:8\ngpu:h100:4", "PyPI"),
        ("gpu:4", "PyPI"),
        ("gpu:nvidia_a40:4", "PyPI"),
        ("gpu:2080ti:4,gpu:rtx6000:4,gpu:a100_1g.10gb:7", "PyPI"),
        ("(null)", f"{URL}/cpu"),
    ],
)
def test_where_jobs_are_submitted_the_nodes_gpus_count(
    tmp_path: Path, gres: str, where: str
) -> None:
    said, _ = set_up(tmp_path, {"sinfo": gres})
    assert f": torch from {where}, " in said[0]
    assert ("Slurm has gpu" in said[0]) == ("gpu" in gres)
