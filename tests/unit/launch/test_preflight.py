"""What every launch checks first: on what passes, and on what doesn't."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionrun.common.distributed import LaunchError
from fusionrun.launch import preflight
from fusionrun.launch.preflight import Finding
from fusionrun.training import checkpoint
from tests.unit.doctor.one_row import copy_of, files_below, plan, rank_info, see_gpus, states
from tests.unit.doctor.one_row import own_folders as own_folders
from tests.unit.doctor.one_row import trained as trained


def test_writable_folders_pass_and_nothing_is_left() -> None:
    study = plan()
    before = files_below(Path())
    (finding,) = preflight.check_folders(study)
    assert finding.state == "pass" and "out" in finding.found
    assert files_below(Path()) == before


def test_a_file_in_the_way_fails() -> None:
    Path("taken").write_text("")
    findings = list(preflight.check_folders(plan("output_dir=taken/out")))
    assert set(states(findings)) == {"fail"}
    assert "taken is a file" in findings[0].found and "output_dir" in findings[0].advice


def test_what_refuses_files_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "can't be written to (Permission denied)" in next(preflight.check_folders(plan())).found


def test_folders_that_nothing_is_written_to_need_no_permission(trained: Path) -> None:
    copy_of(trained)
    Path("readable").symlink_to(Path("out/expert_checkpoints").absolute())
    Path("taken").write_text("")
    study = plan("experts.checkpoint_dir=readable", "data.splits_dir=out/splits")
    (finding,) = preflight.check_folders(study)
    assert (finding.state, finding.found) == ("pass", "out")


@pytest.mark.parametrize(("free", "state"), [(0.5, "fail"), (1.1, "warn"), (100.0, "pass")])
def test_disk_space(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = plan()
    need = sum(preflight.expected_bytes(study, 1).values())
    usage = SimpleNamespace(free=free * need)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    (finding,) = preflight.check_disk(study, 1)
    assert finding.state == state
    assert ("free" in finding.advice) == (state == "fail")


def tensor_bytes(value: Any) -> int:
    """Of all tensors in what a checkpoint holds."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, dict) else value
    return sum(map(tensor_bytes, inner)) if isinstance(value, dict | list | tuple) else 0


def test_the_disk_estimate_is_what_a_launch_writes(trained: Path) -> None:
    """All files of weights, and the older resume state that the finished row has removed."""
    expected = sum(preflight.expected_bytes(plan(), 1).values())
    files = [*trained.rglob("*.pth"), trained / "resnet_fusions/concatenation/checkpoint.pth"]
    written = sum(tensor_bytes(checkpoint.load(path)) for path in files)
    assert expected == pytest.approx(written, rel=0.03)
    assert sum(preflight.expected_bytes(copy_of(trained), 1).values()) == 0


def test_experts_on_another_disk_are_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = preflight.expected_bytes(plan("experts.checkpoint_dir=elsewhere"), 1)
    assert needs[Path("elsewhere")] == sum(
        everything
        for name, (everything, _) in preflight.weight_bytes(plan()).items()
        if "exp" in name
    )


def test_frozen_experts_have_no_optimizer_state() -> None:
    free = preflight.weight_bytes(plan())["task-0-resnet-concatenation"]
    weights = preflight.weight_bytes(plan("controls=[frozen]"))
    frozen = weights["task-1-resnet-concatenation-frozen"]
    assert free[0] == free[1] == frozen[0] > frozen[1] > 0


def test_a_gpu_that_is_asked_for_and_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    (finding,) = preflight.check_device(plan("runtime.device=cuda"), 1)
    assert finding.state == "fail" and "runtime.device=auto" in finding.advice


def test_gpus_that_are_there_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    (finding,) = preflight.check_device(plan("runtime.device=auto"), 4)
    assert (finding.state, finding.found) == ("pass", "2 x H100; 4 ranks share them")
    (finding,) = preflight.check_device(plan("runtime.device=cpu"), 4)
    assert (finding.state, finding.found) == ("pass", "CPU")


def test_a_gpu_that_torch_overlooks_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: "nvidia0" in str(self) or there(self))
    (finding,) = preflight.check_device(plan("runtime.device=auto"), 1)
    assert finding.state == "warn" and "CUDA" in finding.advice


@pytest.mark.parametrize(
    ("ranks", "threads", "state", "advice"),
    [
        (2, "null", "pass", ""),
        (4, "1", "pass", ""),
        (8, "null", "pass", ""),
        (8, "2", "warn", "set runtime.threads=1"),
        (2, "4", "warn", "set runtime.threads=2"),
    ],
)
def test_threads(
    ranks: int, threads: str, state: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    (finding,) = preflight.check_threads(plan(f"runtime.threads={threads}"), ranks)
    assert finding.state == state and finding.advice.startswith(advice)


def test_missing_experts_will_be_trained() -> None:
    (finding,) = preflight.check_expert_files(plan())
    assert (finding.state, finding.found) == ("pass", "to be trained, 2 epochs each: 2 resnet")


def test_experts_that_should_be_somewhere_and_are_not_are_a_warning() -> None:
    (finding,) = preflight.check_expert_files(plan("experts.checkpoint_dir=typo"))
    assert finding.state == "warn" and "none in typo" in finding.found
    assert "experts.checkpoint_dir" in finding.advice


def test_a_broken_check_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("a", "pass", "fine")
        raise KeyError("b")

    findings = preflight.run_checks([("a", broken), ("c", lambda: [Finding("c", "pass", "")])])
    assert states(findings) == ["pass", "fail", "pass"]
    assert "KeyError" in findings[1].found and findings[1].name == "a"


def test_a_launch_that_can_start_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_below(Path())
    warnings: list[str] = []
    study = plan()
    files = files_below(Path())
    preflight.require_startable(study, rank_info(), warnings.append)
    assert warnings == [] and files_below(Path()) == files and before < files
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    preflight.require_startable(plan("runtime.threads=2"), rank_info(ranks=4), warnings.append)
    assert len(warnings) == 1 and warnings[0].startswith("CPU threads: 4 ranks x 2 threads on 1")


def test_a_launch_that_cannot_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(LaunchError, match=r"disk space: .* free in .*larger disk"):
        preflight.require_startable(plan(), rank_info(), lambda text: None)


def test_a_launch_survives_a_check_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise OverflowError("statvfs")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    warnings: list[str] = []
    preflight.require_startable(plan(), rank_info(), warnings.append)
    assert len(warnings) == 1 and "OverflowError" in warnings[0]
