"""CSV, TensorBoard, W&B and text logs, each read back with the reader that people use."""

import csv
import dataclasses
import io
import itertools
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusionrun.launch.task_reporter import TaskReporter
from fusionrun.logs.csv import EXPERT_COLUMNS, row_columns, write_csv
from fusionrun.logs.tensorboard import TensorBoardLog
from fusionrun.logs.text import TaskLog
from fusionrun.logs.wandb import PROJECTS, WandbLog
from fusionrun.monitor.record import Record
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study
from fusionrun.training.epoch import BestEpoch, EpochMetrics

# --- CSV -----------------------------------------------------------------------------------------

HEADER = (
    "epoch,train_loss,train_accuracy,val_loss,val_accuracy,experts_lr,fusion_lr,global_head_lr,"
    "loss_global,loss_individual,loss_total,"
    "expert_0_accuracy,expert_0_loss,expert_1_accuracy,expert_1_loss,"
    "expert_2_accuracy,expert_2_loss,expert_3_accuracy,expert_3_loss,"
    "images_per_second,seconds,alpha,model,fusion_type,timestamp"
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "csv_logs" / "log.csv"


def cells(columns: Sequence[str], epoch: int) -> dict[str, object]:
    """A value for every column; numbers that tell epochs and columns apart."""
    texts = {"model": "densenet", "fusion_type": "multiplicative", "timestamp": "2026-01-02T03:04"}
    row: dict[str, object] = {c: epoch + i / 7 for i, c in enumerate(columns)}
    return {**row, **{k: v for k, v in texts.items() if k in columns}, "epoch": epoch}


def test_header_of_a_row_of_four_experts(path: Path) -> None:
    assert ",".join(row_columns(4)) == HEADER
    write_csv(path, row_columns(4), [cells(row_columns(4), 1)])
    header, row = path.read_text().splitlines()
    assert header == HEADER
    assert row.startswith("1,1.142857,1.285714,")
    assert row.endswith(",densenet,multiplicative,2026-01-02T03:04")
    assert len(row_columns(2)) == len(row_columns(4)) - 4


def test_always_the_whole_file(path: Path) -> None:
    columns = row_columns(2)
    for count in (1, 3, 2):  # a resumed task may have to take an epoch back
        write_csv(path, columns, [cells(columns, epoch) for epoch in range(1, count + 1)])
        found = read(path)
        assert [row["epoch"] for row in found] == [str(k) for k in range(1, count + 1)]
        assert all(None not in row and None not in row.values() for row in found)
        assert path.read_bytes().endswith(b"\n")
        assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7e-05, "7e-05"),
        (0.00028000000000000003, "0.00028"),
        (4.605170249938965, "4.60517"),
        (33.33333333333333, "33.33333"),
        (100.0, "100"),
        (0.0, "0"),
        (12345678.9, "1.234568e+07"),
        (3, "3"),
        (10_000_000, "10000000"),
        (math.nan, "nan"),
        ("a,b", '"a,b"'),
        ("densenet", "densenet"),
    ],
)
def test_cells(path: Path, value: object, text: str) -> None:
    write_csv(path, ["a", "b"], [{"a": value, "b": 1}])
    assert path.read_text() == f"a,b\n{text},1\n"


def test_float_cells_keep_seven_digits(path: Path) -> None:
    values = [math.pi * 10**k for k in range(-9, 9)]
    write_csv(path, ["a"], [{"a": value} for value in values])
    assert [float(row["a"]) for row in read(path)] == pytest.approx(values, rel=5e-7)


def test_a_value_without_a_column_is_an_error(path: Path) -> None:
    write_csv(path, ["a"], [{"a": 1}])
    with pytest.raises(ValueError, match="b"):
        write_csv(path, ["a"], [{"a": 2, "b": 3}])
    assert path.read_text() == "a\n1\n"


# --- what a task writes --------------------------------------------------------------------------

RECIPE = """
output_dir: {folder}
rows:
  - {{model: densenet, fusion: multiplicative}}
  - {{model: resnet, fusion: multiplicativeAddition, alpha: 0.5}}
data: {{name: synthetic, num_classes: 4, train_images: 200, test_images: 40, image_size: 16}}
models:
  densenet: {{growth: 4, blocks: [2], stem: 8}}
  resnet: {{width: 8, blocks: [1]}}
experts: {{epochs: 3}}
fusion: {{epochs: 3}}
logs: {{tensorboard: false}}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path / "fusion_checkpoints"))
    return plan_study(load_recipe(path), "recipe.yaml")


def make_history(heads: int, rates: dict[str, float]) -> list[EpochMetrics]:
    """Numbers no two of which agree, so that none can stand in the wrong column unseen."""
    count = itertools.count(1)

    def metrics(epoch: int) -> EpochMetrics:
        return EpochMetrics(
            epoch=epoch,
            learning_rates={name: rate / epoch for name, rate in rates.items()},
            loss=next(count) + 0.5,
            train_losses=[next(count) + 0.25 for _ in range(heads)],
            train_accuracies=[next(count) + 0.125 for _ in range(heads)],
            val_losses=[next(count) + 0.75 for _ in range(heads)],
            val_accuracies=[next(count) + 0.0625 for _ in range(heads)],
            images=1000,
            train_seconds=4.0 * epoch,
            seconds=5.0 * epoch,
            timestamp=f"2026-01-0{epoch}T00:00:00+00:00",
        )

    return [metrics(epoch) for epoch in (1, 2, 3)]


def report(study: Study, name: str, history: list[EpochMetrics]) -> None:
    task = next(task for task in study.tasks if task.name == name)
    with TaskLog(study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(study, task, Record(), log, torch.device("cpu"))
        for epoch in range(1, len(history) + 1):
            reporter.epoch(history[:epoch], BestEpoch(1, 50.0, 1.0))
        reporter.close()


RATES = {"experts": 1e-4, "fusion": 5e-4, "global_head": 8e-4}


def test_the_seeds_analysis_of_a_rows_log(study: Study) -> None:
    """The snippet of the original readme, with csv in place of pandas."""
    history = make_history(5, RATES)
    for row in study.rows:
        report(study, row.name, history)
    logs = study.layout.output_dir / "csv_logs"
    densenet = read(logs / "densenet_fusions/densenet_multiplicative_training_log.csv")
    assert float(densenet[-1]["experts_lr"]) == pytest.approx(1e-4 / 3)
    # a row with an alpha of its own has a file of its own, so that no two rows share one
    resnet = read(logs / "resnet_fusions/resnet_multiplicativeAddition-alpha0.5_training_log.csv")
    assert float(resnet[-1]["fusion_lr"]) == pytest.approx(5e-4 / 3)
    assert {row["alpha"] for row in resnet} == {"0.5"}
    assert {row["alpha"] for row in densenet} == {"1"}


def test_every_number_of_a_row_stands_in_its_column(study: Study) -> None:
    history = make_history(5, RATES)
    report(study, study.rows[0].name, history)
    path = study.layout.row("densenet", "multiplicative").csv
    assert path.read_text().splitlines()[0] == HEADER
    found = read(path)
    assert len(found) == 3
    for row, n in zip(found, history, strict=True):
        expected: dict[str, Any] = {
            "epoch": n.epoch,
            "train_loss": n.loss,
            "train_accuracy": n.train_accuracies[0],
            "val_loss": n.val_losses[0],
            "val_accuracy": n.val_accuracies[0],
            "experts_lr": n.learning_rates["experts"],
            "fusion_lr": n.learning_rates["fusion"],
            "global_head_lr": n.learning_rates["global_head"],
            "loss_global": n.train_losses[0],
            "loss_individual": sum(n.train_losses[1:]),
            "loss_total": n.loss,
            "images_per_second": 250 / n.epoch,
            "seconds": 5 * n.epoch,
            "alpha": 1,
        }
        for k in range(4):
            expected[f"expert_{k}_accuracy"] = n.val_accuracies[1 + k]
            expected[f"expert_{k}_loss"] = n.val_losses[1 + k]
        for column, value in expected.items():
            assert float(row[column]) == pytest.approx(value, rel=1e-6), column
        texts = {"model": "densenet", "fusion_type": "multiplicative", "timestamp": n.timestamp}
        assert {column: row[column] for column in texts} == texts
        assert row.keys() == {*expected, *texts}


def test_every_number_of_an_expert_stands_in_its_column(study: Study) -> None:
    history = make_history(1, {"expert": 0.1})
    history[2] = dataclasses.replace(history[2], val_accuracies=[1.5])  # a bad last epoch
    report(study, "expert-resnet-2", history)
    path = study.layout.output_dir / "csv_logs/resnet_experts/resnet_expert_2_training_log.csv"
    assert path.read_text().splitlines()[0] == ",".join(EXPERT_COLUMNS)
    best = [history[0].val_accuracies[0], *[history[1].val_accuracies[0]] * 2]
    for row, n, best_accuracy in zip(read(path), history, best, strict=True):
        expected = {
            "epoch": n.epoch,
            "train_loss": n.loss,
            "train_accuracy": n.train_accuracies[0],
            "val_loss": n.val_losses[0],
            "val_accuracy": n.val_accuracies[0],
            "lr": n.learning_rates["expert"],
            "best_val_accuracy": best_accuracy,
            "images_per_second": 250 / n.epoch,
            "seconds": 5 * n.epoch,
            "expert": 2,
        }
        for column, value in expected.items():
            assert float(row[column]) == pytest.approx(value, rel=1e-6), column
        assert (row["model"], row["timestamp"]) == ("resnet", n.timestamp)
        assert row.keys() == {*expected, "model", "timestamp"}


def test_a_task_that_takes_an_epoch_back_has_it_once(study: Study) -> None:
    task, history = study.row_tasks[0], make_history(5, RATES)
    again = [history[0], dataclasses.replace(history[1], loss=7.5)]
    with TaskLog(study.layout.task_log(task.name), task.name) as log:
        reporter = TaskReporter(study, task, Record(), log, torch.device("cpu"))
        for epochs in (history, again, [*again, history[2]]):
            reporter.resumed(epochs, BestEpoch(1, 50.0, 1.0))
            found = read(study.layout.row(task.model, task.row.variant).csv)
            assert [float(row["train_loss"]) for row in found] == [each.loss for each in epochs]


# --- TensorBoard ---------------------------------------------------------------------------------


def launch(directory: Path, first: int, last: int, offset: float) -> None:
    """One launch's part of a task's epochs; launches are ordered by the second they start in."""
    time.sleep(1.01 - time.time() % 1)
    log = TensorBoardLog(directory, first, {"recipe": "    seed: 42"})
    for epoch in range(first, last + 1):
        scalars = {"accuracy/validation": offset + epoch, "loss/train": offset - epoch}
        log.scalars(scalars, epoch)
    log.close()


def test_tensorboard_has_every_epoch_once_after_resumes(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = tmp_path / "tensorboard" / "task-0-resnet-concatenation"
    launch(directory, 1, 5, 0.0)
    launch(directory, 3, 6, 100.0)  # epochs 3 to 5 were not saved, so they are done again
    launch(directory, 6, 8, 200.0)
    events = accumulator.EventAccumulator(str(directory))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"accuracy/validation", "loss/train"}
    found = [(event.step, event.value) for event in events.Scalars("accuracy/validation")]
    offsets = {1: 0, 2: 0, 3: 100, 4: 100, 5: 100, 6: 200, 7: 200, 8: 200}
    assert found == [(epoch, offset + epoch) for epoch, offset in offsets.items()]
    losses = [(event.step, event.value) for event in events.Scalars("loss/train")]
    assert losses == [(epoch, offset - epoch) for epoch, offset in offsets.items()]
    assert len(events.Tensors("custom_scalars__config__")) == 1
    (text,) = events.Tensors("recipe/text_summary")  # once, not once a launch
    assert text.tensor_proto.string_val == [b"    seed: 42"]


def test_tensorboard_of_another_experiment_at_the_same_path_is_hidden(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    launch(tmp_path, 1, 5, 0.0)
    time.sleep(1.01 - time.time() % 1)
    log = TensorBoardLog(tmp_path, 1, {"recipe": "    seed: 7"})
    log.scalars({"accuracy/validation": 50.0}, 1)
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("accuracy/validation")] == [(1, 50.0)]
    assert events.Tensors("recipe/text_summary")[-1].tensor_proto.string_val == [b"    seed: 7"]


def test_tensorboard_is_readable_while_it_runs(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TensorBoardLog(tmp_path, 1, {})
    for epoch in (1, 2):
        log.scalars({f"x/{k}": float(epoch) for k in range(50)}, epoch)
        events = accumulator.EventAccumulator(str(tmp_path))
        events.Reload()
        for k in range(50):
            assert [event.step for event in events.Scalars(f"x/{k}")] == list(range(1, epoch + 1))
    log.close()


def test_what_tensorboard_shows_of_a_run(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    log = TensorBoardLog(tmp_path, 1, {})
    pixels = torch.randint(0, 256, (3, 8, 24), dtype=torch.uint8)
    log.image("augmented", pixels)
    log.outcome({"fusion": "concatenation", "alpha": 0.5, "blocks": [1, 2], "lr": None}, {"m": 7.0})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("augmented")
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert np.array_equal(shown, pixels.permute(1, 2, 0).numpy())
    assert [event.value for event in events.Scalars("m")] == [7.0]
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info
    found = {name: value.WhichOneof("kind") for name, value in session.hparams.items()}
    kinds = {"fusion": "string_value", "alpha": "number_value", "blocks": "string_value"}
    assert found == kinds
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    tags = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    assert layout.category[0].chart[0].title == "fused accuracy on validation"
    assert all(re.compile(tag) for tag in tags)


# --- Weights & Biases ----------------------------------------------------------------------------


def test_projects_are_those_of_the_readme() -> None:
    assert PROJECTS == {
        "densenet": "MCN_DenseNet_Fusion",
        "resnet": "MCN_ResNet_Fusion",
        "improved_wide_resnet": "MCN_ImprovedWideResNet_Fusion",
        "resnext": "MCN_ResNeXt_Fusion",
    }


def wandb_runs(directory: Path, words: bytes, count: int) -> list[bytes]:
    """The `count` files of offline runs that mention `words`.

    Waits for them: wandb's own process may still be flushing when close() returns.
    """
    deadline = time.monotonic() + 15
    while True:
        contents = [run.read_bytes() for run in directory.glob("wandb/offline-run-*/*.wandb")]
        found = [content for content in contents if words in content]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, f"{len(found)} runs mention {words!r}"
        time.sleep(0.05)


def test_wandb_offline_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")  # nobody listens there
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for model, epochs in (("resnext", (1, 2)), ("resnext", (3,)), ("an_own_model", (1,))):
        log = WandbLog(
            tmp_path,
            task=f"task-3-{model}-concatenation",
            model=model,
            mode="offline",
            settings={"seed": 42, "models.resnext.blocks": [1, 2]},
            run_id=f"demo-task-3-{model}",
        )
        if 1 in epochs:
            log.image("augmented", torch.zeros(3, 8, 16, dtype=torch.uint8))
        for epoch in epochs:
            log.scalars({"accuracy/validation": 50.25 + epoch}, epoch)
        log.outcome({"seed": 42}, {"result/test_fused": 61.125})
        log.close()
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/augmented*.png"))) == 2
    assert wandb_runs(tmp_path, b"61.125", 3)
    assert wandb_runs(tmp_path, b"MCN_an_own_model_Fusion", 1)
    for words in (b"MCN_ResNeXt_Fusion", b"task-3-resnext-concatenation", b"demo-task-3-resnext"):
        assert wandb_runs(tmp_path, words, 2)
    (first,) = wandb_runs(tmp_path, b"52.25", 1)
    assert b"51.25" in first
    (second,) = wandb_runs(tmp_path, b"53.25", 1)
    assert b"51.25" not in second
    for content in (first, second):
        assert b"MCN_ResNeXt_Fusion" in content


def test_tasks_side_by_side_have_wandb_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    about: dict[str, Any] = {"model": "resnet", "mode": "offline", "settings": {}}
    names = ("expert-resnet-0", "expert-resnet-1")
    logs = [WandbLog(tmp_path, task=name, run_id=name, **about) for name in names]
    for epoch in (1, 2):
        for k, log in enumerate(logs):
            log.scalars({"accuracy": 10 * k + epoch + 0.125}, epoch)
    for log in logs:
        log.close()
    for k, name in enumerate(names):
        (run,) = wandb_runs(tmp_path, name.encode(), 1)
        assert all(f"{10 * k + epoch}.125".encode() in run for epoch in (1, 2))
        assert names[1 - k].encode() not in run


# --- text ----------------------------------------------------------------------------------------

TASK = "task-0-densenet-multiplicative"


def test_lines_have_the_tasks_prefix_and_the_time(tmp_path: Path) -> None:
    path = tmp_path / "logs" / f"{TASK}.log"
    with TaskLog(path, TASK) as log:
        log.line("epoch 1/3 loss 2.5")
        first = path.read_text()  # there at once, for whoever follows it
        log.line("several\nlines  and\tgaps\n")
    assert re.fullmatch(rf"\[{TASK}\] \d\d:\d\d:\d\d epoch 1/3 loss 2\.5\n", first)
    second = path.read_text().removeprefix(first)
    assert re.fullmatch(rf"\[{TASK}\] \d\d:\d\d:\d\d several lines and gaps\n", second)


def test_details_are_marked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with TaskLog(path, TASK) as log:
        log.details("Traceback:\n  File 'ü.py', line 1\n\nValueError: no\n\n")
    assert path.read_text(encoding="utf-8").splitlines() == [
        f"[{TASK}] | Traceback:",
        f"[{TASK}] |   File 'ü.py', line 1",
        f"[{TASK}] | ",
        f"[{TASK}] | ValueError: no",
    ]


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    for text in ("first launch", "second launch"):
        with TaskLog(path, TASK) as log:
            log.line(text)
    lines = path.read_text().splitlines()
    assert [line.rsplit(maxsplit=2)[1] for line in lines] == ["first", "second"]


def test_a_log_is_closed_when_the_task_dies(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TaskLog(tmp_path / "x.log", TASK) as log:
        raise KeyError
    with pytest.raises(ValueError, match="closed"):
        log.line("too late")
