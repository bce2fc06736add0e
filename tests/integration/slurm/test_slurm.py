"""Real jobs on a real Slurm: two nodes with four GPUs each, emulated on this machine."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import FUSIONS, ROOT, csv_numbers, environment, row_weights, write_recipe

pytestmark = pytest.mark.slurm

CLUSTER = ROOT / "tests/integration/slurm/cluster.sh"
WORDS = ("tiny.yaml", "fusion.epochs=12", "logs.tensorboard=false")  # long enough to be disturbed
DIRECTIVES = ("--gres=gpu:4", "--cpus-per-task=16", "--mem=128G")  # srun and salloc don't read them
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# stands in for Python: says what a node's torchrun would be given
STUB = """#!/bin/bash
[[ $1 != - ]] || exit 0  # launch.sh looks for the packages
ranks=$(grep -o 'nproc-per-node=[0-9]*' <<<"$*")
memory=$(scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID" | grep -o 'mem=[^,]*')
echo "node $SLURM_NODEID: gpus ${CUDA_VISIBLE_DEVICES:-none}, ${ranks#*=} ranks," \\
  "${SLURM_CPUS_ON_NODE} cpus, ${memory#*=}"
echo 0 >"$FUSIONRUN_EXIT_FILE"
"""


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    """A cluster for these tests, gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons and fake GPUs need root")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("no Slurm here; bash tests/integration/slurm/cluster.sh install")
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mknod(f"{folder}/gpu", stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("can't make device files here, and fake GPUs are such")
        os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
        try:
            subprocess.run(["bash", CLUSTER, "start", folder, "2"], check=True)
            yield
        finally:
            subprocess.run(["bash", CLUSTER, "stop", folder], check=True)
            del os.environ["SLURM_CONF"]


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A command as a user of the cluster types it."""
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(SLURM_CONF=os.environ["SLURM_CONF"], **{"PYTHON": sys.executable, **more}),
        capture_output=True,
        text=True,
        timeout=110,
    )


def submit(*options: str, cwd: Path, words: tuple[str, ...] = WORDS, **more: str) -> str:
    """The id of a new job, submitted from `cwd`."""
    done = run("sbatch", "--parsable", *options, ROOT / "launch.sh", *words, cwd=cwd, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def show(job: str) -> dict[str, str]:
    """What Slurm knows of the job."""
    command = ["scontrol", "show", "job", job]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def output(job: str, folder: Path) -> str:
    path = folder / f"fusionrun-{job}.out"
    return path.read_text() if path.exists() else ""


def wait_until(condition: Callable[[], bool], job: str, folder: Path) -> None:
    """Raises AssertionError when the job ends, or 100 s pass, without it."""
    deadline = time.monotonic() + 100
    going = True
    while not condition():
        assert going, f"{show(job)}\n{output(job, folder)}"
        going = show(job)["JobState"] not in OVER and time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_end(job: str, folder: Path) -> dict[str, str]:
    """What Slurm knows of the job when it's over."""
    wait_until(lambda: show(job)["JobState"] in OVER, job, folder)
    return show(job)


def wait_for_training(job: str, folder: Path) -> None:
    """Until some row is being trained."""
    wait_until(lambda: " epoch 1/12 " in output(job, folder), job, folder)


def processes(job: str) -> dict[int, dict[str, str]]:
    """The environments of all processes of the job, by process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            pairs = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if environ.get("SLURM_JOB_ID") == job:
            found[int(path.parent.name)] = environ
    return found


def workers(job: str) -> list[tuple[int, dict[str, str]]]:
    """(process id, environment) of every rank."""
    return [(pid, environ) for pid, environ in processes(job).items() if "RANK" in environ]


def parent(pid: int) -> int:
    """The torchrun of a rank."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """(folder, job id, what Slurm says) of the study on one node, with launch.sh's directives."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_recipe(folder)
    job = submit(cwd=folder)
    return folder, job, wait_for_end(job, folder)


def test_one_node(undisturbed: tuple[Path, str, dict[str, str]]) -> None:
    folder, job, said = undisturbed
    text = output(job, folder)
    assert (said["JobState"], said["ExitCode"]) == ("COMPLETED", "0:0"), text
    assert said["JobName"] == "fusionrun"
    for index, (model, fusion) in enumerate(FUSIONS.items()):
        log = (folder / f"out/logs/task-{index}-{model}-{fusion}.log").read_text()
        assert f"starts on rank {index}, " in log
        lines = [x for x in text.splitlines() if x.startswith(f"[task-{index}-{model}-{fusion}] ")]
        assert lines == log.splitlines()


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_slurms_warning_saves_and_the_job_continues_by_itself(
    undisturbed: tuple[Path, str, dict[str, str]], tmp_path: Path, nodes: str
) -> None:
    write_recipe(tmp_path)
    gpus = {"1": "0,1,2,3", "2": "0,1"}[nodes]
    job = submit(f"--nodes={nodes}", f"--gres=gpu:{len(gpus.split(','))}", cwd=tmp_path)
    wait_for_training(job, tmp_path)
    seen = [environ for _, environ in workers(job)]
    run("scancel", "--signal=USR1", "--batch", job, cwd=tmp_path)
    # every rank sees all GPUs of its node, and its local rank says which is its own
    places = {(env["SLURM_NODEID"], env["LOCAL_RANK"]) for env in seen}
    locals_ = range(len(gpus.split(",")))
    assert places == {(str(node), str(local)) for node in range(int(nodes)) for local in locals_}
    assert {env["CUDA_VISIBLE_DEVICES"] for env in seen} == {gpus}

    wait_until(lambda: show(job)["Restarts"] == "1", job, tmp_path)
    said = wait_for_end(job, tmp_path)
    text = output(job, tmp_path)
    assert (said["JobState"], said["ExitCode"], said["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    first, second = text.split(f"job {job} goes back into the queue")
    assert "stopped before the end" in first and "all rows done" in second
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert (status["nodes"], status["restarts"], status["job_id"]) == (int(nodes), 1, job)
    for path in row_weights(tmp_path):
        launch = json.loads((tmp_path / path).read_text())["launch"]
        assert (launch["nodes"], launch["job_id"]) == (int(nodes), job)
    done = re.findall(r"^\[(\S+)\] \S+ done$", text, re.M)
    assert len(done) == len(set(done)) == 12  # four rows and eight experts, each once
    assert row_weights(tmp_path) == row_weights(undisturbed[0])
    assert csv_numbers(tmp_path) == csv_numbers(undisturbed[0])


def start_one_row(folder: Path, epochs: int) -> tuple[str, str]:
    """(job id, rank that trains) of a job on two nodes, a rank each, with work for one of them."""
    write_recipe(folder)
    rows = "rows=[{model: resnext, fusion: concatenation}]"
    words = ("tiny.yaml", rows, f"fusion.epochs={epochs}", "logs.tensorboard=false")
    job = submit("--nodes=2", "--gres=gpu:1", cwd=folder, words=words)
    wait_until(lambda: f" epoch 5/{epochs} " in output(job, folder), job, folder)
    (rank,) = re.findall(r"\[task-\S+ \S+ starts on rank (\d)", output(job, folder))
    return job, rank


def test_a_killed_worker_starts_both_nodes_again(tmp_path: Path) -> None:
    """Even where the other node has nothing left to do but to wait."""
    job, rank = start_one_row(tmp_path, epochs=60)
    (pid,) = (pid for pid, environ in workers(job) if environ["RANK"] == rank)
    os.kill(pid, signal.SIGKILL)
    said = wait_for_end(job, tmp_path)
    text = output(job, tmp_path)
    assert (said["JobState"], said["ExitCode"], said["Restarts"]) == ("COMPLETED", "0:0", "0"), text
    log = (tmp_path / "out/logs/task-0-resnext-concatenation.log").read_text()
    assert log.count(" starts on rank ") == 2 and log.count(" continues after ") == 1
    status = json.loads((tmp_path / "out/status.json").read_text())
    assert (status["state"], status["nodes"]) == ("done", 2)


def test_a_job_that_loses_a_nodes_torchrun_saves_and_ends_with_4(tmp_path: Path) -> None:
    job, rank = start_one_row(tmp_path, epochs=1000)
    (idle,) = (pid for pid, environ in workers(job) if environ["RANK"] != rank)
    os.kill(parent(idle), signal.SIGKILL)
    said = wait_for_end(job, tmp_path)
    wait_until(lambda: not processes(job), job, tmp_path)
    text = output(job, tmp_path)
    assert (said["JobState"], said["ExitCode"]) == ("FAILED", "4:0"), text
    log = (tmp_path / "out/logs/task-0-resnext-concatenation.log").read_text()
    assert log.splitlines()[-1].endswith("stopped; the same command resumes from this checkpoint")
    assert "Traceback" not in text


def test_scancel_saves_and_leaves_nothing_running(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    words = ("tiny.yaml", "fusion.epochs=1000", "logs.tensorboard=false")
    job = submit("--nodes=2", "--gres=gpu:2", cwd=tmp_path, words=words)
    logs = [tmp_path / f"out/logs/task-{i}-{m}-{f}.log" for i, (m, f) in enumerate(FUSIONS.items())]

    def all_train() -> bool:
        return all(path.exists() and " epoch 1/1000 " in path.read_text() for path in logs)

    wait_until(all_train, job, tmp_path)
    assert len(workers(job)) == 4
    run("scancel", job, cwd=tmp_path)
    said = wait_for_end(job, tmp_path)
    wait_until(lambda: not processes(job), job, tmp_path)
    text = output(job, tmp_path)
    assert (said["JobState"], said["Restarts"]) == ("CANCELLED", "0"), text
    for path in logs:
        last = path.read_text().splitlines()[-1]
        assert last.endswith(" stopped; the same command resumes from this checkpoint")
    assert "Traceback" not in text
    assert not list((tmp_path / "out").rglob("*.tmp"))


BROKEN = """
from fusionrun.fusions import FusionModule

class Broken(FusionModule):
    def fuse(self, features):
        if self.training:  # which it isn't when a launch is planned
            raise ZeroDivisionError("a bug in somebody's fusion")
        return features.mean(dim=1)
"""


def test_slurm_sees_that_a_row_failed(
    undisturbed: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    write_recipe(tmp_path)
    (tmp_path / "broken.py").write_text(BROKEN)
    rows = [{"model": model, "fusion": fusion} for model, fusion in FUSIONS.items()]
    rows[-1]["fusion"] = "broken"  # begins on the second node
    experts = undisturbed[0] / "out/expert_checkpoints"
    job = submit(
        "--nodes=2",
        "--gres=gpu:2",
        cwd=tmp_path,
        words=(
            *("tiny.yaml", "fusion.epochs=1", f"experts.checkpoint_dir={experts}"),
            *("plugins={broken: broken.py:Broken}", f"rows={json.dumps(rows)}"),
        ),
    )
    said = wait_for_end(job, tmp_path)
    text = output(job, tmp_path)
    assert (said["JobState"], said["ExitCode"]) == ("FAILED", "3:0"), text
    assert "a bug in somebody's fusion" in text
    assert "[task-2-improved_wide_resnet-TransformerBase]" in text


# ------------------------------------------------------------------ what the ranks are given


@pytest.fixture
def stub(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    return str(path)


FOUR = "node 0: gpus 0,1,2,3, 4 ranks, 16 cpus, 128G"
TWICE = FOUR.replace("128G", "256G")  # Slurm gives the memory of a whole step


def told_by_nodes(text: str) -> list[str]:
    """What each node's stub has said, in their order; launch.sh says first what it starts."""
    return sorted(line for line in text.splitlines() if not line.startswith("launch.sh: starting"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [FOUR]),
        (["--nodes=2"], [TWICE, TWICE.replace("node 0", "node 1")]),
        (["--gres=gpu:2", "--mem=64G"], ["node 0: gpus 0,1, 2 ranks, 16 cpus, 64G"]),
        (["--gres=none", "--gpus-per-node=4"], [FOUR]),
        (["--gres=none", "--gpus-per-task=4"], [FOUR]),
        (
            ["--gres=none", "--gpus-per-task=1", "--ntasks-per-node=4", "--cpus-per-task=4"],
            [FOUR],
        ),
        (["--gpu-bind=single:1"], [FOUR]),
        (["--gres=none", "--cpus-per-task=2"], ["node 0: gpus none, 4 ranks, 2 cpus, 128G"]),
    ],
)
def test_a_job_gives_all_it_has_to_one_torchrun_a_node(
    stub: str, tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    job = submit(*options, cwd=tmp_path, PYTHON=stub)
    said = wait_for_end(job, tmp_path)
    assert said["ExitCode"] == "0:0", output(job, tmp_path)
    assert told_by_nodes(output(job, tmp_path)) == expected


@pytest.mark.parametrize(
    "command",
    [
        ["srun", *DIRECTIVES, ROOT / "launch.sh"],
        ["salloc", *DIRECTIVES, "bash", ROOT / "launch.sh"],
        ["salloc", *DIRECTIVES, "srun", ROOT / "launch.sh"],
    ],
    ids=["srun", "salloc bash", "salloc srun"],
)
def test_without_sbatch(stub: str, tmp_path: Path, command: list[str | Path]) -> None:
    done = run(*command, *WORDS, cwd=tmp_path, PYTHON=stub)
    assert done.returncode == 0, done.stderr
    assert told_by_nodes(done.stdout) == [FOUR]


def test_a_step_with_several_tasks_on_a_node_is_refused(stub: str, tmp_path: Path) -> None:
    done = run("srun", "--ntasks=2", ROOT / "launch.sh", *WORDS, cwd=tmp_path, PYTHON=stub)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("launch.sh: ")]
    assert "found 2 tasks on 1 node(s), expected one task per node" in line
