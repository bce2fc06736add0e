"""Who works on what: all ranks of a launch hold the locks of its rows, until the last has gone."""

import os
import re
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fusionrun.common.atomic_files import sweep_temporaries
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.locks import Lock, lock_problem
from fusionrun.study.paths import EXPERTS_LOCK, Layout, expert_file, label_of
from fusionrun.study.study import Study
from fusionrun.study.tasks import ExpertTask, RowTask

_OWNER = re.compile(r"host (\S+), pid (\d+), since [^,\n]*(?:, Slurm job (\S+))?$", re.MULTILINE)


class BusyError(LaunchError):
    """Somebody works on the same; whoever waits a moment may find that they were just leaving."""


@dataclass(frozen=True)
class Claim:
    """What a launch holds, as rank 0 took it."""

    layout: Layout  # of the launch
    is_alone: bool  # no other launch works in the output directory
    locks: tuple[Lock, ...]  # shared by now, for the other ranks to join
    owner: str

    def name_ranks(self, ranks: Sequence[str]) -> None:
        """Write down every rank, for whoever wants to stop those that torchrun has left behind."""
        lines = [self.owner, *(f"rank {number}: {each}" for number, each in enumerate(ranks))]
        for lock in self.locks:
            lock.write("\n".join(lines) + "\n")


def claim_rows(study: Study, done: Collection[str], rank_info: RankInfo) -> Claim:
    """Take every row of the launch and the experts it may train; those lie where others may share.

    Launches of other rows may work in the same folder at the same time. To be done while the recipe
    is locked. Raises BusyError, which says who works on one of these and how to stop it.
    """
    layout = study.layout
    experts = [task for task in study.tasks if isinstance(task, ExpertTask)]
    wanted = [
        (layout.lock(_lock_name(task)), f"works here on {task.name}", "output_dir")
        for task in study.tasks
        if isinstance(task, RowTask)
    ]
    for model in dict.fromkeys(task.model for task in experts if task.name not in done):
        path = expert_file(study.checkpoint_dir, model, 0).with_name(EXPERTS_LOCK)
        wanted.append((path, f"trains the {model} experts here", "experts.checkpoint_dir"))
    with ExitStack() as undo:
        folder, status = _opened(layout.lock(), undo), _opened(layout.lock("status"), undo)
        is_alone = folder.take()
        if not is_alone and not folder.take(shared=True):
            place = f"{layout.output_dir}: a launch of an older version works here"
            raise BusyError(_refusal(place, folder.read(), "output_dir", rank_info))
        locks = [folder]
        if status.take():  # the first launch keeps its status where people look for it
            locks.append(status)
        else:
            layout = replace(layout, launch=study.tasks[0].name)
        for path, doing, field in wanted:
            lock = _opened(path, undo)
            if not lock.take() or _will_be_back(lock.read(), rank_info):
                folder_name = path.parent if field != "output_dir" else layout.output_dir
                place = f"{folder_name}: another launch {doing}"
                raise BusyError(_refusal(place, lock.read(), field, rank_info))
            locks.append(lock)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = f"host {rank_info.host}, pid {_owner_pid(rank_info)}, since {since}"
        owner += f", Slurm job {rank_info.job_id}" if rank_info.job_id else ""
        claim = Claim(layout, is_alone, tuple(locks), owner)
        claim.name_ranks([process_name(rank_info)])
        for lock in locks:
            lock.take(shared=True)
        undo.pop_all()
    return claim


def _lock_name(task: RowTask) -> str:
    """A single network may be a row of its own or a full ensemble's: one lock for both."""
    row = task.row
    return f"network-{label_of(row.model)}-{row.variant}" if row.is_single else task.name


def _opened(path: Path, undo: ExitStack) -> Lock:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(path)
    undo.callback(lock.close)
    return lock


def join_claim(paths: Sequence[str]) -> tuple[Lock, ...]:
    """Hold what rank 0 has claimed, too: the launch isn't over before the last rank has gone."""
    locks = []
    for path in paths:
        with suppress(OSError):  # rank 0 holds it; what can't be written here, its tasks will say
            locks.append(Lock(Path(path)))
            locks[-1].take(shared=True, wait=True)
    return tuple(locks)


def release(locks: Sequence[Lock], *, forget: bool) -> None:
    """Let others work on it. To `forget` who did belongs to the end that torchrun won't undo."""
    for lock in locks:
        with suppress(OSError):  # a full disk
            if forget:
                lock.write("")
        lock.close()


def is_alone(layout: Layout) -> bool:
    """Whether no launch works in the output directory; to be asked while the recipe is locked."""
    return not (layout.lock().exists() and _is_held(layout.lock()))


def sweep(claim: Claim) -> None:
    """Remove what killed writers left in the output directory, where no launch works but this one.

    Not what another study's launch writes just now, into a folder of experts that both share; and
    nothing where the file system can't tell who works there.
    """
    directory = claim.layout.output_dir
    if lock_problem(directory):
        return
    own = [lock.path for lock in claim.locks]
    others = (path for path in directory.rglob(EXPERTS_LOCK) if path not in own)
    sweep_temporaries(directory, but_not_in=[path.parent for path in others if _is_held(path)])


def _is_held(path: Path) -> bool:
    lock = Lock(path)
    try:
        return not lock.take()
    finally:
        lock.close()


# ---------------------------------------------------------------- who holds it


def process_name(rank_info: RankInfo) -> str:
    """Of this process, for the locks."""
    return f"host {rank_info.host}, pid {os.getpid()}"


def _owner_pid(rank_info: RankInfo) -> int:
    """Whoever gets a signal here passes it on to all ranks of this machine, and they to all."""
    return os.getppid() if rank_info.has_launcher else os.getpid()


def _refusal(place: str, text: str, field: str, rank_info: RankInfo) -> str:
    """Why the launch has to wait, and how to stop the one whose lock says `text`."""
    owner, how = text.splitlines()[0] if text else "who didn't say so", "stop it"
    if found := _OWNER.match(text):
        host, pid, job = found.groups()
        how = f"stop it with `{f'scancel {job}' if job else f'kill {pid}'}` on {host}"
        ranks = re.findall(rf"^rank \d+: host {re.escape(rank_info.host)}, pid (\d+)$", text, re.M)
        left = [each for each in ranks if _command(each)]
        if host == rank_info.host and left and pid not in left and not _is_launcher(pid):
            # torchrun was killed, and a rank of its hangs
            owner = owner.replace(f"pid {pid},", f"pid {left[0]},")
            how = f"stop what torchrun has left of it with `kill {' '.join(left)}` on {host}"
    return f"{place} ({owner}); wait for it, {how}, or choose another {field}"


def _will_be_back(text: str, rank_info: RankInfo) -> bool:
    """Whether the launch that wrote this has only lost its ranks: torchrun starts them again."""
    found = _OWNER.match(text)
    if found is None or found[1] != rank_info.host or int(found[2]) == _owner_pid(rank_info):
        return False
    return _is_launcher(found[2])


def _is_launcher(pid: str) -> bool:
    return b"fusionrun" in _command(pid)


def _command(pid: str) -> bytes:
    """The process's command line; nothing where it has gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
