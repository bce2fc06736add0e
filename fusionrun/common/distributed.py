"""The only reader of RANK, LOCAL_RANK and SLURM_*: who this process is, how it finds its peers."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fusionrun.common.cpus import cpu_limit

if TYPE_CHECKING:  # torch takes seconds to import; whoever only asks for the rank needn't wait
    import torch
    from torch.distributed import Store

# A peer may hold the interpreter for minutes (a huge write, a cold file system) without being
# dead; a dead one closes its socket and raises at once, so the limit only has to be finite.
PEER_TIMEOUT = timedelta(minutes=30)
# torchrun starts all ranks at once; what keeps one that long is a cold file system at most.
JOIN_SECONDS = 600.0
SIOCGIFADDR = 0x8915  # Linux: an interface's IPv4 address
WAITING_SECONDS = 5.0  # until rank 0 says whom it waits for


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
    restarts_left: int = 0  # how often torchrun will start this node's workers again

    @property
    def host(self) -> str:
        return socket.gethostname()

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1

    @property
    def is_on_one_machine(self) -> bool:
        return self.nodes == 1 and self.local_world_size == self.world_size


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
    attempts = number(0, "TORCHELASTIC_MAX_RESTARTS") - number(0, "TORCHELASTIC_RESTART_COUNT")
    return RankInfo(
        rank=rank,
        world_size=world_size,
        local_rank=number(0, "LOCAL_RANK"),
        local_world_size=local_world_size,
        restarts=number(0, "TORCHELASTIC_RESTART_COUNT") + number(0, "SLURM_RESTART_COUNT"),
        job_id=environ.get("SLURM_JOB_ID"),
        nodes=number(1, "GROUP_WORLD_SIZE"),
        has_launcher="RANK" in environ,
        restarts_left=max(0, attempts) if "RANK" in environ else 0,
    )


def join(rank_info: RankInfo, between_polls: Callable[[], None] = lambda: None) -> "Store":
    """Join the launch's processes; returns the store through which tasks are claimed.

    On one machine that is a file and the loopback interface: no address, no name, no port that
    others could reach. A process alone needs no peers and gets a store of its own. `between_polls`
    is called several times a second while peers are waited for, and may raise. Raises LaunchError
    when it isn't said where the peers are, or when they don't come.
    """
    import torch.distributed as dist

    if not rank_info.is_distributed:
        return dist.HashStore()
    folder = _private_folder() if rank_info.is_on_one_machine else None
    store: Store
    if folder is not None:
        store = dist.FileStore(str(folder / "store"), rank_info.world_size)
    else:
        store = _tcp_store(rank_info, between_polls)
    # else gloo listens where the host's own name leads
    interface = "lo" if rank_info.is_on_one_machine else _interface_towards(*_master(rank_info))
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    exchange(store, rank_info, "joined", "", between_polls, limit_seconds=JOIN_SECONDS)
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        timeout=PEER_TIMEOUT,
    )
    return dist.PrefixStore("tasks", store)


def exchange(
    store: "Store",
    rank_info: RankInfo,
    topic: str,
    text: str,
    between_polls: Callable[[], None] = lambda: None,
    *,
    limit_seconds: float = PEER_TIMEOUT.total_seconds(),
) -> list[str]:
    """What every rank says about `topic`, in the order of ranks; each topic once.

    Text, and never pickles: whoever could write into the store could run what it likes otherwise.
    `between_polls` as in `join`. Raises LaunchError when a rank says nothing for so long.
    """
    store.set(f"{topic}/{rank_info.rank}", text)
    keys = [f"{topic}/{rank}" for rank in range(rank_info.world_size)]
    started, is_said = time.monotonic(), rank_info.rank > 0
    while not store.check(keys):
        between_polls()
        waited = time.monotonic() - started
        if (waited > WAITING_SECONDS and not is_said) or waited > limit_seconds:
            silent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            whom = f"rank{'s' * (len(silent) > 1)} {', '.join(silent)}"
            if waited > limit_seconds:
                raise LaunchError(f"{whom} didn't start within {limit_seconds:.0f} s")
            print(f"fusionrun: waiting for {whom}", file=sys.stderr, flush=True)
            is_said = True
        time.sleep(0.05)
    return [store.get(key).decode() for key in keys]


def _private_folder() -> Path | None:
    """A folder that the ranks of this machine share, for this attempt alone; None without one.

    torchrun makes it for their errors: new for each launch, and nobody else may look into it.
    """
    folder = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)).parent.parent
    try:
        made = folder.parent.stat()
        if made.st_uid != os.geteuid() or stat.S_IMODE(made.st_mode) & 0o077:
            return None
        with (folder / "lock").open("a") as probe:  # a FileStore can't do without
            fcntl.flock(probe, fcntl.LOCK_EX)
    except OSError:
        return None
    return folder


def _tcp_store(rank_info: RankInfo, between_polls: Callable[[], None]) -> "Store":
    """Rank 0's store, on the address alone that torchrun gave it; on one machine on loopback."""
    import torch.distributed as dist

    host, port = _master(rank_info)
    if rank_info.is_on_one_machine:
        host = "127.0.0.1"
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if rank_info.rank == 0 and not is_torchruns:
        return dist.TCPStore(
            host, port, None, True, PEER_TIMEOUT, False, master_listen_fd=listen_at(host, port)
        )
    _await_listener(host, port, between_polls)
    store = dist.TCPStore(host, port, None, False, PEER_TIMEOUT, False)
    if is_torchruns:
        # torchrun keeps one store over restarts: without a prefix of its own, a restarted group
        # reads the addresses of its dead predecessors (pytorch issue 135712). On several nodes
        # the counts can differ; there launch.sh turns the sharing of the store off.
        return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    return store


def _master(rank_info: RankInfo) -> tuple[str, int]:
    """Where torchrun says that rank 0 is. Raises LaunchError when it doesn't."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise LaunchError(
                f"{name}: not set although WORLD_SIZE is {rank_info.world_size}; start with "
                "torchrun"
            )
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def listen_at(host: str, port: int) -> int | None:
    """A file descriptor that listens at `host` alone, for a TCPStore; it listens everywhere itself.

    None where that name leads nowhere but to this machine itself, as on many the own name does:
    other nodes come by another address. Raises LaunchError for a name that isn't known, and for
    a port that is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise LaunchError(
            f"MASTER_ADDR: found {host!r}, which this machine can't resolve ({error.strerror}); "
            "give torchrun an address (--local-addr on each node)"
        ) from error
    if str(address[0]).startswith("127.") and host != address[0]:
        return None
    try:
        return socket.create_server(address[:2], family=family).detach()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:  # another machine forwards that address to this one
            return None
        raise LaunchError(f"can't listen at {host} port {port}: {error.strerror}") from error


def _interface_towards(host: str, port: int) -> str | None:
    """The network interface by which this machine reaches `host`, or owns it; None if unknown."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        own = probe.getsockname()[0]
        if own.startswith("127.") and host != own:
            return None
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


def _await_listener(host: str, port: int, between_polls: Callable[[], None]) -> None:
    """Wait until rank 0 listens, which torch's own client does deaf to signals."""
    started = time.monotonic()
    while True:
        try:
            with socket.create_connection((host, port), timeout=2.0):
                return
        except OSError as error:
            between_polls()
            if time.monotonic() - started > JOIN_SECONDS:
                raise LaunchError(
                    f"rank 0 can't be reached at {host} port {port} ({error.strerror or error})"
                ) from error
        time.sleep(0.1)


def leave() -> None:
    """Close what `join` opened."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(rank_info: RankInfo, wanted: str) -> "torch.device":
    """This rank's device; ranks share GPUs when there are fewer of them than ranks.

    A Slurm task that sees its own GPU only has a single device, and modulo picks it. CUDA shows a
    process only the first of the MIG slices that are named: each rank asks for its own, which it
    can only before CUDA is used. Raises LaunchError when a GPU is asked for and none is there.
    """
    import torch

    if (slices := mig_slices()) and wanted != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = slices[rank_info.local_rank % len(slices)]
    count = torch.cuda.device_count() if wanted in ("auto", "cuda") else 0
    if count == 0:
        if wanted == "cuda":
            raise LaunchError(
                "runtime.device is cuda, but torch sees no GPU here; check nvidia-smi and "
                "CUDA_VISIBLE_DEVICES, or set runtime.device=auto"
            )
        return torch.device("cpu")
    return torch.device("cuda", rank_info.local_rank % count)


def mig_slices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names where slices of a divided GPU are among it; else nothing."""
    named = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named if any(each.startswith("MIG-") for each in named) else []


def usual_ranks(wanted: str) -> int:
    """The ranks of a machine that launch.sh starts unless it's told: its GPUs', 4 without one."""
    import torch

    count = torch.cuda.device_count() if wanted != "cpu" else 0
    return len(mig_slices()) or count or 4


def usable_cpus() -> int:
    """CPUs that the ranks of this machine may use together.

    Not every cluster puts what Slurm gave a job into a mask or a quota.
    """
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(cpu_limit(), int(given))) if given.isdecimal() else cpu_limit()


def divide_threads(rank_info: RankInfo, wanted: int | None) -> int:
    """CPU threads of this rank, set and returned: the CPUs it may use, divided by the ranks.

    More threads than cores is ruinous (about a tenth of the speed with twice as many), and the
    number decides the order of sums, so it's recorded with every checkpoint. What their tensors
    leave is kept for the next ones.
    """
    import torch

    from fusionrun.common.memory import keep_freed

    keep_freed()
    threads = wanted or max(1, usable_cpus() // rank_info.local_world_size)
    torch.set_num_threads(threads)
    return threads


def die_with_parent() -> None:
    """Get SIGTERM when torchrun's agent dies: no rank trains on as an orphan (Linux only)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)
