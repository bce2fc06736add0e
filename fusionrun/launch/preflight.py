"""What a launch needs, as one list: looked at in seconds, before anything is written or trained.

`train` runs it once, on rank 0; `doctor` runs the same list, then slower checks, and times the
training. So what the doctor passes starts, and what `train` refuses the doctor fails.
"""

import torch

from fusionrun.common.distributed import LaunchError, RankInfo
from fusionrun.launch.checks.controls import check_controls
from fusionrun.launch.checks.data import DataChecks
from fusionrun.launch.checks.expert_files import check_expert_files
from fusionrun.launch.checks.finding import Check, Finding, run_checks
from fusionrun.launch.checks.folders import check_disk, check_folders, check_locks
from fusionrun.launch.checks.loggers import check_loggers
from fusionrun.launch.checks.machine import check_device, check_threads
from fusionrun.launch.checks.models import check_models
from fusionrun.launch.checks.pretrained import check_pretrained, download_pretrained
from fusionrun.study.study import Study


def preflight_checks(study: Study, rank_info: RankInfo) -> list[Check]:
    """All of it, the cheapest first; neither images nor weights are read, nothing is written."""
    ranks = rank_info.local_world_size
    data = DataChecks(study)

    def memory() -> list[Finding]:
        wanted = study.recipe.runtime.device
        devices = torch.cuda.device_count() if wanted != "cpu" else 0
        return list(data.memory(ranks, min(ranks, devices)))

    return [
        Check("controls", lambda: check_controls(study)),
        Check("settings", lambda: check_models(study)),
        Check("write permission", lambda: check_folders(study)),
        Check("locks", lambda: check_locks(study)),
        Check("disk space", lambda: check_disk(study, rank_info.world_size)),
        Check("device", lambda: check_device(study, ranks)),
        Check("CPU threads", lambda: check_threads(study, ranks)),
        Check("data", data.look),
        Check("splits", data.split, needs=("data",)),
        Check("memory", memory, needs=("data",)),
        Check("experts", lambda: check_expert_files(study, data.survey)),
        Check("pretrained weights", lambda: check_pretrained(study)),
        Check("loggers", lambda: check_loggers(study)),
    ]


def node_checks(study: Study, rank_info: RankInfo) -> list[Check]:
    """What may differ from machine to machine: each but rank 0's looks at it itself."""
    ranks = rank_info.local_world_size
    return [
        Check("device", lambda: check_device(study, ranks)),
        Check("data", DataChecks(study).look),
        Check("pretrained weights", lambda: check_pretrained(study)),
        Check("loggers", lambda: check_loggers(study, network=False)),
    ]


def require_startable(study: Study, rank_info: RankInfo) -> None:
    """Raise LaunchError for all that is in the way of a launch; what is doubtful is printed.

    Weights to begin with that must be downloaded are, once all else is well. Rank 0 does it for
    all, the first rank of another machine for what is that machine's own.
    """
    checks = preflight_checks if rank_info.rank == 0 else node_checks
    # a launch that could have worked shouldn't fail by its checks
    findings = run_checks(checks(study, rank_info), broken="warn")
    for finding in findings:
        if finding.state == "warn" and rank_info.rank == 0:
            print(f"fusionrun: {finding.line}", flush=True)
    failures = [finding.line for finding in findings if finding.state == "fail"]
    if len(failures) > 1:
        failures = [f"{len(failures)} things are in the way", *(f"- {line}" for line in failures)]
    if failures:
        raise LaunchError("\n".join(failures))
    download_pretrained(study)
