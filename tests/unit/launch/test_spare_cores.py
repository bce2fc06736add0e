"""What ranks without work leave to those of their machine that train rows."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from fusionrun.common.distributed import RankInfo
from fusionrun.experts import build_expert
from fusionrun.fusions import FusionModel, build_fusion
from fusionrun.launch import spare_cores
from fusionrun.launch.spare_cores import LOOK_SECONDS, SpareCores
from fusionrun.study.queue import Queue

Make = Callable[..., list[SpareCores]]
FIRST = 7  # ranks of other machines


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, clock: list[float], store: dist.Store) -> Make:
    """The ranks of a machine with that many cores."""

    def make(cores: int, ranks: int, threads: int = 1) -> list[SpareCores]:
        monkeypatch.setattr(spare_cores, "usable_cpus", lambda: cores)
        infos = [
            RankInfo(FIRST + k, FIRST + ranks, k, ranks, 0, None, nodes=2) for k in range(ranks)
        ]
        return [
            SpareCores(
                Queue([], store, each.rank, each.world_size), each, threads, lambda: clock[0]
            )
            for each in infos
        ]

    return make


@pytest.fixture
def shares(store: dist.Store, clock: list[float]) -> Callable[..., list[int]]:
    """What ranks get when they do such things."""

    def shares(ranks: list[SpareCores], *works: str) -> list[int]:
        for rank, work in enumerate(works, start=FIRST):
            store.set(f"work/{rank}", work)
        clock[0] += 2 * LOOK_SECONDS
        return [rank.at_once() for rank in ranks]

    return shares


Shares = Callable[..., list[int]]


def test_rows_share_what_ranks_without_work_leave(make: Make, shares: Shares) -> None:
    ranks = make(4, 4)
    assert shares(ranks, "row", "row", "row") == [1, 1, 1, 1]  # the last hasn't begun
    assert shares(ranks, "row", "row", "row", "row") == [1, 1, 1, 1]
    assert shares(ranks, "row", "other", "row", "idle") == [2, 1, 1, 1]
    assert shares(ranks, "row", "idle", "row", "idle") == [2, 1, 2, 1]
    assert shares(ranks, "idle", "other", "row", "idle") == [1, 1, 3, 1]
    assert shares(ranks, "idle", "idle", "row", "idle") == [1, 1, 4, 1]
    assert shares(ranks, "other", "idle", "row", "row") == [1, 1, 2, 1]
    assert shares(ranks, "other", "other", "other", "idle") == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [(2, 1, 2), (8, 1, 4), (8, 2, 4), (5, 2, 2), (8, 8, 1), (1, 1, 1), (2, 4, 1)],
)
def test_there_are_never_more_threads_than_cores(
    make: Make, shares: Shares, cores: int, threads: int, expected: int
) -> None:
    """Nor more than four ranks were given, who may be meant to leave the others alone."""
    ranks = make(cores, 4, threads)
    assert shares(ranks, "row", "idle", "idle", "idle")[0] == expected


def test_others_are_looked_at_once_a_second_and_a_change_is_said(
    make: Make, shares: Shares, store: dist.Store, clock: list[float]
) -> None:
    first, _ = ranks = make(2, 2)
    experts = [build_expert("resnet", 5, width=4, blocks=(1,)) for _ in range(3)]
    row = FusionModel(experts, build_fusion("concatenation", 3, 4), 5)
    said: list[str] = []
    with first.side_by_side(row, said.append):
        assert shares(ranks, "row", "idle") == [2, 1]
        row(torch.rand(2, 3, 8, 8))
        store.set(f"work/{FIRST + 1}", "row")
        clock[0] += 0.9 * LOOK_SECONDS
        assert first.at_once() == 2
        clock[0] += 0.2 * LOOK_SECONDS
        assert first.at_once() == 1
        assert shares(ranks, "row", "row") == [1, 1]
    assert said == [
        "computes 2 of its experts at a time, with cores of ranks without work",
        "computes 1 of its experts at a time, with its own cores alone",
    ]


def test_each_row_is_told_of_the_cores_that_it_uses(make: Make, shares: Shares) -> None:
    """The next one, too, which finds them as the one before has left them."""
    first, _ = ranks = make(2, 2)
    experts = [build_expert("resnet", 5, width=4, blocks=(1,)) for _ in range(2)]
    row = FusionModel(experts, build_fusion("concatenation", 2, 4), 5)
    logs: list[list[str]] = [[], []]
    for log in logs:
        with first.side_by_side(row, log.append):
            assert shares(ranks, "row", "idle") == [2, 1]
    said = "computes 2 of its experts at a time, with cores of ranks without work"
    assert logs == [[said], [said]]


def test_a_store_that_is_gone_leaves_everybody_what_is_theirs(
    make: Make, shares: Shares, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = make(2, 2)
    assert shares(ranks, "row", "idle") == [2, 1]

    def fail(*_: object) -> str:
        raise dist.DistNetworkError("the peer has died")

    monkeypatch.setattr(Queue, "work_of", fail)
    assert shares(ranks, "row", "idle") == [1, 1]
    (alone,) = make(8, 1)
    assert shares([alone], "row") == [1]
