"""Real launches: torchrun over gloo, launch.sh, one process alone."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionrun.common.distributed import usable_cpus
from fusionrun.components.manifest import read_manifest
from fusionrun.components.store import load_model
from fusionrun.logs.csv import row_columns
from tests.tiny import (
    FUSIONS,
    ROOT,
    alone,
    csv_numbers,
    environment,
    launch_sh,
    row_weights,
    torchrun,
    write_recipe,
)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of four rows on four ranks."""
    folder = tmp_path_factory.mktemp("four_ranks")
    done = torchrun("train", write_recipe(folder), ranks=4, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.mark.skipif(usable_cpus() < 2, reason="a rank that is idle has a core to leave")
def test_the_last_row_uses_the_cores_of_ranks_that_have_nothing_left(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    long = ("fusion.epochs=40", "checkpoint.every_epochs=40")  # for the rank to see who is idle
    row = ("rows=[{model: resnet, fusion: concatenation}]", *long, "logs.tensorboard=false")
    done = torchrun("train", recipe, *row, ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    log = tmp_path / "out/logs/task-0-resnet-concatenation.log"
    assert (
        "computes 2 of its experts at a time, with cores of ranks without work" in log.read_text()
    )
    done = alone("train", recipe, *row, "output_dir=alone", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found, expected = (
        read_manifest(tmp_path / out / "resnet_fusions/concatenation/manifest.json")
        for out in ("out", "alone")
    )
    assert found.weights == expected.weights and found.test == expected.test


def expected_files() -> set[str]:
    """The fixed file set of a study of TINY, but for fusionrun's own bookkeeping."""
    files = {"recipe.yaml", "status.json", "results.csv", "results.md", "results.svg"}
    files |= {f"splits/{name}.npy" for name in ("expert_train_indices", "fusion_holdout_indices")}
    files |= {"splits/split_meta.json"}
    for index, (model, fusion) in enumerate(FUSIONS.items()):
        row = f"{model}_fusions/{fusion}"
        files |= {f"{row}/manifest.json", f"{row}/checkpoint.pth"}
        files |= {f"{row}/fusion/fusion_module_best.pth", f"{row}/global/global_head_best.pth"}
        files |= {f"csv_logs/{model}_fusions/{model}_{fusion}_training_log.csv"}
        files |= {f"logs/task-{index}-{model}-{fusion}.log"}
        for k in range(2):
            files |= {f"{row}/experts/expert_{k}_best.pth"}
            files |= {f"expert_checkpoints/{model}/expert_{k}_best.pth"}
            files |= {f"csv_logs/{model}_experts/{model}_expert_{k}_training_log.csv"}
            files |= {f"logs/expert-{model}-{k}.log"}
    return files


def test_four_ranks_write_exactly_the_fixed_file_set(four_ranks: Path) -> None:
    out = four_ranks / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/")}
    visible = {name for name in found - events if not any(p[0] == "." for p in name.split("/"))}
    assert visible == expected_files()
    tasks = {name.removeprefix("logs/").removesuffix(".log") for name in visible if "logs/" in name}
    tasks = {name for name in tasks if name.startswith(("task-", "expert-"))}
    assert {name.split("/")[1] for name in events} == tasks
    assert not list((out / ".fusionrun").rglob("*.pth"))  # saved experts need no resume state


def test_a_small_validation_is_warned_of_once_at_the_start_and_with_the_results(
    four_ranks: Path,
) -> None:
    start, _, end = (four_ranks / "stdout.txt").read_text().partition("Test accuracy in percent")
    assert start.count("warning: validation has") == 1
    assert " ".join(end.split()).count("Warning: validation has") == 1
    assert (four_ranks / "out/results.md").read_text().count("Warning: validation has") == 1


def test_every_row_of_the_csv_is_there_once(four_ranks: Path) -> None:
    for model, fusion in FUSIONS.items():
        name = f"out/csv_logs/{model}_fusions/{model}_{fusion}_training_log.csv"
        with (four_ranks / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == row_columns(2)
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        assert {row["fusion_type"] for row in rows} == {fusion}
        for row in rows:
            total = float(row["loss_global"]) + float(row["loss_individual"])
            assert float(row["loss_total"]) == pytest.approx(total, rel=1e-5)  # alpha is 1


def test_each_rank_trained_its_own_row(four_ranks: Path) -> None:
    for index, (model, fusion) in enumerate(FUSIONS.items()):
        log = (four_ranks / f"out/logs/task-{index}-{model}-{fusion}.log").read_text()
        assert f"starts on rank {index}, cpu, 1 threads" in log
        assert all(
            line.startswith(f"[task-{index}-{model}-{fusion}] ") for line in log.splitlines()
        )


def test_off_a_terminal_there_are_plain_lines_one_a_task_and_epoch(four_ranks: Path) -> None:
    text = (four_ranks / "stdout.txt").read_text()
    assert "\x1b" not in text and "\r" not in text
    for index, (model, fusion) in enumerate(FUSIONS.items()):
        lines = [x for x in text.splitlines() if x.startswith(f"[task-{index}-{model}-{fusion}] ")]
        assert sum(" epoch " in line for line in lines) == 3


def test_status_json_tells_how_it_ended(four_ranks: Path) -> None:
    status = json.loads((four_ranks / "out/status.json").read_text())
    assert status["state"] == "done" and status["progress"] == 1.0
    assert len(status["tasks"]) == 12 and {task["state"] for task in status["tasks"]} == {"done"}
    assert [rank["state"] for rank in status["ranks"]] == ["finished"] * 4


def test_results_do_not_depend_on_how_many_ranks_worked(four_ranks: Path, tiny_study: Path) -> None:
    assert row_weights(tiny_study) == row_weights(four_ranks)
    assert csv_numbers(tiny_study) == csv_numbers(four_ranks)


def test_the_same_command_again_repeats_nothing(four_ranks: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (four_ranks / "out").rglob("*.pth")}
    done = alone("train", four_ranks / "tiny.yaml", cwd=four_ranks)
    assert done.returncode == 0, done.stderr
    assert "starts on rank" not in done.stdout and "all rows done" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in (four_ranks / "out").rglob("*.pth")} == before


def test_evaluate_measures_the_saved_components_as_training_did(four_ranks: Path) -> None:
    before = (four_ranks / "out/results.csv").read_text()
    done = alone("evaluate", "out", cwd=four_ranks)
    assert done.returncode == 0, done.stderr
    assert (four_ranks / "out/results.csv").read_text() == before
    assert "n/a" not in before and len(before.splitlines()) == 5


def test_components_of_one_epoch_are_what_the_manifest_says(four_ranks: Path) -> None:
    directory = four_ranks / "out/resnet_fusions/multiplicativeAddition"
    manifest = read_manifest(directory / "manifest.json")
    model = load_model(directory)
    assert len(model.experts) == 2 and manifest.epoch in (1, 2, 3)
    path = "out/csv_logs/resnet_fusions/resnet_multiplicativeAddition_training_log.csv"
    with (four_ranks / path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["val_accuracy"]) for row in rows)
    assert float(rows[manifest.epoch - 1]["val_accuracy"]) == best
    assert manifest.val_accuracy == pytest.approx(best)


def test_the_documents_way_to_load_components(
    four_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        r"```python\n(.*?load_expert.*?)```",
        (ROOT / "docs/outputs.md").read_text(),
        re.S,
    )
    (four_ranks / "runs").mkdir()
    (four_ranks / "runs/demo").symlink_to(four_ranks / "out")
    monkeypatch.chdir(four_ranks)
    names: dict[str, Any] = {}
    exec(code, names)
    images = torch.randn(3, 3, 16, 16)
    features, logits = names["expert"](images)
    assert features.shape[0] == 3 and logits.shape == (3, 4)
    assert names["model"](images).expert_logits.shape == (3, 2, 4)


def test_the_seeds_one_row_command(four_ranks: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    experts = four_ranks / "out/expert_checkpoints/resnet"
    flags = ["--model", "resnet", "--fusion_type", "concatenation", "--output_dir", "one"]
    flags += ["--checkpoint_dir", str(experts), "--epochs", "1", "--batch_size", "16"]
    done = alone("train", recipe, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "one/resnet_fusions/concatenation/global/global_head_best.pth").is_file()
    assert not (tmp_path / "one/expert_checkpoints").exists()  # they were found, not trained
    assert "epoch 1/1" in done.stdout


def test_launch_sh_fails_one_row_and_trains_the_others(four_ranks: Path, tmp_path: Path) -> None:
    experts = tmp_path / "experts"
    for model in ("resnet", "resnext"):
        for k in range(2):
            source = four_ranks / f"out/expert_checkpoints/{model}/expert_{k}_best.pth"
            target = experts / model / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    broken = experts / "resnet/expert_1_best.pth"
    whole = broken.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # which only reading all of it shows
    broken.write_bytes(flipped)
    rows = "rows=[{model: resnet, fusion: concatenation}, {model: resnext, fusion: concatenation}]"
    words = [write_recipe(tmp_path), rows, f"experts.checkpoint_dir={experts}"]
    failed = launch_sh(*words, cwd=tmp_path, RANKS="2")
    assert failed.returncode == 3, failed.stdout + failed.stderr
    assert "[task-0-resnet-concatenation]" in failed.stdout and str(broken) in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    assert (tmp_path / "out/resnext_fusions/concatenation/manifest.json").is_file()
    broken.write_bytes(whole)
    mended = launch_sh(*words, cwd=tmp_path, RANKS="2")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "[task-1-resnext-concatenation]" not in mended.stdout  # done before, not done again


def test_launch_sh_passes_on_that_the_recipe_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    sleep = tmp_path / "bin/sleep"
    sleep.write_text('#!/bin/sh\necho "waits for ranks that have gone" >&2\n')
    sleep.chmod(0o755)
    path = f"{sleep.parent}:{os.environ['PATH']}"
    done = launch_sh(write_recipe(tmp_path), "fusion.epocs=3", cwd=tmp_path, RANKS="2", PATH=path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        line for line in done.stderr.splitlines() if line.startswith("fusionrun: ")
    ]
    assert "fusion.epocs" in done.stderr and "'epochs'" in done.stderr


def first_line(
    folder: Path,
    *words: str,
    gpus: int,
    sliced: tuple[int, ...] = (),
    lost: str = "",
    **more: str,
) -> str:
    """How launch.sh starts, with which GPUs, where nvidia-smi lists so many, and `lost`.

    Those of `sliced` are divided in two. A Python that only tells takes the place of torchrun.
    """
    lines = []
    for i in range(gpus):
        lines += [f"GPU {i}: NVIDIA H100 (UUID: GPU-{i})"]
        if i in sliced:
            lines += [f"  MIG 3g.40gb     Device  {k}: (UUID: MIG-{i}{k})" for k in range(2)]
    tools = {
        "nvidia-smi": ["cat <<X", *lines, lost, "X", "exit 15" if lost else ""],
        "python": ['[ "$1" = - ] || echo "sees ${CUDA_VISIBLE_DEVICES-all}"'],
    }
    for name, code in tools.items():
        (folder / name).write_text("\n".join(["#!/bin/sh", *code, ""]))
        (folder / name).chmod(0o755)
    more["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = launch_sh("none.yaml", *words, cwd=folder, **{"PYTHON": str(folder / "python"), **more})
    start, sees = done.stdout.splitlines()
    return f"{start.replace(f' with {folder}/python', '')}; {sees}"


@pytest.mark.parametrize(
    ("machine", "visible", "ranks"),
    [
        (1, None, "1 rank"),
        (2, None, "2 ranks"),
        (8, "5", "1 rank"),
        (8, "3,GPU-5f2a", "2 ranks"),
        (8, " 3, 4", "2 ranks"),
        (2, "0,7,1", "1 rank"),  # CUDA reads on no further than what isn't there
        (2, "", "4 ranks"),
        (2, "-1", "4 ranks"),
        (0, "0,1", "4 ranks"),
    ],
)
def test_a_rank_for_each_gpu_that_may_be_used(
    tmp_path: Path, machine: int, visible: str | None, ranks: str
) -> None:
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    sees = "all" if visible is None else visible
    expected = f"launch.sh: starting {ranks}; sees {sees}"
    assert first_line(tmp_path, gpus=machine, **more) == expected


@pytest.mark.parametrize(
    ("gpus", "wanted", "words"),
    [
        (8, {"RANKS": "6"}, "6 ranks; 2 of 8 GPUs stay idle (RANKS=8 uses all)"),
        (1, {"RANKS": "4"}, "4 ranks; they share 1 GPU"),
        (2, {"RANKS": "3"}, "3 ranks; they share 2 GPUs"),
        (8, {"RANKS": "2", "SLURM_GPUS_ON_NODE": "2"}, "2 ranks"),
        (8, {"SLURM_GPUS_ON_NODE": "4"}, "4 ranks"),
    ],
)
def test_other_ranks_than_gpus_are_said(
    tmp_path: Path, gpus: int, wanted: dict[str, str], words: str
) -> None:
    assert first_line(tmp_path, gpus=gpus, **wanted) == f"launch.sh: starting {words}; sees all"


def test_a_gpu_that_is_lost_takes_no_other_with_it(tmp_path: Path) -> None:
    lost = "Unable to determine the device handle for GPU 0000:3B:00.0: Unknown Error"
    assert first_line(tmp_path, gpus=3, lost=lost) == "launch.sh: starting 3 ranks; sees all"


def test_ranks_of_a_cpu_have_nothing_to_do_with_gpus(tmp_path: Path) -> None:
    line = first_line(tmp_path, "runtime.device=cpu", gpus=2, sliced=(0,))
    assert line == "launch.sh: starting 4 ranks; sees all"


def test_slices_of_divided_gpus_are_named_for_the_ranks(tmp_path: Path) -> None:
    line = first_line(tmp_path, gpus=3, sliced=(0, 2))
    assert line == "launch.sh: starting 5 ranks; sees MIG-00,MIG-01,GPU-1,MIG-20,MIG-21"
    line = first_line(tmp_path, gpus=3, sliced=(0, 2), CUDA_VISIBLE_DEVICES="2", RANKS="1")
    idle = "1 of 2 MIG slices stay idle (RANKS=2 uses all)"
    assert line == f"launch.sh: starting 1 rank; {idle}; sees MIG-20,MIG-21"


def test_gpus_that_torch_can_not_use_stop_a_launch_with_the_way_out(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    card = "0, GPU-0, Tesla V100, 7.0, 535.104, 32768, 1, 0, 30, 40, 250, Default, [N/A], 0, 0x0"
    tool.write_text(f"#!/bin/sh\necho '{card}'\n")
    tool.chmod(0o755)
    words = (write_recipe(tmp_path), "runtime.device=auto")
    done = launch_sh(*words, cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", RANKS="1")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("fusionrun: device: ") and line.endswith(
        "runtime.device=cpu trains without"
    )
    assert f"{sys.executable} -m pip install" in line and "whl/cu126" in line


def test_launch_sh_sets_up_the_packages_once_and_says_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "fusionrun/commands").mkdir(parents=True)
    (tmp_path / "fusionrun/__main__.py").touch()
    for name in ("launch.sh", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / "python"  # it has no packages until they are set up
    python.write_text(
        f"""#!/bin/bash
case $1$2 in
  -c*) exit 0 ;;
  -*requirements.txt) [[ -e {tmp_path}/done && $0 == *.venv* ]] ;;
  -mvenv) mkdir -p $3/bin && ln -sf $(readlink -f $0) $3/bin/python ;;
  -mfusionrun.launch.set_up) echo "$PYTHONPATH: ${{@:3}}" >&2; touch {tmp_path}/done ;;
  *) echo started ;;
esac
"""
    )
    python.chmod(0o755)

    def launch() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "launch.sh", "--version"],
            cwd=tmp_path,
            env=environment(PYTHON=str(python)),
            capture_output=True,
            text=True,
            timeout=50,
        )

    first = launch()
    assert first.returncode == 0 and first.stdout == "started\n", first.stderr
    assert "setting up" in first.stderr
    assert f"{tmp_path}: -r {tmp_path}/requirements.txt --editable {tmp_path}" in first.stderr
    assert launch().stderr == ""  # it's there
    (tmp_path / "done").unlink()  # a newer checkout needs more
    assert "lacks some of requirements.txt" in launch().stderr


@pytest.mark.parametrize("value", ["0", "-1", "auto", "1.5", "08", "2 "])
@pytest.mark.parametrize("name", ["RANKS", "MAX_RESTARTS"])
def test_launch_sh_refuses_what_is_no_number(tmp_path: Path, name: str, value: str) -> None:
    if (name, value) == ("MAX_RESTARTS", "0"):
        value = "never"
    done = launch_sh("tiny.yaml", cwd=tmp_path, **{name: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"launch.sh: {name}: found '{value}', expected a whole number")


def test_launch_shs_help_needs_no_python(tmp_path: Path) -> None:
    for word in ("--help", "-h"):
        done = launch_sh(word, cwd=tmp_path, PYTHON=str(tmp_path / "none"))
        assert done.returncode == 0 and not done.stderr
        assert all(name in done.stdout for name in ("RANKS", "PYTHON", "MAX_RESTARTS"))
        assert "Exit status: 0 all rows done" in done.stdout and "#" not in done.stdout


def test_launch_sh_says_which_python_it_expected(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2\n")
    old.chmod(0o755)
    for python, found in ((old, "Python 3.9.2"), (tmp_path / "none", "no Python")):
        done = launch_sh("tiny.yaml", cwd=tmp_path, PYTHON=str(python))
        assert done.returncode == 1
        assert done.stderr.splitlines()[0] == (
            f"launch.sh: {python} is {found}, expected Python 3.11 or newer; set PYTHON"
        )


@pytest.mark.parametrize(
    "words",
    [
        ["fusion.epocs=3", "tiny.yaml"],
        ["--only", "*/concatenation", "tiny.yaml", "seed=3", "fusion.epocs=3"],
        ["train", "--epochs", "3", "fusion.epocs=3", "tiny.yaml"],
    ],
)
def test_launch_sh_leaves_the_order_of_its_words_to_the_command(
    tmp_path: Path, words: list[str]
) -> None:
    """The mistake is found behind everything else, so all of it was understood."""
    write_recipe(tmp_path)
    done = launch_sh(*words, cwd=tmp_path, RANKS="1")
    assert done.returncode == 2
    assert done.stderr.startswith("fusionrun: override 'fusion.epocs=3': fusion.epocs")


def test_launch_sh_knows_recipes_by_name_and_the_demo_by_none(tmp_path: Path) -> None:
    for words in (["rows.0.model=vgg"], ["rows.0.model=vgg", "demo"]):
        done = launch_sh(*words, cwd=tmp_path, RANKS="1")
        assert done.returncode == 2
        assert "rows.0.model: found 'vgg'" in done.stderr
    done = launch_sh("train", "seed=3", cwd=tmp_path, RANKS="1")
    assert done.returncode == 2 and "train needs a RECIPE" in done.stderr


def test_launch_sh_runs_any_other_command_in_one_process(four_ranks: Path) -> None:
    done = launch_sh("evaluate", "out", cwd=four_ranks, RANKS="ignored")
    assert done.returncode == 0, done.stderr
    assert "densenet" in done.stdout
    for words in (["--version"], ["doctor", "--help"], ["train", "-h"], ["evaluate", "nowhere"]):
        ours, direct = launch_sh(*words, cwd=four_ranks), alone(*words, cwd=four_ranks)
        assert (ours.returncode, ours.stdout) == (direct.returncode, direct.stdout)
        assert ours.stderr == direct.stderr


@pytest.mark.parametrize("status", [1, 2])
def test_launch_sh_tells_what_never_started_from_what_stopped(tmp_path: Path, status: int) -> None:
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\n[ $1 != - ] || exit 0\necho no such option >&2\nexit {status}\n")
    stub.chmod(0o755)
    done = launch_sh("tiny.yaml", cwd=tmp_path, PYTHON=str(stub))
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first == "no such option"
    assert f"torchrun ended with status {status} before a rank could start" in last
    stub.write_text('#!/bin/sh\n[ $1 != - ] || exit 0\n: > "$FUSIONRUN_EXIT_FILE"\nexit 1\n')
    done = launch_sh("tiny.yaml", cwd=tmp_path, PYTHON=str(stub))
    assert done.returncode == 4 and "run the same command to go on" in done.stderr


def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_result(
    four_ranks: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    command = ["bash", str(ROOT / "launch.sh"), str(recipe)]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(PYTHON=sys.executable),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if " epoch 1/3 " in line:  # some row has begun
            break
    os.kill(running.pid, signal.SIGTERM)
    rest = running.stdout.read()
    assert running.wait(timeout=60) == 4, rest
    assert "SIGKILL" not in rest  # what torchrun says when its grace has ended too early
    assert "Traceback" not in rest
    resumed = launch_sh(recipe, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert row_weights(tmp_path) == row_weights(four_ranks)
    assert csv_numbers(tmp_path) == csv_numbers(four_ranks)
