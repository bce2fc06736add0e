"""A GPU that is pretended, for measurements that nobody can make here."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fusionrun.study.context import RunContext
from fusionrun.training import graphs
from tests.bench import fusionrun_side, gpu_steps
from tests.bench.measure import Bench
from tests.unit.training.test_graphs import Record

MIB = 2**20


class Profile:
    """As torch.profiler's where everything was a kernel."""

    def __init__(self, activities: object) -> None:
        self._kernel = SimpleNamespace(device_type=torch.autograd.DeviceType.CUDA)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def events(self) -> list[object]:
        return [self._kernel] * 1612


class Pretended(Bench):
    """Says that its CPU was a GPU."""

    @property
    def on_gpu(self) -> bool:
        return True


@pytest.fixture
def modes() -> list[str]:
    """What the stubs of `bench` were told about waits."""
    return []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: list[str]) -> Iterator[Pretended]:
    """torch.cuda's functions stubbed, every network tiny, every batch small."""
    memory = {"reserved_bytes.all.current": 20 * MIB, "reserved_bytes.all.allocated": 5 << 30}
    h100 = SimpleNamespace(
        major=9, minor=0, name="H100", multi_processor_count=132, total_memory=80 << 30
    )
    stubs: Mapping[str, Callable[..., Any]] = {
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_properties": lambda device: h100,
        "get_arch_list": lambda: ["sm_80", "sm_90"],
        "set_sync_debug_mode": modes.append,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: 10 * MIB,
        "max_memory_reserved": lambda device=None: 30 * MIB,
        "memory_stats": lambda device=None: memory,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    healthy = fusionrun_side.run_context

    def small(
        of: Bench, model: str, arguments: dict[str, Any] | None = None, **more: Any
    ) -> RunContext:
        more |= {"batch_size": min(8, more.get("batch_size", 8)), "images": 300}
        on_cpu = Bench(torch.device("cpu"), 1, of.scratch, of.say)
        return healthy(on_cpu, model, fusionrun_side.TINY_MODELS[model], **more)

    monkeypatch.setattr(fusionrun_side, "run_context", small)
    for name, value in {"SIZE": 64, "REPEAT": 1, "STEPS_AHEAD": 2}.items():
        monkeypatch.setattr(gpu_steps, name, value)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(graphs, "record", Record())
    monkeypatch.setattr(graphs, "RECORDS", ("cpu",))
    compile_it = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, *, options, **how: compile_it(self, backend="eager", **how),
    )
    monkeypatch.setattr(gpu_steps, "build_expert", _build_tiny)
    threads = torch.get_num_threads()
    yield Pretended(torch.device("cpu"), 1, tmp_path, print, rounds=1)
    torch.set_num_threads(threads)


def _build_tiny(model: str, classes: int) -> Any:
    from fusionrun.experts import build_expert

    return build_expert(model, classes, **fusionrun_side.TINY_MODELS[model])
