"""Experts of one rank are one line: their means, the sum of their speeds, the last one's ETA."""

from dataclasses import replace

import pytest

from fusionrun.monitor.log_lines import summary_lines
from fusionrun.monitor.side_by_side import by_rank
from fusionrun.monitor.snapshot import RankStatus, TaskStatus
from fusionrun.monitor.task_table import TaskTable
from tests.unit.monitor.test_table import snapshot

ALONE = TaskStatus("expert-densenet-0", "expert", "densenet", "", "running", 10, rank=1, epoch=3)


def expert(k: int, **more: object) -> TaskStatus:
    status = TaskStatus(f"expert-resnet-{k}", "expert", "resnet", "", "running", 10)
    return replace(status, rank=0, together=4, **more)  # type: ignore[arg-type]


def test_their_numbers_become_one() -> None:
    first = expert(0, epoch=4, step=5, steps=10, train_loss=1.0, val_accuracy=60.0, best=61.0)
    first = replace(first, best_epoch=3, images_per_second=100.0, eta_seconds=50.0)
    last = expert(1, epoch=6, step=0, steps=10, train_loss=2.0, images_per_second=50.0)
    (one, alone) = by_rank([first, ALONE, replace(last, eta_seconds=40.0, note="out of memory")])
    assert alone is ALONE
    assert (one.name, one.state, one.rank) == ("expert-resnet-0–1", "running", 0)
    assert one.progress == pytest.approx((4.5 + 6) / 2 / 10, abs=1e-3)
    assert (one.train_loss, one.val_accuracy, one.best, one.best_epoch) == (1.5, 60.0, 61.0, None)
    assert (one.images_per_second, one.eta_seconds, one.note) == (150.0, 50.0, "out of memory")


@pytest.mark.parametrize(
    ("numbers", "name"), [((0, 1, 2, 3), "0–3"), ((0, 2, 3), "0, 2, 3"), ((5,), "5")]
)
def test_they_are_called_by_their_numbers(numbers: tuple[int, ...], name: str) -> None:
    (one,) = by_rank([expert(k) for k in numbers])
    assert one.name == f"expert-resnet-{name}"


def test_what_has_ended_or_is_another_ranks_stays_apart() -> None:
    done = expert(0, state="done")
    tasks = [done, expert(1), expert(2), replace(expert(3), rank=1), expert(4, state="saving")]
    assert [task.name.rpartition("-")[2] for task in by_rank(tasks)] == ["0", "1, 2, 4", "3"]


def test_the_table_and_the_log_have_a_line_a_rank() -> None:
    tasks = tuple(expert(k, epoch=2) for k in range(4))
    names = tuple(task.name for task in tasks)
    rank = RankStatus(0, "working", names[0], 0.1, 3 * 2**30, tasks=names)
    shown = snapshot([*tasks], ranks=(rank,))
    *_, line = TaskTable(shown, 120, "expert").lines()
    assert "resnet  0–3" in line.plain and "3.0 GiB" in line.plain and "2.0/10" in line.plain
    assert sum("expert-resnet-0–3" in text for text in summary_lines(shown)) == 1
