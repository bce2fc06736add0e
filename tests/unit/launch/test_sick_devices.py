"""A rank whose GPU breaks processes, has gone or answers with an error begins nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionrun.common.distributed import LaunchError, read_rank_info
from fusionrun.launch.sick_devices import count_error, count_success, require_healthy
from fusionrun.study.paths import Layout

ECC = "CUDA error: uncorrectable ECC error encountered"
GPU, CPU = torch.device("cuda", 1), torch.device("cpu")
FIRST = replace(read_rank_info({}), rank=1, world_size=2, local_rank=1, local_world_size=2)
AGAIN = replace(FIRST, restarts=1)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Of a launch that began on two GPUs that answer."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    layout = Layout(tmp_path)
    for rank in range(2):
        require_healthy(layout, replace(FIRST, rank=rank), GPU)
    return layout


def break_processes(layout: Layout, count: int, error: str = ECC, rank: int = 1) -> None:
    for _ in range(count):
        count_error(layout.rank_device(rank), error)


def test_more_than_a_task_can_be_blamed_for_is_the_cards(layout: Layout) -> None:
    break_processes(layout, 3)
    require_healthy(layout, AGAIN, GPU)
    break_processes(layout, 1)
    with pytest.raises(LaunchError, match=f"cuda:1 broke 4 processes in a row.*{ECC}.*dmesg"):
        require_healthy(layout, AGAIN, GPU)
    require_healthy(layout, replace(AGAIN, rank=0), GPU)  # the neighbour goes on
    require_healthy(layout, AGAIN, torch.device("cuda", 2))  # another card, another count
    require_healthy(layout, FIRST, GPU)  # as does a person's new launch


def test_a_task_that_is_done_clears_it(layout: Layout) -> None:
    break_processes(layout, 3)
    count_success(layout.rank_device(1))
    break_processes(layout, 3)
    require_healthy(layout, AGAIN, GPU)


@pytest.mark.parametrize(
    "error",
    ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access was"],
)
def test_mistakes_of_a_program_are_not_the_cards(layout: Layout, error: str) -> None:
    break_processes(layout, 9, error)
    require_healthy(layout, AGAIN, GPU)


def test_what_all_cards_do_is_the_programs(layout: Layout) -> None:
    for rank in range(2):
        break_processes(layout, 9, rank=rank)
    for rank in range(2):
        require_healthy(layout, replace(AGAIN, rank=rank), GPU)


def test_a_rank_without_others_goes_on(layout: Layout) -> None:
    alone = replace(AGAIN, rank=0, world_size=1)
    break_processes(layout, 9, rank=0)
    require_healthy(layout, alone, GPU)


def test_no_cpu_goes_on_with_what_a_gpu_began(layout: Layout) -> None:
    with pytest.raises(LaunchError, match="cuda:1, which this rank began on, has gone"):
        require_healthy(layout, AGAIN, CPU)
    require_healthy(layout, FIRST, CPU)
    require_healthy(layout, AGAIN, CPU)


def test_a_card_that_answers_with_an_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise torch.AcceleratorError(f"{words}\nCompile with `TORCH_USE_CUDA_DSA` to enable")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    words = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
    with pytest.raises(LaunchError) as refused:
        require_healthy(layout, FIRST, GPU)
    assert f"cuda:1 can't be used: {words}; look at" in str(refused.value)
    words = "CUDA error: out of memory"  # whoever has it may give it back
    require_healthy(layout, FIRST, GPU)
