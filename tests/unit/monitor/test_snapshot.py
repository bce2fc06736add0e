"""From records, heartbeats and outcomes to what the table shows."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fusionrun.common.atomic_files import write_json
from fusionrun.common.distributed import read_rank_info
from fusionrun.common.gpus import Gpu
from fusionrun.common.typed_fields import plain
from fusionrun.launch.shutdown import StopSignals
from fusionrun.monitor.cards import Card
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.record import Outcome, RankState, Record, write_outcome
from fusionrun.monitor.snapshot import (
    RankStatus,
    SnapshotBuilder,
    TaskStatus,
    fresher,
    launch_state,
    seconds_to_end,
)
from fusionrun.study.paths import Layout
from fusionrun.study.rows import Member, Row
from fusionrun.study.tasks import ExpertTask, RowTask, Task

EXPERTS = tuple(ExpertTask(1 + k, "resnet", k, cost=10.0, epochs=4) for k in range(2))
ROW = RowTask(
    0,
    Row(0, "resnet", "concatenation", 42, 1.0, "concatenation-seed7"),
    cost=20.0,
    epochs=10,
    needs=("expert-resnet-0", "expert-resnet-1"),
)
TASKS: tuple[Task, ...] = (ROW, *EXPERTS)


def builder(
    folder: Path, records: Sequence[Record] = (), told: Mapping[str, str] | None = None
) -> SnapshotBuilder:
    info = replace(read_rank_info({}), world_size=2, nodes=1)
    gather = StatusGather(
        replace(info, world_size=1),
        Record(),
        shape=(2, 1),
        every_seconds=1.0,
        decide=len,
        stop=StopSignals([]),
    )
    gather.records = list(records)
    return SnapshotBuilder(
        Layout(folder),
        TASKS,
        gather,
        info,
        study="demo",
        threads=1,
        every_seconds=1.0,
        outcome_of=(told or {}).get,
    )


def test_a_mixed_row_has_its_own_experts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = (Member("densenet", 0), Member("resnet", 1))
    row = Row(0, "mixed-duo", "concatenation", 42, 1.0, "concatenation", None, members)
    monkeypatch.setattr(sys.modules[__name__], "TASKS", (RowTask(0, row, cost=20.0, epochs=10),))
    working = Record(state="working", task=0, experts=[70.0, None, None, None])
    (status,) = builder(tmp_path, [working]).build().tasks
    assert (status.members, status.experts) == ("densenet 0, resnet 1", (70.0, None))


def test_a_launch_from_its_start_to_its_end(tmp_path: Path) -> None:
    start = builder(tmp_path).build()
    assert [rank.state for rank in start.ranks] == ["starting", "starting"]
    assert [task.state for task in start.tasks] == ["waiting", "queued", "queued"]
    assert start.tasks[0].note == "for expert-resnet-0, expert-resnet-1"
    assert (start.state, start.progress, start.eta_seconds) == ("running", 0.0, None)

    layout = Layout(tmp_path)
    write_outcome(layout.outcome("expert-resnet-0"), Outcome("done", epoch=4, best=61.5))
    working = Record(state="working", task=2, epoch=1, step=5, steps=10, eta_seconds=25.0)
    middle = builder(tmp_path, [Record(state="idle"), working]).build()
    row, done, running = middle.tasks
    assert (row.state, row.note, row.fusion) == (
        "waiting",
        "for expert-resnet-1",
        "concatenation-seed7",
    )
    assert (done.state, done.best, done.fusion) == ("done", 61.5, "")
    assert (running.state, running.rank, running.epoch, running.step) == ("running", 1, 1, 5)
    assert running.progress == 1.5 / 4
    assert middle.progress == pytest.approx((10 + 10 * 1.5 / 4) / 40)
    assert middle.ranks[1].task == "expert-resnet-1"

    # where no file could be written, the queue knows
    told = {"expert-resnet-1": "done", ROW.name: "disk full"}
    ended = [Record(state="finished"), Record(state="finished")]
    last = builder(tmp_path, ended, told).build()
    assert [task.state for task in last.tasks] == ["failed", "done", "done"]
    assert last.tasks[0].note == "disk full"
    assert last.state == "failed"


def test_experts_accuracies_are_a_rows() -> None:
    record = Record(state="working", experts=[70.0, None], best_epoch=3.0)
    row = TaskStatus("a", "row", "resnet", "concatenation", "queued", 10)
    assert row.while_running(0, record, 0.0).experts == (70.0, None)
    assert row.while_running(0, record, 0.0).best_epoch == 3
    assert replace(row, kind="expert").while_running(0, record, 0.0).experts == ()
    assert row.while_running(0, replace(record, state="stopped"), 0.0).state == "stopped"


def test_testing_and_saving_are_states_and_not_yet_the_end() -> None:
    row = TaskStatus("a", "row", "resnet", "concatenation", "queued", 10)
    record = Record(state="working", activity="testing", epoch=10, eta_seconds=30.0)
    testing = row.while_running(0, record, 12.0)
    assert (testing.state, testing.eta_seconds) == ("testing", 18.0)
    assert row.while_running(0, record, 99.0).eta_seconds == 0.0
    assert testing.progress == 0.99
    saving = row.while_running(0, replace(record, activity="saving", eta_seconds=None), 12.0)
    assert (saving.state, saving.eta_seconds) == ("saving", None)
    training = row.while_running(0, replace(record, activity="training"), 12.0)
    assert (training.state, training.eta_seconds) == ("running", 30.0)


def test_what_failed_is_no_progress(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_outcome(layout.outcome("expert-resnet-0"), Outcome("done", epoch=4))
    write_outcome(layout.outcome("expert-resnet-1"), Outcome("failed", epoch=3, note="full disk"))
    shown = builder(tmp_path, [Record(state="finished")] * 2, {ROW.name: "can't start"}).build()
    assert (shown.state, shown.progress) == ("failed", 10 / 40)
    nothing = builder(tmp_path / "else", told={task.name: "no data" for task in TASKS}).build()
    assert nothing.progress == 0.0


def test_a_ranks_file_stands_in_for_a_broken_gather(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for rank, count in enumerate((5.0, 9.0)):
        written = Record(state="working", task=rank, heartbeat_count=count, note="n", host="h")
        write_json(layout.heartbeat(rank), plain(written))
    gathered = [Record(state="idle", heartbeat_count=7.0) for _ in range(2)]
    first, second = builder(tmp_path, gathered).build().ranks
    assert (first.state, first.note, first.host) == ("idle", "n", "h")
    assert (second.state, second.task) == ("working", "expert-resnet-0")


def test_the_fresher_record() -> None:
    old, new = Record(heartbeat_count=1.0, note="a"), Record(heartbeat_count=2.0, note="b")
    assert fresher(None, None) is None
    assert fresher(old, None) is old
    assert fresher(None, new) is new
    assert fresher(old, new) == new
    assert fresher(new, old) == replace(new, note="a")


def test_gpus_travel_by_file_beside_numbers_that_are_newer(tmp_path: Path) -> None:
    gpu = Gpu(0, "GPU-5f", "V100", (7, 0), "", None, None, 98.0, None, None, None, "", False, 0, "")
    written = Record(state="working", heartbeat_count=1.0, host="a", memory_total=32.0)
    written.device, written.gpu_uuid, written.gpus = "V100, fp16", "5f", (gpu,)
    for rank in range(2):
        write_json(Layout(tmp_path).heartbeat(rank), plain(written))
    newer = replace(written, heartbeat_count=9.0)
    gathered = [Record.from_table(newer.to_table(2, 1)) for _ in range(2)]
    shown = builder(tmp_path, gathered).build()
    assert shown.cards == (Card("a", (0, 1), gpu),)
    assert shown.device == "1 × V100, fp16"
    assert [rank.memory_total for rank in shown.ranks] == [32.0, 32.0]


def test_ages_grow_until_something_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    records = [Record(state="working", task=1, heartbeat_count=1.0), Record(state="idle")]
    build = builder(tmp_path, records).build

    def ages() -> list[tuple[float | None, float]]:
        now[0] += 5
        return [(rank.heartbeat_age, rank.still_seconds) for rank in build().ranks]

    assert ages() == [(0, 0), (0, 0)]
    assert ages() == [(5, 5), (5, 0)]  # an idle rank has nothing to make progress in
    records[0].heartbeat_count += 1
    assert ages() == [(0, 10), (10, 0)]
    records[0].progress_count += 1
    assert ages() == [(5, 0), (15, 0)]
    now[0] += 7 * 3600  # this process slept, and what it watches may have slept, too
    records[0].heartbeat_count += 1
    assert ages() == [(0, 7), (22, 0)]
    monkeypatch.setattr("time.time", lambda: 0.0)  # nor does it matter that a clock is set
    assert ages() == [(5, 12), (27, 0)]


def status(state: str, **fields: object) -> TaskStatus:
    made = TaskStatus("a", "expert", "resnet", "", "running", 10)
    return replace(made, state=state, **fields)  # type: ignore[arg-type]


def test_the_time_to_the_end() -> None:
    tasks = [ExpertTask(k, "resnet", k, cost=10.0, epochs=10) for k in range(4)]
    half = status("running", epoch=5, eta_seconds=50.0)  # 0.1 units of work a second
    queued = status("queued")

    def left(*states: TaskStatus, ranks: int) -> float | None:
        return seconds_to_end(list(zip(tasks, states, strict=False)), ranks)

    assert left(half, ranks=4) == 50.0  # one task can't be shared
    assert left(half, queued, ranks=1) == pytest.approx(150.0)
    assert left(half, queued, queued, queued, ranks=2) == pytest.approx(200.0)
    assert left(queued, ranks=2) is None  # nothing measured
    assert left(ranks=2) is None
    assert left(status("stopped", epoch=5, eta_seconds=50.0), ranks=2) is None
    # what is done counts no more, but shows how long the rest takes; failures show nothing
    done = status("done", epoch=10, seconds=80.0)
    assert left(done, done, ranks=2) == 0.0
    assert left(done, queued, ranks=2) == pytest.approx(80.0)
    assert left(status("failed", epoch=5), queued, ranks=2) is None
    # just begun: nothing of its own is measured yet
    assert left(done, status("running"), ranks=2) == pytest.approx(80.0)
    # the time to the end is that of the test, and what waits isn't thought slow by it
    testing = status("testing", epoch=10, eta_seconds=7.0, rank=1)
    assert left(testing, ranks=2) is None
    assert left(testing, half, queued, ranks=2) == pytest.approx(107.0)
    # side by side on one rank a unit takes as long for both as for one alone
    both = replace(half, rank=0, together=2)
    assert left(both, both, queued, queued, ranks=1) == pytest.approx(50 + 2 * 50)
    assert left(both, both, queued, queued, ranks=2) == pytest.approx(100)
    ended = status("done", epoch=10, seconds=80.0, together=2)
    assert left(ended, ended, queued, queued, ranks=1) == pytest.approx(80.0)


def test_the_time_to_the_end_includes_rows_behind_their_experts() -> None:
    first, second = status("running", epoch=2, eta_seconds=20.0), status("queued")
    row = replace(status("waiting"), kind="row")
    pairs = list(zip((ROW, *EXPERTS), (row, first, second), strict=True))
    # 8 of 10 units in 20 s: the other expert 25 s, the row's 20 units 50 s
    assert seconds_to_end(pairs, ranks=2) == pytest.approx(25 + 50)
    assert seconds_to_end(pairs, ranks=1) == pytest.approx(20 + 25 + 50)


@pytest.mark.parametrize(
    ("ranks", "tasks", "state"),
    [
        (("finished", "working"), ("done", "done"), "running"),
        (("finished", "idle"), ("failed", "done"), "running"),
        (("finished", "finished"), ("done", "done"), "done"),
        (("finished", "stopped"), ("done", "failed"), "failed"),
        (("stopped", "stopped"), ("done", "stopped"), "stopped"),
        (("failed", "failed"), ("queued", "waiting"), "stopped"),
    ],
)
def test_the_launchs_state(
    ranks: tuple[RankState, ...], tasks: tuple[str, ...], state: str
) -> None:
    shown = [RankStatus(i, each, None, None, None) for i, each in enumerate(ranks)]
    assert launch_state([status(each) for each in tasks], shown) == state
