"""The only reader of RANK, LOCAL_RANK and SLURM_*: who this process is, how it finds its peers."""

import ctypes
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import; whoever only asks for the rank needn't wait
    import torch
    from torch.distributed import Store

# A peer may hold the interpreter for minutes (a huge write, a cold file system) without being
# dead; a dead one closes its socket and raises at once, so the limit only has to be finite.
PEER_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class RankInfo:
    """Where a process stands in a launch."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    restarts: int  # of this node's workers by torchrun, and of the job by Slurm
    job_id: str | None  # Slurm's
    nodes: int = 1  # machines of the launch
    has_launcher: bool = False  # torchrun started this process and cares for it

    @property
    def host(self) -> str:
        return socket.gethostname()

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1


class LaunchError(Exception):
    """The launch can't start; the message says why and what to do."""


def read_rank_info(environ: Mapping[str, str]) -> RankInfo:
    """The rank that torchrun gave this process; alone where there is no torchrun.

    Raises LaunchError when the variables make no sense.
    """

    def number(default: int, *names: str) -> int:
        for name in names:
            if name in environ:
                if not environ[name].isdecimal():
                    raise LaunchError(f"{name}: found {environ[name]!r}, expected a whole number")
                return int(environ[name])
        return default

    rank, world_size = number(0, "RANK"), number(1, "WORLD_SIZE")
    local_world_size = number(1, "LOCAL_WORLD_SIZE")
    if rank >= world_size:
        raise LaunchError(f"RANK is {rank} but WORLD_SIZE is {world_size}; start with torchrun")
    if local_world_size < 1:
        raise LaunchError(f"LOCAL_WORLD_SIZE: found {local_world_size}, expected 1 or more")
    return RankInfo(
        rank=rank,
        world_size=world_size,
        local_rank=number(0, "LOCAL_RANK"),
        local_world_size=local_world_size,
        restarts=number(0, "TORCHELASTIC_RESTART_COUNT") + number(0, "SLURM_RESTART_COUNT"),
        job_id=environ.get("SLURM_JOB_ID"),
        nodes=number(1, "GROUP_WORLD_SIZE"),
        has_launcher="RANK" in environ,
    )


def join(rank_info: RankInfo) -> "Store":
    """Join the launch's processes; returns the store through which tasks are claimed.

    A process alone needs no peers and gets a store of its own. Raises LaunchError when it isn't
    said where the peers are.
    """
    import torch.distributed as dist

    if not rank_info.is_distributed:
        return dist.HashStore()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise LaunchError(
                f"{name}: not set although WORLD_SIZE is {rank_info.world_size}; start with "
                "torchrun"
            )
    store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=PEER_TIMEOUT)))
    if rank_info.local_world_size == rank_info.world_size:
        # torchrun keeps one store over restarts: without a prefix of its own, a restarted group
        # reads the addresses of its dead predecessors (pytorch issue 135712). On several nodes
        # the counts can differ; there launch.sh turns the sharing of the store off.
        store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=PEER_TIMEOUT
    )
    return dist.PrefixStore("tasks", store)


def leave() -> None:
    """Close what `join` opened."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(rank_info: RankInfo, wanted: str) -> "torch.device":
    """This rank's device; ranks share GPUs when there are fewer of them than ranks.

    A Slurm task that sees its own GPU only has a single device, and modulo picks it.
    Raises LaunchError when a GPU is asked for and none is there.
    """
    import torch

    count = torch.cuda.device_count() if wanted in ("auto", "cuda") else 0
    if count == 0:
        if wanted == "cuda":
            raise LaunchError(
                "runtime.device is cuda, but torch sees no GPU here; check nvidia-smi and "
                "CUDA_VISIBLE_DEVICES, or set runtime.device=auto"
            )
        return torch.device("cpu")
    return torch.device("cuda", rank_info.local_rank % count)


def divide_threads(rank_info: RankInfo, wanted: int | None) -> int:
    """CPU threads of this rank, set and returned: the cores it may use, divided by the ranks.

    More threads than cores is ruinous (about a tenth of the speed with twice as many), and the
    number decides the order of sums, so it's recorded with every checkpoint.
    """
    import torch

    cores = len(os.sched_getaffinity(0))
    threads = wanted or max(1, cores // rank_info.local_world_size)
    torch.set_num_threads(threads)
    return threads


def die_with_parent() -> None:
    """Get SIGTERM when torchrun's agent dies: no rank trains on as an orphan (Linux only)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)
