"""Several nodes without Slurm: a torchrun on each, meeting at an address, on shared files."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import descendants
from tests.tiny import alone, csv_numbers, environment, row_weights, write_recipe

WORDS = ("fusion.epochs=12", "logs.tensorboard=false")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study trained by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = alone("train", write_recipe(folder), *WORDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start_node(
    folder: Path,
    endpoint: str,
    *within: str,
    ranks: int = 2,
    words: tuple[str, ...] = WORDS,
    **more: str,
) -> subprocess.Popen[str]:
    """The README's command on one node; its output goes to a file."""
    command = [*within, sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes=2", f"--nproc-per-node={ranks}", "--max-restarts=3"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=tiny"]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [*command, "-m", "fusionrun", "train", "tiny.yaml", *words],
            cwd=folder,
            env=environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", **more),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def finish(nodes: list[subprocess.Popen[str]], folder: Path) -> str:
    """What the nodes said once all have ended well."""
    try:
        codes = [node.wait(timeout=100) for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
    text = (folder / "output.txt").read_text()
    assert codes == [0] * len(nodes), text
    return text


def assert_each_task_was_done_once(folder: Path, undisturbed: Path) -> None:
    logs = sorted((folder / "out/logs").glob("[te]*.log"))
    assert len(logs) == 12  # four rows and eight experts
    for path in logs:
        assert len(re.findall(r"\] \S+ done$", path.read_text(), re.M)) == 1, path
    assert row_weights(folder) == row_weights(undisturbed)
    assert csv_numbers(folder) == csv_numbers(undisturbed)


def test_two_nodes_share_the_tasks(tmp_path: Path, undisturbed: Path) -> None:
    write_recipe(tmp_path)
    endpoint = f"127.0.0.1:{free_port()}"
    text = finish([start_node(tmp_path, endpoint) for _ in range(2)], tmp_path)
    assert set(re.findall(r" starts on rank (\d)", text)) == {"0", "1", "2", "3"}
    assert_each_task_was_done_once(tmp_path, undisturbed)


def test_a_killed_process_starts_both_nodes_again(tmp_path: Path, undisturbed: Path) -> None:
    write_recipe(tmp_path)
    endpoint = f"127.0.0.1:{free_port()}"
    nodes = [start_node(tmp_path, endpoint) for _ in range(2)]
    wait_for(" epoch 1/12 ", tmp_path)
    kill_rank("0", nodes)  # the one that hosts the store of the claims
    finish(nodes, tmp_path)
    assert_each_task_was_done_once(tmp_path, undisturbed)
    attempts = [
        re.findall(r" (starts on|continues after)", path.read_text())
        for path in (tmp_path / "out/logs").glob("*.log")
    ]
    assert ["starts on", "starts on", "continues after"] in attempts


def test_a_rank_that_only_waits_is_started_again_too(tmp_path: Path) -> None:
    """With launch.sh ranks leave with 0, and a torchrun whose ranks all do starts none again."""
    write_recipe(tmp_path)
    endpoint = f"127.0.0.1:{free_port()}"
    rows = "rows=[{model: resnext, fusion: concatenation}]"
    words = (rows, "fusion.epochs=60", "logs.tensorboard=false")
    nodes = [
        start_node(
            tmp_path,
            endpoint,
            ranks=1,
            words=words,
            FUSIONRUN_EXIT_FILE=str(tmp_path / f"status{node}"),
        )
        for node in range(2)
    ]
    wait_for(" epoch 5/60 ", tmp_path)
    started = r"\[task-\S+ \S+ starts on rank (\d)"
    (busy,) = re.findall(started, (tmp_path / "output.txt").read_text())
    kill_rank(busy, nodes)
    text = finish(nodes, tmp_path)
    assert len(re.findall(started, text)) == 2 and text.count(" continues after ") == 1
    assert [(tmp_path / f"status{node}").read_text() for node in range(2)] == ["0\n", "0\n"]


def wait_for(words: str, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while words not in (text := (folder / "output.txt").read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def kill_rank(number: str, nodes: list[subprocess.Popen[str]]) -> None:
    (pid,) = (pid for node in nodes for pid in descendants(node.pid) if rank(pid) == number)
    os.kill(pid, signal.SIGKILL)


def rank(pid: int) -> str | None:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair).get("RANK")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable, whose names lead to their addresses."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        pytest.skip("network namespaces need root, ip and unshare")
    names = (f"fusionrun{os.getpid()}a", f"fusionrun{os.getpid()}b")
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}"]
    for number, name in enumerate(names, 1):
        commands += [f"-n {name} address add 10.77.0.{number}/24 dev cable"]
        commands += [f"-n {name} link set {device} up" for device in ("lo", "cable")]
    lines = ["127.0.0.1 localhost", f"10.77.0.1 {names[0]}", f"10.77.0.2 {names[1]}", ""]
    (tmp_path / "hosts").write_text("\n".join(lines))
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"can't make network namespaces here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on_host(name: str, folder: Path) -> tuple[str, ...]:
    """Runs what follows as if on a machine of that name, with its own network."""
    become = f'mount --bind {folder}/hosts /etc/hosts && hostname {name} && exec "$@"'
    return ("ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", become, "sh")


def test_two_hosts_with_networks_of_their_own(
    tmp_path: Path, undisturbed: Path, hosts: tuple[str, str]
) -> None:
    write_recipe(tmp_path)
    endpoint = f"{hosts[0]}:29500"
    finish([start_node(tmp_path, endpoint, *on_host(name, tmp_path)) for name in hosts], tmp_path)
    assert_each_task_was_done_once(tmp_path, undisturbed)
