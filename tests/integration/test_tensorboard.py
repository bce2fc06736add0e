"""TensorBoard's files of a real study."""

import re
from pathlib import Path

import pytest

from fusionrun.components.manifest import read_manifest
from fusionrun.logs.tensorboard import LAYOUT
from tests.tiny import alone, write_recipe


def test_a_finished_row_is_in_tensorboard_with_settings_result_and_images(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = "rows=[{model: resnet, fusion: concatenation}]"
    done = alone("train", write_recipe(tmp_path), rows, "controls=[single]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen: set[str] = set()
    for task in ("task-0-resnet-concatenation", "task-1-resnet-single", "expert-resnet-0"):
        events = accumulator.EventAccumulator(str(tmp_path / "out/tensorboard" / task))
        events.Reload()
        seen |= set(events.Tags()["scalars"])
        (image,) = events.Images("augmented_training_images")
        assert (image.height, image.width % 16) == (16, 0)
        if task.startswith("task"):
            folder = task.split("-")[-1]
            manifest = read_manifest(tmp_path / f"out/resnet_fusions/{folder}/manifest.json")
            (result,) = events.Scalars("result/test_fused")
            assert result.value == pytest.approx(manifest.test["fused"])
            assert "_hparams_/session_start_info" in events.summary_metadata
    for charts in LAYOUT.values():  # no chart stays empty
        for _, tags in charts.values():
            assert any(re.search(tag, name) for tag in tags for name in seen), tags
