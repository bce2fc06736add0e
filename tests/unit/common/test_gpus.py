"""What nvidia-smi says is read as it is; one that is old, sick or missing is nobody's trouble."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionrun.common.gpus import MIB, Gpu, has_device_files, of_device, read_gpus

H100 = (
    "0, GPU-5f2a0000-aaaa, NVIDIA H100 80GB HBM3, 9.0, 580.159.03, 81559, 1234, 98, 61, 512.34, "
    "700.00, Default, Disabled, 0, 0x0000000000000004"
)
V100 = (
    "1, GPU-77000000-bbbb, Tesla V100-SXM2-32GB, 7.0, 535.183.01, 32768, 0, 0, 34, 41.20, 300.00, "
    "Exclusive_Process, [N/A], 2, 0x0000000000000060"
)
WSL = (  # most of it isn't told under Windows, nor on unified memory
    "0, GPU-11000000-cccc, NVIDIA GeForce RTX 3090, 8.6, 551.23, [N/A], [N/A], [Not Supported], "
    "[Unknown Error], [N/A], [Requested functionality has been deprecated], [N/A], [N/A], N/A, "
    "[N/A]"
)
SLICED = H100.replace("Disabled", "Enabled").replace(" 98,", " [N/A],")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi of one's own; what a test writes into it is what it does."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tool


def does(tool: Path, script: str) -> None:
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def prints(tool: Path, *lines: str, status: int = 0) -> None:
    does(tool, "".join(f"echo '{line}'\n" for line in lines) + f"exit {status}")


def test_a_machine_of_two_gpus(nvidia_smi: Path) -> None:
    prints(nvidia_smi, H100, V100)
    h100, v100 = read_gpus(5)
    assert h100 == Gpu(
        index=0,
        uuid="GPU-5f2a0000-aaaa",
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        driver="580.159.03",
        memory_total=81559 * MIB,
        memory_used=1234 * MIB,
        utilisation=98.0,
        temperature=61.0,
        power=512.34,
        power_limit=700.0,
        compute_mode="Default",
        mig=False,
        ecc_errors=0,
        throttle="",  # it lives at its power limit
    )
    assert v100.capability == (7, 0) and v100.compute_mode == "Exclusive_Process"
    assert v100.ecc_errors == 2 and not v100.mig and v100.throttle == "it is too hot"


def test_what_is_not_told_is_none(nvidia_smi: Path) -> None:
    prints(nvidia_smi, WSL)
    (gpu,) = read_gpus(5)
    assert gpu.name == "NVIDIA GeForce RTX 3090" and gpu.capability == (8, 6)
    told = (gpu.memory_total, gpu.memory_used, gpu.utilisation, gpu.temperature)
    assert {*told, gpu.power, gpu.power_limit, gpu.ecc_errors} == {None}
    assert gpu.compute_mode == "" and gpu.throttle == "" and not gpu.mig


def test_an_older_driver_is_asked_for_what_it_knows(nvidia_smi: Path) -> None:
    """Its answer to a field that it lacks is that field's name, and nothing else."""
    does(
        nvidia_smi,
        """
        case "$1" in
          *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2 ;;
          *mig*) echo 'Field "mig.mode.current" is not a valid field to query.' >&2; exit 2 ;;
          *throttle*) echo 'Field "clocks_throttle_reasons.active" is not a valid field to query.'
            exit 2 ;;
          *clocks_event_reasons.active*)
            echo '0, GPU-1, Tesla V100, 418.87, 16160, 5, 1, 30, 40, 300, Default, 0, 0x80' ;;
        esac""",
    )
    (gpu,) = read_gpus(5)
    assert (gpu.name, gpu.capability, gpu.driver) == ("Tesla V100", None, "418.87")
    assert gpu.memory_total == 16160 * MIB and gpu.throttle == "its power supply brakes it"


@pytest.mark.parametrize(
    "lines",
    [
        ["No devices were found"],
        ["NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."],
        ["Failed to initialize NVML: Driver/library version mismatch"],
        ['Field "index" is not a valid field to query.'],
        ['Field "nonsense" is not a valid field to query.'],
        ["index, uuid, a, b, c, d, e, f, g, h, i, j, k, l, m"],
        [],
    ],
)
def test_one_that_fails_tells_of_no_gpu(nvidia_smi: Path, lines: list[str]) -> None:
    prints(nvidia_smi, *(line.replace("'", "") for line in lines), status=9)
    assert read_gpus(5) == ()


def test_none_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvidia_smi: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus(5) == ()
    nvidia_smi.write_text("no program")
    nvidia_smi.chmod(0o755)
    assert read_gpus(5) == ()


def test_a_gpu_that_fell_off_the_bus_hides_no_other(nvidia_smi: Path) -> None:
    lost = "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.  Reboot"
    prints(nvidia_smi, lost, V100, status=15)
    assert [gpu.index for gpu in read_gpus(5)] == [1]


def test_one_that_hangs_is_left_behind_with_all_it_started(nvidia_smi: Path) -> None:
    pid = nvidia_smi.with_name("pid")
    does(nvidia_smi, f"sleep 600 & echo $! >{pid}; wait")
    started = time.monotonic()
    assert read_gpus(0.5) == ()
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 20
    while (status := Path("/proc", pid.read_text().strip(), "stat")).exists():
        if status.read_text().rpartition(")")[2].split()[0] == "Z":  # nobody reaps it here
            break
        assert time.monotonic() < deadline, "it sleeps on"
        time.sleep(0.05)


def test_torchs_devices_are_told_by_their_uuid(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA_VISIBLE_DEVICES turns the order round, and torch leaves the prefix out."""
    prints(nvidia_smi, H100, V100)
    gpus = read_gpus(5)
    uuids = {0: "77000000-bbbb", 1: "5f2a0000-aaaa", 2: "99-dddd"}

    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=uuids[device.index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = [of_device(gpus, torch.device("cuda", i)) for i in range(3)]
    assert [gpu and gpu.index for gpu in found] == [1, 0, None]
    assert of_device(gpus, torch.device("cpu")) is None
    prints(nvidia_smi, SLICED)
    (divided,) = read_gpus(5)
    assert divided.mig and divided.utilisation is None
    assert of_device([divided], torch.device("cuda", 2)) is divided
    assert of_device([divided, *gpus], torch.device("cuda", 2)) is None
    assert of_device((), torch.device("cuda", 2)) is None


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys, fusionrun.common.gpus as g; g.read_gpus(1); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_device_files_tell_of_gpus_where_the_tool_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrun.common.gpus.DEVICE_FILES", tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_device_files()
    (tmp_path / "nvidia3").touch()  # a container's only one
    assert has_device_files()
