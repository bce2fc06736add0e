"""Devices: what passes, and what doesn't."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from fusionrun.doctor import devices
from fusionrun.study.runtime import RuntimeConfig
from fusionrun.training.precision import Precision
from tests.cards import H100
from tests.unit.doctor.one_row import CPU, states

CUDA = torch.device("cuda", 0)
AUTO = RuntimeConfig()
WELL = replace(H100, index=3, name="NVIDIA H100")


def test_a_cpu_computes() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    (finding,) = devices.check_compute([CPU], AUTO)
    assert finding.state == "pass"
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_what_a_study_computes_in_is_compared_too(
    half: Literal["bf16", "fp16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = RuntimeConfig(amp=half)
    (finding,) = devices.check_compute([CPU], runtime)
    assert finding.state == "pass" and "in fp32, right to 0.00" in finding.found
    assert finding.found.endswith(f"in {half}, the same 5 times")
    right = devices.compute

    def without_tensor_cores(device: torch.device, *more: Any) -> torch.Tensor:
        return right(device, *more) * (1.1 if more[-1].name == half else 1)

    monkeypatch.setattr(devices, "compute", without_tensor_cores)
    (finding,) = devices.check_compute([CPU], runtime)
    assert finding.state == "fail" and finding.found.startswith(f"wrong results in {half}")


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("wrong", "wrong results"),
        ("nan", "wrong results"),
        ("moody", "other results"),
        ("dead", "broke: illegal memory access and more"),
        ("silent", "broke: RuntimeError()"),
    ],
)
def test_a_broken_device_fails(fault: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def compute(device: torch.device, dtype: torch.dtype, precision: Precision) -> torch.Tensor:
        calls.append(dtype)
        result = torch.ones(8, dtype=torch.float64)
        if dtype == torch.float64:
            return result
        if fault in ("dead", "silent"):
            raise RuntimeError(*(["illegal memory access\nand more"] if fault == "dead" else []))
        factors = {"wrong": 1.01, "nan": float("nan"), "moody": 1 + 1e-7 * len(calls)}
        return result * factors[fault]

    monkeypatch.setattr(devices, "compute", compute)
    (finding,) = devices.check_compute([CPU], AUTO)
    assert finding.state == "fail" and finding.found.startswith(found)
    assert "don't train on it" in finding.advice


def as_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded to the ten bits that tensor cores multiply."""
    bits = (tensor.detach().view(torch.int32) + 0x1000) & ~0x1FFF
    return tensor + (bits.view(torch.float32) - tensor).detach()


@pytest.mark.parametrize("obeys", [True, False])
def test_a_card_that_has_tf32_is_well(obeys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It's told to compute in fp32, and does; one that an environment variable keeps is told of."""
    convolve, multiply = torch.nn.functional.conv2d, torch.Tensor.__matmul__
    told: list[bool] = []

    def short(*tensors: torch.Tensor, allowed: bool) -> tuple[torch.Tensor, ...]:
        told.append(allowed)
        rounds = tensors[0].dtype == torch.float32 and (allowed or not obeys)
        return tuple(map(as_tf32, tensors)) if rounds else tensors

    def convolution(images: torch.Tensor, kernels: torch.Tensor, **more: int) -> torch.Tensor:
        images, kernels = short(images, kernels, allowed=torch.backends.cudnn.allow_tf32)
        return convolve(images, kernels, **more)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return multiply(*short(a, b, allowed=torch.backends.cuda.matmul.allow_tf32))

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolution)
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True  # as a recipe may ask for
    try:
        (finding,) = devices.check_compute([CPU], AUTO)
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
    assert told and not any(told)
    assert finding.state == ("pass" if obeys else "warn")


@pytest.mark.parametrize(("free", "state"), [(95, "pass"), (50, "warn")])
def test_gpu_memory_held_by_others(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no nvidia-smi; else the device's check has said it."""
    monkeypatch.setattr(devices, "read_gpus", lambda timeout: ())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    assert list(devices.check_gpus([CPU])) == []
    (finding,) = devices.check_gpus([CUDA])
    assert (finding.name, finding.state) == ("GPU cuda:0", state)


@pytest.mark.parametrize(
    ("sick", "found", "advice"),
    [
        ({}, "", ""),
        ({"ecc_errors": None, "temperature": None}, "", ""),
        ({"ecc_errors": 2}, "2 uncorrected memory errors", "-i 3"),
        ({"throttle": "it is too hot"}, "below its speed: it is too hot (34 °C)", "cooling"),
    ],
)
def test_what_nvidia_smi_tells_of_a_card(
    sick: dict[str, object], found: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = replace(WELL, **sick)  # type: ignore[arg-type]
    monkeypatch.setattr(devices, "read_gpus", lambda timeout: (gpu,))
    monkeypatch.setattr(devices, "of_device", lambda gpus, device: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (79 * 2**30, 80 * 2**30))
    first, *more = devices.check_gpus([CUDA])
    assert first.state == "pass" and "NVIDIA H100, 3 of nvidia-smi; 79.0 GiB" in first.found
    assert ("no memory errors" in first.found) == (gpu.ecc_errors == 0)
    assert [finding.state for finding in more] == ["warn"] * bool(found)
    assert all(found in finding.found and advice in finding.advice for finding in more)
    assert states(devices.check_throttling([CUDA])) == ["warn"] * bool(gpu.throttle)


def test_a_card_that_another_process_has_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(devices, "read_gpus", lambda timeout: ())
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    (finding,) = devices.check_gpus([CUDA])
    assert finding.state == "fail" and "busy or unavailable" in finding.found
