"""What ranks publish: through a vector, through a file, and from files of other versions."""

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionrun.common.distributed import read_rank_info
from fusionrun.launch.shutdown import StopSignals
from fusionrun.monitor import record as record_module
from fusionrun.monitor.gather import StatusGather
from fusionrun.monitor.heartbeat import GPU_SECONDS, SICK_SECONDS, Heartbeat, read_heartbeat
from fusionrun.monitor.record import (
    Outcome,
    OutcomeFiles,
    Record,
    known,
    read_outcome,
    write_outcome,
)


def full() -> Record:
    """A record no two numbers of which agree."""
    record = Record(state="working", task=3, activity="saving", experts=[71.5, None, 73.25])
    numbers = [f.name for f in dataclasses.fields(Record) if f.type in (float, float | None)]
    for value, name in enumerate(numbers):
        setattr(record, name, value + 0.5)
    assert len(numbers) > 15
    return record


def test_the_table_carries_every_number_of_every_task() -> None:
    record = full()
    table = record.to_table(num_experts=3, tasks=1)
    assert Record.from_table(table) == record
    assert Record.from_table(Record().to_table(2, 1)) == Record(experts=[None, None])
    padded = Record.from_table(record.to_table(num_experts=5, tasks=1))
    assert padded.experts == [71.5, None, 73.25, None, None]
    record.beside = [replace(full(), task=7, note="in words"), Record(), replace(full(), task=8)]
    several = Record.from_table(record.to_table(3, tasks=4))
    # what has ended isn't in hand, and notes travel by file
    assert several == replace(record, beside=[replace(full(), task=k) for k in (7, 8)])
    assert [each.task for each in several.in_hand] == [3, 7, 8]
    assert several.with_words_of(record).beside[0].note == "in words"
    assert len(Record.from_table(record.to_table(3, tasks=2)).in_hand) == 2
    # one shape for all ranks, whatever they work on
    assert len({each.to_table(4, 4).shape for each in (Record(), record)}) == 1
    assert table.dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_unknown(value: float | None) -> None:
    assert known(value) is None
    assert known(0.0) == 0.0


def test_beginning_a_task_forgets_the_last_one_but_not_the_rank() -> None:
    record = full()
    record.note, record.host, record.pid = "of the last task", "node7", 42
    kept = (record.heartbeat_count, record.progress_count, record.busy_seconds)
    record.beside = [Record(task=4)]
    record.begin(9)
    assert record.in_hand == [record, Record(task=4)]
    assert (record.heartbeat_count, record.progress_count, record.busy_seconds) == kept
    assert (record.host, record.pid, record.task, record.state) == ("node7", 42, 9, "working")
    assert (record.note, record.best, record.epoch, record.experts) == ("", None, 0.0, [])
    assert record.activity == "training"


def test_the_heartbeats_file_is_read_back(tmp_path: Path) -> None:
    path, record = tmp_path / "ranks" / "0.json", full()
    record.note, record.host = "reads 3 files", "node7"
    heartbeat = Heartbeat(record, path, every_seconds=60.0)
    heartbeat.start()
    record.state = "finished"
    heartbeat.stop()
    assert read_heartbeat(path) == record  # the last state, not the first
    assert record.pid == os.getpid()
    assert record.heartbeat_count >= 1.5


def test_a_heartbeat_that_cant_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = Record()
    heartbeat = Heartbeat(record, tmp_path / "file" / "0.json", every_seconds=60.0)
    heartbeat.start()
    heartbeat.stop()
    assert record.note.startswith("heartbeat file: ")


GPU = "0, GPU-5f2a, Tesla V100, 7.0, 535.183, 32768, 9, 98, 61, 51, 300, Default, [N/A], 0, 0x8"


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi of one's own."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def test_the_rank_that_looks_at_the_gpus_tells_of_them_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionrun.monitor.heartbeat.GPU_SECONDS", 0.05)
    tool(tmp_path, monkeypatch, f"echo '{GPU}'")
    path, record = tmp_path / "0.json", full()
    record.gpu_uuid = "5f2a"
    heartbeat = Heartbeat(record, path, every_seconds=0.01)
    heartbeat.start()
    until(lambda: bool((found := read_heartbeat(path)) and found.gpus))
    read = read_heartbeat(path)
    assert read is not None and read.gpus == record.gpus
    (gpu,) = read.gpus
    assert (gpu.name, gpu.capability, gpu.utilisation) == ("Tesla V100", (7, 0), 98.0)
    assert record.gpus == Record.with_words_of(Record(), read).gpus
    record.begin(3)
    assert record.gpus  # they are the machine's, not a task's
    # what can't be read any more isn't shown as if it were so
    tool(tmp_path, monkeypatch, "exit 1")
    until(lambda: record.gpus == ())
    heartbeat.stop()


def test_a_tool_that_tells_nothing_is_asked_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs in a sick driver can't be killed: they would grow to hundreds."""
    waits: dict[str, float | None] = {}

    class Told(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits[threading.current_thread().name] = timeout
            return super().wait(0.01)

    for script, seconds in [(f"echo '{GPU}'", GPU_SECONDS), ("exit 1", SICK_SECONDS)]:
        tool(tmp_path, monkeypatch, script)
        heartbeat = Heartbeat(Record(gpu_uuid="5f2a"), tmp_path / "0.json", every_seconds=1.0)
        heartbeat._done = Told()
        heartbeat.start()
        until(lambda: "gpus" in waits)
        heartbeat.stop()
        assert waits.pop("gpus") == seconds


def test_a_look_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, f"echo begun >{tmp_path}/begun; exec sleep 3")
    record = Record(gpu_uuid="5f2a")
    heartbeat = Heartbeat(record, tmp_path / "0.json", every_seconds=0.01)
    heartbeat.start()
    until((tmp_path / "begun").exists)
    count = record.heartbeat_count
    until(lambda: record.heartbeat_count > count + 3)
    heartbeat.stop()
    assert any(thread.name == "gpus" for thread in threading.enumerate())  # it hangs still


def test_a_rank_says_what_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.of_rank("node7", torch.device("cpu"), "fp32")
    assert (record.host, record.device, record.gpu_uuid) == ("node7", "CPU, fp32", "")
    found = SimpleNamespace(name="Tesla V100-SXM2-32GB", uuid="5f2a", total_memory=32 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    record = Record.of_rank("node7", torch.device("cuda", 1), "fp16")
    assert (record.device, record.gpu_uuid) == ("Tesla V100-SXM2-32GB, fp16", "5f2a")
    record.begin(3)
    assert record.memory_total == 32 * 2**30  # of the rank, not of a task
    assert Record.from_table(record.to_table(2, 1)).memory_total == 32 * 2**30


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"state": "dancing"}', '{"epoch": "x"}'])
def test_no_heartbeat_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "0.json"
    if content is not None:
        path.write_text(content)
    assert read_heartbeat(path) is None


def test_a_heartbeat_of_the_first_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    path.write_text(
        '{"state": "working", "task": 1, "beat": 7.0, "pulse": 40.0, "epoch": 2.0, "step": 3.0,'
        ' "steps": 5.0, "train_loss": null, "best": 61.5, "best_epoch": 2.0,'
        ' "experts": [60.5, null], "note": "", "host": "a", "pid": 4711}'
    )
    assert read_heartbeat(path) == Record(
        state="working",
        task=1,
        heartbeat_count=7.0,
        progress_count=40.0,
        epoch=2.0,
        step=3.0,
        steps=5.0,
        best=61.5,
        best_epoch=2.0,
        experts=[60.5, None],
        host="a",
        pid=4711,
    )


def test_outcomes_survive_their_file_and_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "outcomes" / "task-0.json"
    outcome = Outcome("done", "", 2, 40, 70.5, 71.5, 38, 0.25, (70.25, None), 12.5)
    write_outcome(path, outcome)
    assert read_outcome(path) == outcome
    assert list(json.loads(path.read_text())) == [
        *("state", "note", "rank", "epoch", "val_accuracy", "best", "best_epoch"),
        *("gain_over_averaging", "experts", "seconds"),
        *("train_loss", "train_accuracy", "val_loss", "val_images", "together"),
    ]
    path.write_text('{"state": "failed", "note": "out of memory", "of_a_later_version": [1]}')
    assert read_outcome(path) == Outcome("failed", note="out of memory")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"state": "paused"}'])
def test_no_outcome_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "task-0.json"
    if content is not None:
        path.write_text(content)
    assert read_outcome(path) is None


def test_outcomes_are_read_again_only_where_they_were_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> Outcome | None:
        read.append(path.stem)
        return read_outcome(path)

    monkeypatch.setattr(record_module, "read_outcome", counted)
    files = OutcomeFiles(tmp_path / "outcomes")
    assert files.read() == {}
    done, failed = Outcome("done", rank=1), Outcome("failed", note="out of memory")
    for name in ("a", "b.json"):
        write_outcome(tmp_path / "outcomes" / f"{name}.json", done)
    (tmp_path / "outcomes" / ".c.json.0123.tmp").write_text("{")
    (tmp_path / "outcomes" / "odd.json").write_text("{")
    for _ in range(3):
        assert files.read() == {"a": done, "b.json": done}
    assert sorted(read) == [".c.json.0123", "a", "b.json", "odd"]
    write_outcome(tmp_path / "outcomes" / "a.json", failed)
    (tmp_path / "outcomes" / "b.json.json").unlink()
    assert files.read() == {"a": failed}
    assert read[4:] == ["a"]


def test_a_gather_of_one_rank_ends_when_it_is_decided() -> None:
    record, seen = Record(), []

    def decide(records: object) -> int | None:
        seen.append(records)
        record.state = "finished"
        return 3 if len(seen) == 3 else None

    gather = StatusGather(
        read_rank_info({}),
        record,
        shape=(2, 1),
        every_seconds=0.001,
        decide=decide,
        stop=StopSignals([]),
    )
    gather.start()
    assert gather.wait(10.0) == 3
    assert [each.state for each in gather.records] == ["finished"]
    assert gather.broken == ""


def test_a_gather_ends_with_its_last_rank_and_not_at_the_tick_after() -> None:
    record, undecided = Record(state="working"), threading.Event()

    def decide(records: Sequence[Record]) -> int | None:
        if records[0].state == "finished":
            return 0
        undecided.set()
        return None

    gather = StatusGather(
        read_rank_info({}),
        record,
        shape=(2, 1),
        every_seconds=3600.0,
        decide=decide,
        stop=StopSignals([]),
    )
    gather.start()
    assert undecided.wait(10.0)
    record.state = "finished"
    gather.hurry()
    assert gather.wait(10.0) == 0
