"""Where a rank's tasks take their steps; what becomes of them is told by test_claim_loop.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionrun.common.distributed import RankInfo
from fusionrun.launch.company import Company
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.tiny import write_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("wanted", "device", "ranks", "gpus", "most"),
    [
        ("auto", CPU, 2, 0, 1),
        ("auto", CUDA, 1, 1, 4),
        ("auto", CUDA, 4, 4, 4),
        ("auto", CUDA, 4, 2, 2),
        ("auto", CUDA, 3, 2, 2),
        ("auto", CUDA, 8, 1, 1),
        ("2", CPU, 2, 0, 2),
        ("3", CUDA, 8, 1, 3),
    ],
)
def test_a_gpu_is_shared_by_its_ranks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    device: torch.device,
    ranks: int,
    gpus: int,
    most: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    words = [f"experts.together={wanted}", "experts.count=4"]
    study = plan_study(load_recipe(write_recipe(tmp_path), words), "tiny")
    rank_info = RankInfo(0, ranks, 0, ranks, 0, None)
    assert Company.of_rank(study, device, rank_info).most == most
    assert study.recipe.experts.most_together >= most


def test_on_a_gpu_each_has_a_stream_that_waits_for_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    made: list[str] = []

    def stream(device: torch.device) -> SimpleNamespace:
        made.append(name := f"stream {len(made)}")
        waits = lambda other: events.append(f"{name} waits for {other}")  # noqa: E731
        return SimpleNamespace(name=name, wait_stream=waits)

    @contextmanager
    def current(stream: SimpleNamespace) -> Iterator[None]:
        events.append(f"in {stream.name}")
        yield
        events.append(f"out of {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the first")
    monkeypatch.setattr(torch.cuda, "stream", current)
    lanes = Company(4, CUDA).lanes(2)
    with lanes[0]:
        events.append("a step")
    with lanes[1]:
        events.append("a step")
    assert events == [
        "stream 0 waits for the first",
        "stream 1 waits for the first",
        *("in stream 0", "a step", "out of stream 0", "in stream 1", "a step", "out of stream 1"),
    ]
    Company(4, CUDA).lanes(1)
    Company(4, CPU).lanes(3)
    assert len(made) == 2  # whoever is alone, or on a CPU, needs none
