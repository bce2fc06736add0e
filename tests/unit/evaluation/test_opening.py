"""Opening a finished study to measure it."""

import json
from pathlib import Path

import pytest
import torch

from fusionrun.common.distributed import LaunchError, read_rank_info
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


def test_a_gpu_that_torch_can_not_use_is_one_line(
    trained_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(device: torch.device) -> str:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12020).")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    study = stored_study(trained_study, ["runtime.device=auto"])
    with pytest.raises(LaunchError, match=r"too old \(found version 12020\).*device=cpu"):
        open_study(study, read_rank_info({}), print)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    with pytest.raises(LaunchError, match=r"Tesla V100, compute capability 7\.0.*whl/cu126"):
        open_study(study, read_rank_info({}), print)


@pytest.mark.parametrize(
    ("control", "validation", "is_told"),
    [
        ("detached", {}, True),  # of an older version
        ("detached", {"selected_by": "mean_probabilities"}, False),
        ("frozen", {}, False),
        (None, {}, False),
    ],
)
def test_detached_rows_that_the_fused_head_selected_are_told(
    trained_study: Path,
    tmp_path: Path,
    control: str | None,
    validation: dict[str, str],
    is_told: bool,
) -> None:
    out = copy_study(trained_study, tmp_path / "out")
    path, *_ = sorted(out.glob("*_fusions/*/manifest.json"))
    manifest = json.loads(path.read_text())
    known = {**manifest["validation"], **validation}
    path.write_text(json.dumps({**manifest, "control": control, "validation": known}))
    context = open_study(stored_study(out, []), read_rank_info({}), lambda text: None)
    told = [note for note in context.data.notes if "by the fused head" in note]
    assert len(told) == is_told and all(manifest["row"] in note for note in told)
