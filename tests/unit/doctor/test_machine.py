"""Ports and load: what passes, and what doesn't."""

import os
import socket

import pytest

from fusionrun.doctor import machine
from tests.unit.doctor.one_row import states


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
