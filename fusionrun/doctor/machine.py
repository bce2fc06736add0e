"""The machine: its processes can meet, nobody else is busy, and what of it a launch uses."""

import os
import socket
from collections.abc import Iterator, Sequence

import torch

from fusionrun.common.distributed import LaunchError, RankInfo, choose_device
from fusionrun.common.text import plural
from fusionrun.doctor.devices import check_compute, check_gpus
from fusionrun.launch.checks.finding import Check, Finding
from fusionrun.study.runtime import RuntimeConfig
from fusionrun.study.study import Study


def machine_checks(devices: Sequence[torch.device], runtime: RuntimeConfig) -> list[Check]:
    """What only the doctor looks at: whether the machine's `devices` compute right, and now."""
    return [
        Check("port", check_port),
        Check("load", check_load),
        Check("GPUs", lambda: check_gpus(devices)),
        Check("compute", lambda: check_compute(devices, runtime)),
    ]


def launch_devices(study: Study, rank_info: RankInfo) -> list[torch.device]:
    """All that the launch may use; none when it asks for a GPU and there is none."""
    if study.recipe.runtime.deterministic:
        # torch looks once, at the first matrix product: the compute check must find it set
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        first = choose_device(rank_info, study.recipe.runtime.device)
    except LaunchError:  # check_device says it
        return []
    if first.type == "cpu":
        return [first]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def check_load() -> Iterator[Finding]:
    """Nobody else computes here while the steps are timed."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > 0.5 * cores:
        found = f"{load:.1f} processes at work on {plural(cores, 'core')} before this one began"
        yield Finding("load", "warn", found, "the machine is busy: these times are too high")


def check_port() -> Iterator[Finding]:
    """torchrun picks a free port of this machine, on which its processes meet."""
    try:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("localhost", port), timeout=5).close()
    except OSError as error:
        found = f"processes can't meet on localhost ({error.strerror or error})"
        advice = "check that `localhost` is in /etc/hosts and that no firewall or sandbox closes it"
        yield Finding("port", "fail", found, advice)
    else:
        yield Finding("port", "pass", "processes can meet on localhost")
