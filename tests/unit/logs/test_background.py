"""Charts that fail, hang or vanish: the training goes on, and says so once."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from fusionrun.launch import run_logs, task_reporter
from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.logs.background import BackgroundLog
from fusionrun.logs.text import TaskLog
from fusionrun.monitor.record import Record
from fusionrun.study.study import Study
from fusionrun.training.epoch import BestEpoch
from tests.fake_cuda import CUDA, fake_cuda
from tests.unit.logs.test_logs import RATES, make_history
from tests.unit.logs.test_logs import study as study


class Charts:
    """Keeps what it's given, until it breaks."""

    def __init__(self, breaks_at: int = 99, error: BaseException | None = None) -> None:
        self.epochs: list[int] = []
        self._breaks_at, self._error = breaks_at, error or OSError(28, "No space left on device")
        self.closed = False

    def scalars(self, values: object, epoch: int) -> None:
        if epoch >= self._breaks_at:
            raise self._error
        self.epochs.append(epoch)

    def image(self, *_: object) -> None:
        raise NotImplementedError

    outcome = image

    def close(self) -> None:
        self.closed = True


def fed(charts: Charts, epochs: int = 3) -> list[str]:
    warnings: list[str] = []
    log = BackgroundLog("Charts", lambda: charts, warnings.append)
    for epoch in range(1, epochs + 1):
        log.put(lambda chart, epoch=epoch: chart.scalars({}, epoch))  # type: ignore[misc]
    log.close(5)
    return warnings


def test_what_works_gets_everything_in_order() -> None:
    charts = Charts()
    assert fed(charts) == [] and charts.epochs == [1, 2, 3] and charts.closed


@pytest.mark.parametrize("error", [OSError(28, "No space"), RuntimeError("away"), SystemExit(1)])
def test_what_fails_is_said_once_and_left_out(error: BaseException) -> None:
    charts = Charts(2, error)
    (warning,) = fed(charts)
    assert warning.startswith("Charts failed (") and "the training goes on" in warning
    assert charts.epochs == [1]


def test_what_cannot_be_opened_is_said_once() -> None:
    warnings: list[str] = []

    def opened() -> Charts:
        raise ImportError("no such package")

    log = BackgroundLog("Charts", opened, warnings.append)
    log.join()
    log.put(lambda chart: chart.close())
    log.close(5)
    assert warnings == ["Charts failed (no such package); the training goes on without it"]


def test_what_hangs_is_left_behind() -> None:
    stuck, warnings = threading.Event(), list[str]()
    log = BackgroundLog("Charts", Charts, warnings.append)
    log.put(lambda chart: stuck.wait() and None)
    started = time.monotonic()
    log.put(lambda chart: chart.scalars({}, 1))
    log.close(0.05)
    assert time.monotonic() - started < 5
    assert warnings == ["Charts wasn't done after 0 s and was left behind"]
    stuck.set()
    log.join(5)


@contextmanager
def reporting(study: Study, record: Record) -> Iterator[TaskReporter]:
    task = study.row_tasks[0]
    with TaskLog(study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(study, task, record, log, torch.device("cpu"))
        yield reporter
        reporter.close()


def test_a_sample_of_images_is_on_the_host_before_a_thread_shows_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which wouldn't wait for the stream that makes them on a GPU."""
    shown: list[torch.Tensor] = []
    log, chart = mock.Mock(), mock.Mock(image=lambda tag, pixels: shown.append(pixels))
    log.put = lambda work: work(chart)
    monkeypatch.setattr(task_reporter, "open_run_logs", lambda *_: [log])
    with reporting(study, Record()) as reporter, fake_cuda():
        reporter.sample = lambda: torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device=CUDA)
        reporter.epoch(make_history(5, RATES)[:1], BestEpoch(1, 50.0, 1.0))
    (pixels,) = shown
    assert pixels.device.type == "cpu" and pixels.shape == (3, 4, 8)


def test_a_csv_file_that_cannot_be_written_is_warned_of_once(study: Study) -> None:
    csv_logs = study.layout.output_dir / "csv_logs"
    csv_logs.parent.mkdir(parents=True)
    csv_logs.write_text("a file in the way")
    record, history = Record(), make_history(5, RATES)
    with reporting(study, record) as reporter:
        for epoch in (1, 2):
            reporter.epoch(history[:epoch], BestEpoch(1, 50.0, 1.0))
        csv_logs.unlink()
        reporter.epoch(history, BestEpoch(1, 50.0, 1.0))
    task = study.row_tasks[0]
    written = study.layout.row(task.model, task.row.variant).csv.read_text().splitlines()
    assert [line.partition(",")[0] for line in written] == ["epoch", "1", "2", "3"]
    log = study.layout.task_log(study.rows[0].name).read_text()
    assert log.count("warning: ") == 1 and "csv" in log and "epoch 3/3" in log
    assert "the training goes on" in record.note


def test_charts_that_fail_stand_in_the_log_and_the_table(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    recipe = replace(study.recipe, logs=replace(study.recipe.logs, tensorboard=True))
    monkeypatch.setattr(run_logs, "TensorBoardLog", lambda *_: Charts(2))
    record, history = Record(), make_history(5, RATES)
    with reporting(replace(study, recipe=recipe), record) as reporter:
        for epoch in (1, 2, 3):
            reporter.epoch(history[:epoch], BestEpoch(1, 50.0, 1.0))
    log = study.layout.task_log(study.rows[0].name).read_text()
    assert log.count("warning: TensorBoard failed") == 1 and "epoch 3/3" in log
    assert record.note.startswith("TensorBoard failed ([Errno 28]")


def test_a_log_whose_folder_vanishes_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "logs/task.log"
    with TaskLog(path, "task") as log:
        log.line("before")
        shutil.rmtree(path.parent)
        log.line("after")
    assert path.read_text().endswith("after\n") and "before" not in path.read_text()


def test_a_log_that_cannot_be_written_loses_lines_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("in the way")
    with TaskLog(tmp_path / "logs/task.log", "task") as log:
        log.line("lost")
        log.line("lost")
        (tmp_path / "logs").unlink()
        log.line("kept")
    assert (tmp_path / "logs/task.log").read_text().endswith("kept\n")
    assert capsys.readouterr().err.count("lines are lost") == 1
