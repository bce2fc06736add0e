"""Opening a finished study to measure it."""

import json
from pathlib import Path

import pytest

from fusionrun.common.distributed import read_rank_info
from fusionrun.evaluation.opening import open_study
from fusionrun.study.stored import stored_study
from tests.tiny import copy_study


@pytest.mark.parametrize(
    ("trained_on", "said"), [("cuda:1", "trained on a GPU are measured on a CPU"), ("cpu", "")]
)
def test_rows_that_were_trained_on_another_kind_of_device_are_told(
    trained_study: Path, tmp_path: Path, trained_on: str, said: str
) -> None:
    out = copy_study(trained_study, tmp_path / "out")
    manifests = sorted(out.glob("*_fusions/*/manifest.json"))
    manifest = json.loads(manifests[0].read_text())
    manifests[0].write_text(json.dumps({**manifest, "device": trained_on}))
    lines: list[str] = []
    context = open_study(stored_study(out, []), read_rank_info({}), lines.append)
    notes = [note for note in context.data.notes if "trained on" in note]
    assert len(notes) == bool(said)
    assert [line for line in lines if "trained on" in line] == [f"fusionrun: {n}" for n in notes]
    assert all(said in note for note in notes)
