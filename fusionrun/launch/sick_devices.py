"""A GPU that breaks one process after another: its rank leaves the work to those that have others.

A task that breaks its process is counted in `crashes`, and tried again; what no task is to blame
for would end all of them, one by one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fusionrun.common.atomic_files import write_json
from fusionrun.common.device_errors import device_problem, is_programs
from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.launch.crashes import CRASHES
from fusionrun.study.paths import Layout


@dataclass(frozen=True)
class RankDevice:
    """What stands on disk while a launch, with its restarts, goes on."""

    host: str
    device: str
    errors: int = 0  # that broke the rank's process, since it last finished a task
    error: str = ""  # the last one

    @property
    def is_sick(self) -> bool:
        """More in a row than one task may be to blame for."""
        return self.errors > CRASHES


def require_healthy(layout: Layout, rank_info: RankInfo, device: torch.device) -> None:
    """Raise LaunchError where the rank should begin nothing on `device`.

    That is when it answers with an error, when it has gone since the launch began, so that a CPU
    would go on with what a GPU began, and when it broke one process after another; but not those
    of all ranks, for then it's what they compute.
    """
    path, now = layout.rank_device(rank_info.rank), RankDevice(rank_info.host, str(device))
    before = _note(path) if rank_info.restarts else None
    others = "; the other ranks do what is left" if rank_info.is_distributed else ""
    advice = f"look at nvidia-smi and dmesg (Xid){others}"
    if before is not None and before.host == now.host and before.device != now.device == "cpu":
        raise LaunchError(f"{before.device}, which this rank began on, has gone; {advice}")
    if before is None or (before.host, before.device) != (now.host, now.device):
        before = now
    peers = [_note(layout.rank_device(rank)) for rank in range(rank_info.world_size)]
    if before.is_sick and any(peer is None or not peer.is_sick for peer in peers):
        raise LaunchError(
            f"{device} broke {before.errors} processes in a row, the last time: {before.error}; "
            f"{advice}"
        )
    if problem := device_problem(device):
        raise LaunchError(f"{device} can't be used: {problem}; {advice}")
    write_json(path, plain(before))


def count_error(path: Path, error: str) -> None:
    """Add an `error` that broke the rank's process to its note, unless the program's mistake."""
    before = _note(path)
    if before is not None and not is_programs(error):
        write_json(path, plain(replace(before, errors=before.errors + 1, error=error)))


def count_success(path: Path) -> None:
    """Note that the rank has finished a task."""
    before = _note(path)
    if before is not None and before.errors:
        write_json(path, plain(replace(before, errors=0)))


def _note(path: Path) -> RankDevice | None:
    return read_json(path, RankDevice) if path.exists() else None
