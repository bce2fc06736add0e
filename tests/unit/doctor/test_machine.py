"""Devices, ports and load: what passes, and what doesn't."""

import os
import socket

import pytest
import torch

from fusionrun.doctor import machine
from tests.unit.doctor.one_row import CPU, states


def test_a_cpu_computes() -> None:
    (finding,) = machine.check_compute([CPU])
    assert finding.state == "pass"


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("wrong", "wrong results"),
        ("nan", "wrong results"),
        ("moody", "other results"),
        ("dead", "broke: illegal memory access"),
    ],
)
def test_a_broken_device_fails(fault: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def compute(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        calls.append(dtype)
        result = torch.ones(8, dtype=torch.float64)
        if dtype == torch.float64:
            return result
        if fault == "dead":
            raise RuntimeError("illegal memory access\nand more")
        factors = {"wrong": 1.01, "nan": float("nan"), "moody": 1 + 1e-7 * len(calls)}
        return result * factors[fault]

    monkeypatch.setattr(machine, "compute", compute)
    (finding,) = machine.check_compute([CPU])
    assert finding.state == "fail" and finding.found.startswith(found)
    assert "don't train on it" in finding.advice


@pytest.mark.parametrize(("free", "state"), [(95, "pass"), (50, "warn")])
def test_gpu_memory_held_by_others(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    assert list(machine.check_gpu_memory([CPU])) == []
    (finding,) = machine.check_gpu_memory([torch.device("cuda", 0)])
    assert (finding.name, finding.state) == ("memory cuda:0", state)


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(machine.check_port()) == ["pass"]

    def refuse(address: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    (finding,) = machine.check_port()
    assert finding.state == "fail" and "Cannot assign" in finding.found and finding.advice


def test_a_busy_machine_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(machine.check_load()) == []
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert states(machine.check_load()) == ["warn"]
