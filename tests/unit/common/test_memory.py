"""Bytes of this process and of its device."""

import resource
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionrun.common.memory import (
    free_memory,
    give_back,
    held_by_others,
    peak_memory,
    reset_peak,
    total_memory,
)

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


def test_what_a_circle_holds_is_given_back() -> None:
    def fails() -> weakref.ref[torch.Tensor]:
        activations = torch.ones(8)
        try:
            raise RuntimeError
        except RuntimeError as error:
            kept = error  # which holds this frame, which holds it
            assert kept is not None
        return weakref.ref(activations)

    held = fails()
    assert held() is not None
    give_back(CPU)
    assert held() is None


def test_of_a_gpu_what_is_reserved_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can use it, whether a tensor lies there or not."""
    gpu, asked = torch.device("cuda", 1), list[str]()
    answers = {
        "max_memory_reserved": lambda device: 7,
        "memory_reserved": lambda device: 4,
        "mem_get_info": lambda device: (10, 32),
        "get_device_properties": lambda device: SimpleNamespace(total_memory=32),
        "empty_cache": lambda: asked.append("empty_cache"),
        "reset_peak_memory_stats": lambda device: asked.append(f"reset {device}"),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert (peak_memory(gpu), total_memory(gpu), total_memory(CPU)) == (7, 32, None)
    assert reset_peak(gpu) == 4 and asked == ["empty_cache", "reset cuda:1"]
    assert (held_by_others(gpu), held_by_others(CPU)) == (32 - 10 - 4, 0)


def test_the_fullest_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process holds itself will be free again."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((9, 5)[index], 10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: (0, 1)[index])
    assert free_memory(torch.device("cuda", 0)) == 6


def test_a_container_allows_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached files make room; a group without a limit says nothing."""
    original = Path.read_text
    files = {
        "/proc/self/cgroup": "4:memory:/job/step\n0::/job/step\n",
        "/sys/fs/cgroup/job/memory.max": "1000",
        "/sys/fs/cgroup/job/memory.current": "900",
        "/sys/fs/cgroup/job/memory.stat": "anon 500\nactive_file 200\ninactive_file 100",
        "/sys/fs/cgroup/job/step/memory.max": "max",
        "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000",
        "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": "900",
        "/sys/fs/cgroup/memory/job/memory.stat": "total_active_file 0\ntotal_inactive_file 0",
    }

    def read(self: Path, *arguments: object, **more: object) -> str:
        if str(self) in files:
            return files[str(self)]
        if str(self).startswith("/sys/fs/cgroup"):
            raise FileNotFoundError(2, "No such file")
        return original(self)

    monkeypatch.setattr(Path, "read_text", read)
    assert free_memory(CPU) == 1000 - 900 + 300


def test_a_limit_of_the_shell_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: (used + 2**20, used + 2**20)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    free = free_memory(CPU)
    assert free is not None and free <= 2**20


KEEPING = """
import resource, torch
from fusionrun.common.memory import give_back, keep_freed

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

keep_freed()
torch.ones(BYTES, dtype=torch.uint8)
before, full = pages(), held()
torch.ones(BYTES - 4096, dtype=torch.uint8)  # aligned, the same wouldn't fit
print(pages() - before)
give_back(torch.device("cpu"))
print(full - held())
"""


def test_what_tensors_leave_is_used_again_and_can_be_given_back() -> None:
    code = KEEPING.replace("BYTES", str(BYTES))
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    asked, given = map(int, run.stdout.split())
    assert asked < BYTES / resource.getpagesize() / 10
    assert given > 0.8 * BYTES
