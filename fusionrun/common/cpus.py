"""How many CPUs this process may use: its mask, and the quota of the containers around it."""

import os
from collections.abc import Iterator
from pathlib import Path


def cpu_limit(proc: Path = Path("/proc/self")) -> int:
    """CPUs that this process may use at once, 1 or more.

    That is the fewest of its affinity mask and of the whole CPUs in the quota of its control group
    and of every group around that one: a container's `--cpus=1.5` gives 1. `proc` is the process's
    folder in /proc.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(proc)])))


def _quotas(proc: Path) -> Iterator[float]:
    """CPUs' worth of time that each control group around the process may spend."""
    for folder in _groups(proc):
        try:
            if (folder / "cpu.max").exists():  # version 2
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = (
                    (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
                )
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue  # the outermost group has no quota, and another program's files may be odd


def _groups(proc: Path) -> Iterator[Path]:
    """Folders of the process's CPU control group and of all above it, of either version."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return
    # "4:cpu,cpuacct:/path", in version 2 "0::/path"
    paths = {kind: path for _, kind, path in (line.split(":", 2) for line in groups)}
    for line in mounts:
        # "36 35 98:0 /root /mount/point options - type device super-options"
        fields, _, system = line.partition(" - ")
        root, mount = fields.split()[3:5]
        kind, _, options = system.split()
        for controllers, path in paths.items():
            is_version_2 = kind == "cgroup2" and not controllers
            is_version_1 = (
                kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options.split(",")
            )
            if not is_version_1 and not is_version_2:
                continue
            # a container sees its own group as the root, or the host's path to it
            inside = Path(path.removeprefix(root.rstrip("/"))) if path.startswith(root) else Path()
            folder = Path(mount) / str(inside).lstrip("/")
            yield from (folder, *folder.parents[: len(folder.parts) - len(Path(mount).parts)])
