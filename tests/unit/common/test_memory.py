"""Bytes of this process and of its device."""

from pathlib import Path

import pytest
import torch

from fusionrun.common.memory import free_memory, peak_memory, reset_peak

CPU = torch.device("cpu")
BYTES = 200 * 2**20


def test_the_peak_is_that_since_it_was_reset() -> None:
    before = reset_peak(CPU)
    torch.ones(BYTES, dtype=torch.uint8)
    peak = peak_memory(CPU)
    assert before is not None and peak is not None
    assert peak - before > 0.8 * BYTES
    after = reset_peak(CPU)
    assert after is not None and peak - after > 0.8 * BYTES


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert peak_memory(CPU) is reset_peak(CPU) is free_memory(CPU) is None


def test_the_fullest_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process holds itself will be free again."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((9, 5)[index], 10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: (0, 1)[index])
    assert free_memory(torch.device("cuda", 0)) == 6
