"""Who a process is, which device and how many threads it gets, and how it ends with its parent."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fusionrun.common.distributed import (
    LaunchError,
    RankInfo,
    choose_device,
    divide_threads,
    exchange,
    join,
    leave,
    listen_at,
    read_rank_info,
    usable_cpus,
    usual_ranks,
)

ROOT = Path(__file__).resolve().parents[3]

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}


ALONE = RankInfo(0, 1, 0, 1, 0, None)


def rank_info_of(local_rank: int, local_world_size: int) -> RankInfo:
    """On the second node; the first has five ranks."""
    return RankInfo(5 + local_rank, 5 + local_world_size, local_rank, local_world_size, 0, None)


# ------------------------------------------------------------------ read_place


def test_torchruns_variables_are_read() -> None:
    rank_info = read_rank_info(TORCHRUN)
    assert rank_info == RankInfo(5, 8, 1, 4, 2, None, has_launcher=True)
    assert rank_info.is_distributed
    assert rank_info.host


def test_without_torchrun_a_process_is_alone() -> None:
    for environ in ({}, {"PATH": "/bin", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}):
        rank_info = read_rank_info(environ)
        assert rank_info == RankInfo(0, 1, 0, 1, 0, None)
        assert not rank_info.is_distributed


def test_the_nodes_of_the_launch_are_counted() -> None:
    assert read_rank_info(TORCHRUN).nodes == 1
    assert read_rank_info({**TORCHRUN, "GROUP_WORLD_SIZE": "3"}).nodes == 3


def test_slurms_restarts_count_too() -> None:
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "3"}
    rank_info = read_rank_info({**TORCHRUN, **slurm})
    assert (rank_info.job_id, rank_info.restarts) == ("4711", 5)


@pytest.mark.parametrize("name", [name for name in TORCHRUN if not name.startswith("MASTER")])
@pytest.mark.parametrize("value", ["", "two", "-1", "1.5", " 1", "²"])
def test_a_variable_that_is_no_number(name: str, value: str) -> None:
    with pytest.raises(LaunchError) as caught:
        read_rank_info({**TORCHRUN, name: value})
    assert str(caught.value) == f"{name}: found {value!r}, expected a whole number"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": "8"}, ("RANK is 8", "WORLD_SIZE is 8")),
        ({"RANK": "9"}, ("RANK is 9", "WORLD_SIZE is 8")),
        ({"WORLD_SIZE": "0"}, ("WORLD_SIZE is 0",)),
        ({"LOCAL_WORLD_SIZE": "0"}, ("LOCAL_WORLD_SIZE", "found 0")),
    ],
)
def test_variables_that_make_no_sense(changes: dict[str, str], named: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError) as caught:
        read_rank_info({**TORCHRUN, **changes})
    assert all(part in str(caught.value) for part in named)


# ------------------------------------------------------------------ join and leave


def test_joining_alone_needs_no_peers_and_gives_a_store() -> None:
    store = join(ALONE)
    assert not dist.is_initialized()
    assert [store.add("claim", 1), store.add("claim", 1)] == [1, 2]
    store.set("outcome", "done")
    assert store.get("outcome") == b"done"
    assert not store.check(["elsewhere"])
    assert not join(ALONE).check(["claim"])  # a store of its own
    leave()


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_peers_that_nobody_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, TORCHRUN[name])
    monkeypatch.delenv(missing)
    with pytest.raises(LaunchError, match=f"{missing}: not set .*start with torchrun"):
        join(RankInfo(0, 2, 0, 2, 0, None))
    assert not dist.is_initialized()


def test_an_address_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "gpu-box-17.invalid")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(LaunchError, match=r"MASTER_ADDR: found 'gpu-box-17.invalid'.*--local-addr"):
        join(RankInfo(0, 2, 0, 1, 0, None, nodes=2))


def test_a_store_listens_at_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = listen_at("127.0.0.1", 0)
    assert descriptor is not None
    with socket.socket(fileno=descriptor) as listener:
        address, port = listener.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(LaunchError, match=f"can't listen at 127.0.0.1 port {port}: .*in use"):
            listen_at("127.0.0.1", port)
    assert listen_at("localhost", 0) is None  # other nodes don't come by this machine's loopback
    assert listen_at("192.0.2.1", 0) is None  # forwarded to this machine: it has no such address


RANK = """
import os, sys
import torch.distributed as dist
from fusionrun.common.distributed import exchange, join, leave, read_rank_info
from tests.chaos import listeners
rank_info = read_rank_info(os.environ)
store = join(rank_info)
told = exchange(store, rank_info, "numbers", f"rank {rank_info.rank}")
dist.barrier()
print(told, os.environ.get("GLOO_SOCKET_IFNAME"), *listeners([os.getpid()]))
dist.barrier()
leave()
"""


def joined(folder: Path, **environ: str) -> list[str]:
    """What two ranks of one machine print, whose launcher gave them `environ` as well."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "TORCHELASTIC_ERROR_FILE": str(folder / f"run/attempt_0/{rank}/error.json"),
                **environ,
            },
        )
        for rank in range(2)
    ]
    lines = []
    for process in ranks:
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 0, text
        lines.append(text.splitlines()[-1])
    return lines


def test_one_machine_meets_in_a_folder_of_the_launch(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run/attempt_0").mkdir()
    # no address is needed, and none that is given is asked for
    for line in joined(tmp_path, MASTER_ADDR="gpu-box-17.invalid", MASTER_PORT="1"):
        assert line.startswith("['rank 0', 'rank 1'] lo ")
        assert all(port.startswith("127.0.0.1:") for port in line.split()[5:])


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run/attempt_0").mkdir(parents=True)
    (tmp_path / "run").chmod(mode)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    for line in joined(tmp_path, MASTER_ADDR="gpu-box-17.invalid", MASTER_PORT=port):
        assert line.startswith("['rank 0', 'rank 1'] lo ")
        assert all(port.startswith("127.0.0.1:") for port in line.split()[5:])
    assert not list((tmp_path / "run/attempt_0").iterdir())


# ------------------------------------------------------------------ exchange


def two_ranks() -> tuple[RankInfo, RankInfo]:
    return RankInfo(0, 2, 0, 2, 0, None), RankInfo(1, 2, 1, 2, 0, None)


def test_all_ranks_get_what_each_says() -> None:
    store, told = dist.HashStore(), {}

    def say(rank_info: RankInfo) -> None:
        told[rank_info.rank] = exchange(store, rank_info, "x", f"ü{rank_info.rank}")

    threads = [threading.Thread(target=say, args=(rank_info,)) for rank_info in two_ranks()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {0: ["ü0", "ü1"], 1: ["ü0", "ü1"]}


def test_who_is_waited_for_is_said_and_the_wait_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fusionrun.common.distributed.WAITING_SECONDS", 0.1)
    with pytest.raises(LaunchError, match="rank 1 didn't start within 0 s"):
        exchange(dist.HashStore(), two_ranks()[0], "x", "", limit_seconds=0.3)
    assert capsys.readouterr().err == "fusionrun: waiting for rank 1\n"


def test_a_wait_can_be_ended_from_outside() -> None:
    def stop() -> None:
        raise InterruptedError

    started = time.monotonic()
    with pytest.raises(InterruptedError):
        exchange(dist.HashStore(), two_ranks()[0], "x", "", stop)
    assert time.monotonic() - started < 2


# ------------------------------------------------------------------ choose_device


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("gpus", "expected"), [(1, [0, 0, 0, 0]), (2, [0, 1, 0, 1]), (4, [0, 1, 2, 3])]
)
def test_local_ranks_spread_over_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    gpus: int,
    expected: list[int],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    devices = [choose_device(rank_info_of(rank, 4), wanted) for rank in range(4)]
    assert devices == [torch.device("cuda", index) for index in expected]


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for rank in range(4):
        assert choose_device(rank_info_of(rank, 4), "auto") == torch.device("cpu")


def test_a_gpu_that_is_wanted_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(LaunchError, match=r"runtime\.device is cuda.*runtime\.device=auto"):
        choose_device(ALONE, "cuda")


def test_the_cpu_is_taken_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device(rank_info_of(2, 4), "cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("MIG-1,MIG-2", ["MIG-1", "MIG-2", "MIG-1", "MIG-2"]),
        ("MIG-1, GPU-2 ,MIG-3", ["MIG-1", "GPU-2", "MIG-3", "MIG-1"]),
        ("GPU-1,GPU-2", ["GPU-1,GPU-2"] * 4),
        ("0,1", ["0,1"] * 4),
    ],
)
def test_slices_of_divided_gpus_go_one_to_a_rank(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: list[str]
) -> None:
    asked: list[str] = []

    def count() -> int:  # CUDA reads the variable once, when it's used first
        asked.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return 1

    monkeypatch.setattr(torch.cuda, "device_count", count)
    for rank in range(4):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)  # each rank is a process of its own
        assert choose_device(rank_info_of(rank, 4), "auto") == torch.device("cuda:0")
    assert asked == expected


def test_without_a_word_there_is_a_rank_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert usual_ranks("auto") == 8 and usual_ranks("cpu") == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2,MIG-3")
    assert usual_ranks("auto") == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert usual_ranks("auto") == 4


# ------------------------------------------------------------------ divide_threads


@pytest.fixture
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("same_threads_afterwards")
@pytest.mark.parametrize(
    ("cores", "ranks", "wanted", "expected"),
    [
        (8, 1, None, 8),
        (8, 4, None, 2),
        (8, 3, None, 2),
        (2, 4, None, 1),
        (8, 4, 5, 5),
        (1, 1, 2, 2),
    ],
)
def test_ranks_divide_the_cores_they_may_use(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, wanted: int | None, expected: int
) -> None:
    monkeypatch.setattr("fusionrun.common.distributed.usable_cpus", lambda: cores)
    assert divide_threads(rank_info_of(0, ranks), wanted) == expected
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("64", 8), ("", 8), ("0", 1)])
def test_what_slurm_gave_counts_even_where_the_mask_is_wider(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: int
) -> None:
    monkeypatch.setattr("fusionrun.common.distributed.cpu_limit", lambda: 8)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    assert usable_cpus() == expected


# ------------------------------------------------------------------ die_with_parent

CHILD = """
import signal, sys, time
from fusionrun.common.distributed import die_with_parent
die_with_parent()
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit()))
print("ready", flush=True)
time.sleep(30)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_rank_is_asked_to_stop_when_its_agent_is_killed() -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "ready\n"
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    # the rank holds the other end of the pipe: reading ends when it has ended
    assert agent.stdout.read() == "asked to stop\n"
    agent.stdout.close()
