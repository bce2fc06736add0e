"""What every launch checks first: on what passes, and on what doesn't."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusionrun.cli import main
from fusionrun.common.distributed import LaunchError
from fusionrun.data.datasets import Survey, survey
from fusionrun.doctor import estimate
from fusionrun.launch import preflight
from fusionrun.launch.checks import data, expert_files, folders, machine
from fusionrun.launch.checks.finding import Check, Finding, State, run_checks
from fusionrun.study.paths import expert_file
from fusionrun.training import checkpoint
from tests.unit.doctor.one_row import (
    ONE_ROW,
    copy_of,
    files_below,
    fixed_timing,
    plan,
    rank_info,
    see_gpus,
    states,
)
from tests.unit.doctor.one_row import own_folders as own_folders
from tests.unit.doctor.one_row import trained as trained


def test_writable_folders_pass_and_nothing_is_left() -> None:
    study = plan()
    before = files_below(Path())
    (finding,) = folders.check_folders(study)
    assert finding.state == "pass" and "out" in finding.found
    assert files_below(Path()) == before


def test_a_file_in_the_way_fails() -> None:
    Path("taken").write_text("")
    findings = list(folders.check_folders(plan("output_dir=taken/out")))
    assert set(states(findings)) == {"fail"}
    assert "taken is a file" in findings[0].found and "output_dir" in findings[0].advice


def test_what_refuses_files_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert "can't be written to (Permission denied)" in next(folders.check_folders(plan())).found


def test_folders_that_nothing_is_written_to_need_no_permission(trained: Path) -> None:
    copy_of(trained)
    Path("readable").symlink_to(Path("out/expert_checkpoints").absolute())
    Path("taken").write_text("")
    study = plan("experts.checkpoint_dir=readable", "data.splits_dir=out/splits")
    (finding,) = folders.check_folders(study)
    assert (finding.state, finding.found) == ("pass", "out")


@pytest.mark.parametrize(("free", "state"), [(0.5, "fail"), (1.1, "warn"), (100.0, "pass")])
def test_disk_space(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = plan()
    need = sum(folders.expected_bytes(study, 1).values())
    usage = SimpleNamespace(free=free * need)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    (finding,) = folders.check_disk(study, 1)
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
    expected = sum(folders.expected_bytes(plan(), 1).values())
    files = [*trained.rglob("*.pth"), trained / "resnet_fusions/concatenation/checkpoint.pth"]
    written = sum(tensor_bytes(checkpoint.load(path)) for path in files)
    assert expected == pytest.approx(written, rel=0.03)
    assert sum(folders.expected_bytes(copy_of(trained), 1).values()) == 0


def test_experts_on_another_disk_are_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = folders.expected_bytes(plan("experts.checkpoint_dir=elsewhere"), 1)
    assert needs[Path("elsewhere")] == sum(
        everything
        for name, (everything, _) in folders.weight_bytes(plan()).items()
        if "exp" in name
    )


def test_frozen_experts_have_no_optimizer_state() -> None:
    free = folders.weight_bytes(plan())["task-0-resnet-concatenation"]
    weights = folders.weight_bytes(plan("controls=[frozen]"))
    frozen = weights["task-1-resnet-concatenation-frozen"]
    assert free[0] == free[1] == frozen[0] > frozen[1] > 0


def test_a_gpu_that_is_asked_for_and_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    (finding,) = machine.check_device(plan("runtime.device=cuda"), 1)
    assert finding.state == "fail" and "runtime.device=auto" in finding.advice


def test_gpus_that_are_there_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    (finding,) = machine.check_device(plan("runtime.device=auto"), 4)
    assert (finding.state, finding.found) == ("pass", "2 x H100; 4 ranks share them")
    (finding,) = machine.check_device(plan("runtime.device=cpu"), 4)
    assert (finding.state, finding.found) == ("pass", "CPU")


def test_a_gpu_without_kernels_fails_before_its_tasks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    cards = {0: (7, 0), 1: (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", cards.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    (finding,) = machine.check_device(plan("runtime.device=auto"), 2)
    assert finding.state == "fail" and "compute capability 7.0" in finding.found
    assert "sm_75 sm_90" in finding.found and "whl/cu126" in finding.advice


def test_an_old_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 1)

    def name(index: int) -> str:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12040).")

    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    (finding,) = machine.check_device(plan("runtime.device=auto"), 1)
    assert finding.state == "fail" and "too old (found version 12040)" in finding.found
    assert "update the driver" in finding.advice and "\n" not in finding.line


def test_a_gpu_that_torch_overlooks_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    monkeypatch.setattr(machine, "has_device_files", lambda: True)
    (finding,) = machine.check_device(plan("runtime.device=auto"), 1)
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
    (finding,) = machine.check_threads(plan(f"runtime.threads={threads}"), ranks)
    assert finding.state == state and finding.advice.startswith(advice)


def test_missing_experts_will_be_trained() -> None:
    (finding,) = expert_files.check_expert_files(plan(), Survey("synthetic"))
    assert (finding.state, finding.found) == ("pass", "to be trained, 2 epochs each: 2 resnet")


def test_experts_that_should_be_somewhere_and_are_not_are_a_warning() -> None:
    (finding,) = expert_files.check_expert_files(
        plan("experts.checkpoint_dir=typo"), Survey("synthetic")
    )
    assert finding.state == "warn" and "none in typo" in finding.found
    assert "experts.checkpoint_dir" in finding.advice


def test_a_broken_check_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("a", "pass", "fine")
        raise KeyError("b")

    findings = run_checks([Check("a", broken), Check("c", lambda: [Finding("c", "pass", "")])])
    assert states(findings) == ["pass", "fail", "pass"]
    assert "KeyError" in findings[1].found and findings[1].name == "a"


def test_what_needs_a_check_that_failed_is_not_looked_at() -> None:
    looked: list[str] = []

    def look(name: str, state: State) -> Callable[[], list[Finding]]:
        return lambda: looked.append(name) or [Finding(name, state, "")]  # type: ignore[func-returns-value]

    checks = [
        Check("a", look("a", "fail")),
        Check("b", look("b", "pass"), needs=("a",)),
        Check("c", look("c", "pass"), needs=("b",)),
        Check("d", look("d", "fail")),
    ]
    findings = run_checks(checks)
    assert looked == ["a", "d"] and states(findings) == ["fail", "skip", "skip", "fail"]
    assert findings[1].found == "not looked at: a failed"


def test_a_launch_that_can_start_is_not_held_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(Path())
    study = plan()
    files = files_below(Path())
    preflight.require_startable(study, rank_info())
    assert capsys.readouterr().out == "" and files_below(Path()) == files and before < files
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    preflight.require_startable(plan("runtime.threads=2"), rank_info(ranks=4))
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("fusionrun: CPU threads: 4 ranks x 2 threads on 1")


def test_a_launch_survives_a_check_that_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> None:
        raise OverflowError("statvfs")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    preflight.require_startable(plan(), rank_info())
    (warning,) = capsys.readouterr().out.splitlines()
    assert "disk space: this check broke: OverflowError" in warning


def other_experts(**models: str) -> None:
    """Experts in out/, of another architecture than the recipe's."""
    study = plan()
    for k in range(2):
        weights = study.build_expert("resnet", 4, width=16).state_dict()
        checkpoint.save(expert_file(study.checkpoint_dir, "resnet", k), weights)


def a_file_for_a_folder() -> None:
    Path("pictures").write_text("")


def a_damaged_archive() -> None:
    Path("set").mkdir()
    Path("set/cifar-10-python.tar.gz").write_bytes(b"\x1f\x8bcut")


def a_folder_for_a_log() -> None:
    Path("out/logs").parent.mkdir()
    Path("out/logs").symlink_to("gone")


def cut_experts() -> None:
    path = expert_file(plan().checkpoint_dir, "resnet", 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04cut")


def no_package() -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]


def little_room() -> None:
    shutil.disk_usage = lambda folder: SimpleNamespace(free=1000)  # type: ignore[assignment,return-value]


def little_memory() -> None:
    for module in (survey, data):
        module.free_host_memory = lambda: 1000.0


WANDB = ("logs.wandb=online",)
BROKEN: dict[str, tuple[Callable[[], None] | None, tuple[str, ...], tuple[str, ...]]] = {
    "no data": (None, ("data.name=image_folder", "data.root=nowhere"), ("nowhere", "data.root")),
    "a file": (
        a_file_for_a_folder,
        ("data.name=image_folder", "data.root=pictures"),
        ("pictures",),
    ),
    "archive": (
        a_damaged_archive,
        ("data.name=cifar10", "data.root=set", "data.image_size=32"),
        ("checksum is wrong",),
    ),
    "architecture": (
        other_experts,
        (),
        ("expert_0_best.pth (expert_1_best.pth as well): ", "found shape (16"),
    ),
    "cut experts": (cut_experts, (), ("expert_1_best.pth", "move it away")),
    "log folder": (a_folder_for_a_log, (), ("out/logs is a link to what isn't there",)),
    "output_dir": (a_file_for_a_folder, ("output_dir=pictures/out",), ("pictures is a file",)),
    "no wandb": (no_package, WANDB, ("wandb isn't installed", "pip install wandb")),
    "no key": (None, WANDB, ("no W&B key for http://127.0.0.1:1", "wandb login")),
    "disk": (little_room, (), ("disk space: ", "free in")),
    "memory": (little_memory, (), ("MiB",)),
    "GPU": (None, ("runtime.device=cuda",), ("torch sees no GPU",)),
    "two things": (
        None,
        ("runtime.device=cuda", "data.name=image_folder", "data.root=nowhere", *WANDB),
        ("3 things are in the way", "- device: ", "- data: ", "- loggers: "),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_train_refuses_the_doctor_fails_and_nothing_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, words, expected = BROKEN[name]
    for module, attribute in ((shutil, "disk_usage"), (survey, "free_host_memory")):
        monkeypatch.setattr(module, attribute, getattr(module, attribute))  # put back at the end
    monkeypatch.setattr(data, "free_host_memory", data.free_host_memory)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=None))
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(estimate, "time_task", lambda *_: fixed_timing(0.001))
    see_gpus(monkeypatch, 0)
    Path("one.yaml").write_text(ONE_ROW)
    if broken is not None:
        broken()
    before = {path: path.is_file() and path.read_bytes() for path in sorted(Path().rglob("*"))}
    assert main(["train", "one.yaml", *words]) == 1
    refused = capsys.readouterr()
    assert all(text in refused.err for text in expected), refused.err
    assert "Traceback" not in refused.err and refused.err.count("fusionrun: ") == 1
    assert main(["doctor", "one.yaml", "--ranks", "1", *words]) == 1
    told = "".join(capsys.readouterr().out.split())
    for line in refused.err.replace("fusionrun: ", "").splitlines():
        found = line.removeprefix("- ").partition(": ")[2].partition(". ")[0]
        assert "".join(found.split()) in told.replace("->", ""), found
    after = {path: path.is_file() and path.read_bytes() for path in sorted(Path().rglob("*"))}
    assert after == before


@pytest.mark.parametrize(
    "plugin", ["gone.py:Net", "raising.py:Net", "other.py:Net"], ids=["missing", "raising", "other"]
)
def test_a_plugin_that_cannot_be_built_is_a_mistake_of_the_recipe(
    plugin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("raising.py").write_text("1 / 0")
    Path("other.py").write_text("class Net: ...")
    Path("one.yaml").write_text(ONE_ROW.replace("model: resnet", "model: own"))
    for verb in ("train", "doctor"):
        assert main([verb, "one.yaml", f"plugins.own={plugin}"]) == 2
        assert "plugins.own" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("change", ["rules", "data", "a cut file"])
def test_a_split_of_something_else_is_refused_before_the_data_is_read(
    change: str, trained: Path
) -> None:
    shutil.copytree(trained / "splits", "splits")
    words = {"rules": "data.val_fraction=0.5", "data": "data.train_images=80"}
    if change == "a cut file":
        path = Path("splits/fusion_holdout_indices.npy")
        path.write_bytes(path.read_bytes()[:-8])
    study = plan("data.splits_dir=splits", *([words[change]] if change in words else []))
    with pytest.raises(LaunchError, match=r"^splits: splits/.*data\.splits_dir"):
        preflight.require_startable(study, rank_info())


def test_files_that_may_not_be_the_meant_ones_are_a_warning(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = copy_of(trained)
    ours = expert_file(study.checkpoint_dir, "resnet", 0)
    shutil.rmtree("out/resnet_fusions")
    shutil.copy(ours, study.checkpoint_dir / "best_iid_resnet18_expert_0.pth")
    preflight.require_startable(study, rank_info())
    said = capsys.readouterr().out
    assert f"expert 0 of resnet: {ours} is taken, " in said and "resnet18_expert_0.pth is" in said
    ours.rename(study.checkpoint_dir / "best_noniid_resnet18_expert_0.pth")
    preflight.require_startable(study, rank_info())  # of both splits the recipe's is taken
    assert "is taken" not in capsys.readouterr().out
    (study.checkpoint_dir / "best_iid_resnet18_expert_0.pth").unlink()
    preflight.require_startable(study, rank_info())
    said = capsys.readouterr().out
    assert "best_noniid_resnet18_expert_0.pth was trained on another split, by its name," in said


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        (r"has numbers that are not finite in trunk\.stem\.weight\.", "not finite"),
        (r"is a link to nowhere/1\.pt, which isn't there: is its disk mounted\?", "a link"),
    ],
)
def test_an_expert_that_cannot_start_a_row_is_refused_before_others_are_trained(
    trained: Path, expected: str, change: str
) -> None:
    study = copy_of(trained)
    shutil.rmtree("out/resnet_fusions")
    first, second = (expert_file(study.checkpoint_dir, "resnet", k) for k in range(2))
    if change == "a link":
        second.unlink()
        second.symlink_to("nowhere/1.pt")
    else:
        state = checkpoint.load(second)["state_dict"]
        state["trunk.stem.weight"][0, 0, 0, 0] = float("nan")
        torch.save(state, second)
    first.unlink()  # which would be trained
    with pytest.raises(LaunchError, match=f"{second}: {expected}"):
        preflight.require_startable(study, rank_info())


def test_two_experts_of_the_same_weights_are_a_warning(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = copy_of(trained)
    first, second = (expert_file(study.checkpoint_dir, "resnet", k) for k in range(2))
    shutil.copy(first, second)
    shutil.rmtree("out/resnet_fusions")
    preflight.require_startable(study, rank_info())
    assert f"{first} and {second.name} have the same weights" in capsys.readouterr().out
