"""GPUs as torch and nvidia-smi tell of them, without one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionrun.common.gpus import Gpu
from fusionrun.launch.checks import machine
from fusionrun.launch.checks.data import DataChecks
from fusionrun.launch.checks.finding import Finding
from tests.unit.doctor.one_row import own_folders as own_folders
from tests.unit.doctor.one_row import plan, see_gpus

GIB = 2**30


def gpu(index: int = 0, **fields: Any) -> Gpu:
    """A free H100, but for `fields`."""
    free: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "H100",
        "capability": (9, 0),
        "driver": "580.65.06",
        "memory_total": 80 * GIB,
        "memory_used": 0,
        "utilisation": 0.0,
        "temperature": 30.0,
        "power": 70.0,
        "power_limit": 700.0,
        "compute_mode": "Default",
        "mig": False,
        "ecc_errors": 0,
        "throttle": "",
    }
    return Gpu(**{**free, **fields})


def look(
    monkeypatch: pytest.MonkeyPatch,
    *gpus: Gpu,
    seen: int | None = None,
    ranks: int = 1,
    device: str = "auto",
    amp: str = "auto",
) -> list[Finding]:
    """What is found where nvidia-smi lists `gpus` and torch, built for CUDA 13, sees `seen`."""
    see_gpus(monkeypatch, len(gpus) if seen is None else seen)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: gpus[i].name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i].capability)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=str(i.index))
    )
    monkeypatch.setattr(machine, "read_gpus", lambda timeout: gpus)
    return list(machine.check_device(plan(f"runtime.device={device}", f"runtime.amp={amp}"), ranks))


@pytest.mark.parametrize(
    ("ranks", "found"),
    [(1, "2 x H100; 1 stays idle"), (2, "2 x H100"), (3, "2 x H100; 3 ranks share them")],
)
def test_ranks_for_gpus(monkeypatch: pytest.MonkeyPatch, ranks: int, found: str) -> None:
    (finding,) = look(monkeypatch, gpu(0), gpu(1), ranks=ranks)
    assert (finding.state, finding.found) == ("pass", found)


def test_alike_gpus_without_kernels_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    v100 = [gpu(index, capability=(7, 0)) for index in range(4)]
    (finding,) = look(monkeypatch, *v100, ranks=4)
    assert finding.state == "fail" and "7.0" in finding.found
    assert "'torch>=2.11,<2.15'" in finding.advice and "--force-reinstall" in finding.advice
    assert "leaves it out" not in finding.advice  # nothing would be left


def test_what_no_torch_runs_on_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = look(monkeypatch, gpu(0, capability=(3, 5)), gpu(1), gpu(2))
    assert finding.state == "fail" and "CUDA_VISIBLE_DEVICES=1,2 leaves it out" in finding.advice
    assert "pip install" not in finding.advice and "any more" in finding.advice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3,4")
    (finding,) = look(monkeypatch, gpu(0, capability=(3, 5)), gpu(1), gpu(2))
    assert "CUDA_VISIBLE_DEVICES=3,4 leaves it out" in finding.advice
    (finding,) = look(monkeypatch, gpu(capability=(15, 0)))
    assert "install a newer torch" in finding.advice


@pytest.mark.parametrize(("seen", "device"), [(1, "auto"), (0, "auto"), (0, "cuda")])
def test_a_driver_older_than_torchs_cuda(
    monkeypatch: pytest.MonkeyPatch, seen: int, device: str
) -> None:
    def name(index: int) -> str:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).")

    see_gpus(monkeypatch, seen)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for driver, advice in [("535.104", "whl/cu126"), ("470.82", "update the driver; runtime")]:
        card = gpu(driver=driver, capability=(7, 0))
        monkeypatch.setattr(machine, "read_gpus", lambda timeout, card=card: (card,))
        (finding,) = machine.check_device(plan(f"runtime.device={device}"), 1)
        assert finding.state == "fail" and advice in finding.advice
        assert f"driver {driver} is too old" in finding.found and "CUDA 13" in finding.found
        assert "580" in finding.found


def test_a_sick_driver_is_not_called_old(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 1)

    def name(index: int) -> str:
        raise RuntimeError(
            "CUDA driver initialization failed: Error 802: system not yet initialized"
        )

    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    monkeypatch.setattr(machine, "read_gpus", lambda timeout: (gpu(driver="999.1"),))
    (finding,) = machine.check_device(plan("runtime.device=auto"), 1)
    assert finding.state == "fail" and "Error 802" in finding.found
    assert "update" not in finding.advice and "nvidia-smi" in finding.advice


def test_gpus_that_a_torch_for_the_cpu_would_leave_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    cards = tuple(gpu(index, name="Tesla V100", capability=(7, 0)) for index in range(4))
    monkeypatch.setattr(machine, "read_gpus", lambda timeout: cards)
    (finding,) = machine.check_device(plan("runtime.device=auto"), 4)
    assert finding.state == "fail" and "4 x Tesla V100" in finding.found
    assert "whl/cu126" in finding.advice and "runtime.device=cpu" in finding.advice
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        (finding,) = machine.check_device(plan("runtime.device=auto"), 4)
        assert finding.state == "pass" and "hides" in finding.found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine, "read_gpus", lambda timeout: (gpu(capability=(3, 5)),))
    (finding,) = machine.check_device(plan("runtime.device=auto"), 4)
    assert finding.state == "pass"  # a screen's, for which there is no torch


def test_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # "-1" hides them, 1 doesn't
    (finding,) = look(monkeypatch, gpu(0), seen=0)
    assert finding.state == "fail" and "CUDA_VISIBLE_DEVICES (1)" in finding.advice
    (finding,) = look(monkeypatch, gpu(0, mig=True), seen=0)
    assert finding.state == "fail" and "MIG is on" in finding.found
    (finding,) = look(monkeypatch, gpu(0, compute_mode="Prohibited"), seen=0)
    assert finding.state == "fail" and "compute mode is Prohibited" in finding.found


@pytest.mark.parametrize(
    ("card", "ranks", "states", "words"),
    [
        (gpu(memory_used=30 * GIB), 1, ["pass", "warn"], "30.0 GiB of its 80.0 GiB"),
        (gpu(memory_used=2 * GIB, memory_total=4 * GIB), 1, ["pass", "warn"], "2.0 GiB of its 4"),
        (gpu(memory_used=GIB // 2, memory_total=4 * GIB), 1, ["pass"], ""),  # a desktop
        (gpu(memory_used=GIB // 2, utilisation=99.0), 1, ["pass", "warn"], "99 % busy"),
        (gpu(memory_used=None, memory_total=None, utilisation=None), 1, ["pass"], ""),
        (gpu(compute_mode="Exclusive_Process"), 1, ["pass"], ""),
        (gpu(compute_mode="Exclusive_Process"), 2, ["pass", "fail"], "RANKS=1"),
        (
            gpu(compute_mode="Exclusive_Process", memory_used=30 * GIB),
            1,
            ["pass", "fail"],
            "lets in one process",
        ),
        (gpu(compute_mode="Prohibited"), 1, ["pass", "fail"], "-i 0 -c DEFAULT"),
        (gpu(mig=True, memory_used=30 * GIB), 1, ["pass"], ""),  # by whom of its slices?
    ],
)
def test_gpus_that_others_use_or_that_take_one_process(
    monkeypatch: pytest.MonkeyPatch, card: Gpu, ranks: int, states: list[str], words: str
) -> None:
    findings = look(monkeypatch, card, ranks=ranks)
    assert [finding.state for finding in findings] == states
    assert words in findings[-1].line


def test_a_gpu_that_lets_torch_not_in_is_told_by_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(index: int) -> str:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    see_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    taken = gpu(compute_mode="Exclusive_Process", memory_used=30 * GIB)
    for card, words in [
        (taken, "lets in one process"),
        (gpu(compute_mode="Prohibited"), "nothing"),
    ]:
        monkeypatch.setattr(machine, "read_gpus", lambda timeout, card=card: (card, gpu(1)))
        (finding,) = machine.check_device(plan("runtime.device=auto"), 1)
        assert finding.state == "fail" and words in finding.found


def test_a_busy_gpu_that_this_launch_does_not_use_is_none_of_its_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = look(monkeypatch, gpu(0), gpu(1, memory_used=70 * GIB), seen=1)
    assert [finding.state for finding in findings] == ["pass"]


def test_bfloat16_that_a_gpu_only_emulates_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [gpu(0), gpu(1, name="T4", capability=(7, 5)), gpu(2, name="T4", capability=(7, 5))]
    _, warned = look(monkeypatch, *cards, ranks=3, amp="bf16")
    assert warned.state == "warn" and warned.found.startswith("T4 only emulates bfloat16")
    assert "runtime.amp=auto" in warned.advice
    for amp in ("auto", "fp16", "off"):
        assert len(look(monkeypatch, *cards, ranks=3, amp=amp)) == 1


def test_slices_of_a_divided_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A100 MIG 3g.20gb")
    monkeypatch.setattr(machine, "read_gpus", lambda timeout: ())
    named, shared = machine.check_device(plan("runtime.device=auto"), 2)
    assert named.state == "pass" and shared.state == "warn"
    assert "all 2 ranks get the same" in shared.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    (finding,) = machine.check_device(plan("runtime.device=auto"), 2)
    assert (finding.state, finding.found) == ("pass", "2 x A100 MIG 3g.20gb")
    (finding,) = machine.check_device(plan("runtime.device=auto"), 4)
    assert finding.found.endswith("; 4 ranks share them")


def test_nothing_is_asked_where_the_cpu_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(timeout: float) -> tuple[Gpu, ...]:
        raise AssertionError("a sick driver would keep it waiting")

    monkeypatch.setattr(machine, "read_gpus", ask)
    (finding,) = machine.check_device(plan("runtime.device=cpu"), 2)
    assert (finding.state, finding.found) == ("pass", "CPU")


def test_the_images_of_all_ranks_that_share_a_gpu_or_slice_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = DataChecks(plan())
    assert [finding.state for finding in checks.look()] == ["pass"]
    each = (checks.survey.train_bytes or 0) + (checks.survey.test_bytes or 0)
    room = SimpleNamespace(total_memory=2 * each)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: room)
    (finding,) = checks.memory(4, 1)
    assert finding.state == "fail" and "4 ranks put" in finding.found
    assert not list(checks.memory(4, 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    assert not list(checks.memory(4, 1))  # torch sees the first of them
