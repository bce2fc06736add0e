"""`doctor RECIPE`: everything that a launch needs, and how long it will take, before it starts."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fusionrun.common.distributed import RankInfo, divide_threads, mig_slices
from fusionrun.doctor import tables
from fusionrun.doctor.cards import Cards
from fusionrun.doctor.estimate import Estimate
from fusionrun.doctor.machine import launch_devices, machine_checks
from fusionrun.doctor.study_checks import StudyChecks
from fusionrun.launch.checks.finding import Check, Finding, run_checks
from fusionrun.launch.preflight import preflight_checks
from fusionrun.study.study import Study
from fusionrun.tables.terminal import terminal_table

OK, FAILED = 0, 1  # exit statuses


def doctor(
    study: Study, rank_info: RankInfo, console: Console, *, ranks: int, seconds: float
) -> int:
    """Print what was found; returns 1 when something would make a launch fail, else 0.

    `ranks` is how many the launch will have on this machine; `seconds` bounds the timing of each
    kind of task. Nothing is written but the data set's cache and a scratch folder, which goes.
    """
    rank_info = replace(rank_info, rank=0, world_size=ranks, local_rank=0, local_world_size=ranks)
    with (
        console.status("checking") as status,
        tempfile.TemporaryDirectory(prefix="fusionrun-doctor-") as scratch,
    ):
        findings, numbers, cards = run_all_checks(
            study, rank_info, Path(scratch), seconds, lambda text: status.update(Text(text))
        )
    console.print(terminal_table(tables.findings_table(study.name, findings)))
    if numbers is not None and numbers.seconds != 0:
        console.print(terminal_table(tables.estimates_table(numbers), console.width))
    if cards is not None:
        console.print(terminal_table(tables.cards_table(cards), console.width))
    console.print(Text(tables.verdict(findings)), soft_wrap=True)
    return FAILED if any(finding.state == "fail" for finding in findings) else OK


def run_all_checks(
    study: Study,
    rank_info: RankInfo,
    scratch: Path,
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[list[Finding], Estimate | None, Cards | None]:
    """All findings, and where data and device are there the estimate and what fits on which GPUs.

    First the list that `train` begins with, then what takes longer.
    """
    ranks = rank_info.local_world_size
    threads = divide_threads(rank_info, study.recipe.runtime.threads)
    # as `train` has it, which doesn't fail by a check that breaks
    findings = run_checks(preflight_checks(study, rank_info), broken="warn")
    failed = {finding.name for finding in findings if finding.state == "fail"}
    slices = len(mig_slices())  # all of them; then this process takes the first
    devices = launch_devices(study, rank_info) if "device" not in failed else []
    gpus = (slices or len(devices)) if {device.type for device in devices} == {"cuda"} else 0
    progress("looking at the machine")
    of_machine = run_checks(machine_checks(devices, study.recipe.runtime))
    broken = {finding.name for finding in of_machine if finding.state == "fail"}
    sound = [device for device in devices if not {f"GPU {device}", f"compute {device}"} & broken]
    slower = StudyChecks(study, threads, sound, scratch, progress)
    checks: list[Check] = []
    if not failed & {"data", "splits", "memory"}:
        checks += [Check("data", slower.load), Check("experts", slower.experts)]
    checks += [
        Check("earlier results", slower.earlier),
        Check("time", lambda: slower.time(ranks, gpus, seconds)),
    ]
    more = [*of_machine, *run_checks(checks)]
    # what both looked at is told by the second look, which has loaded it, but for what only the
    # first compares: files of experts with each other
    again = {f.name for f in more} & {"data", "splits", "experts"}
    kept = {("experts", "warn"), *((name, "fail") for name in again)}
    findings = [f for f in findings if f.name not in again or (f.name, f.state) in kept]
    told = {f.found for f in findings}
    return [*findings, *(f for f in more if f.found not in told)], slower.estimate, slower.cards
