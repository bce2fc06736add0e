"""`doctor RECIPE`: everything that a launch needs, and how long it will take, before it starts."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from fusionrun.common.distributed import RankInfo, divide_threads
from fusionrun.common.text import duration, plural
from fusionrun.data.datasets import DataError
from fusionrun.data.split_files import copy_split_files
from fusionrun.data.splits import SplitError
from fusionrun.doctor import tables
from fusionrun.doctor.checks import check_data, check_splits, finished_epochs
from fusionrun.doctor.estimate import Estimate, estimate
from fusionrun.doctor.experts import examine_experts
from fusionrun.doctor.machine import launch_devices, machine_checks
from fusionrun.launch.checks.finding import Check, Finding, run_checks, split_message
from fusionrun.launch.preflight import preflight_checks
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.study import Study
from fusionrun.tables.terminal import terminal_table

OK, FAILED = 0, 1  # exit statuses

LONG_SECONDS = 30 * 86400  # a launch that takes longer was hardly meant


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
        findings, numbers = run_all_checks(
            study, rank_info, Path(scratch), seconds, lambda text: status.update(Text(text))
        )
    console.print(terminal_table(tables.findings_table(study.name, findings)))
    if numbers is not None and numbers.seconds != 0:
        console.print(terminal_table(tables.estimates_table(numbers), console.width))
    console.print(Text(tables.verdict(findings)), soft_wrap=True)
    return FAILED if any(finding.state == "fail" for finding in findings) else OK


def run_all_checks(
    study: Study,
    rank_info: RankInfo,
    scratch: Path,
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[list[Finding], Estimate | None]:
    """All findings, and the estimate where data and device are there to make one.

    First the list that `train` begins with, then what takes longer.
    """
    ranks = rank_info.local_world_size
    threads = divide_threads(rank_info, study.recipe.runtime.threads)
    devices = launch_devices(study, rank_info)
    # as `train` has it, which doesn't fail by a check that breaks
    findings = run_checks(preflight_checks(study, rank_info), broken="warn")
    failed = {finding.name for finding in findings if finding.state == "fail"}
    slower = StudyChecks(study, threads, devices, scratch, progress)
    checks = machine_checks(devices) if "device" not in failed else []
    if not failed & {"data", "splits", "memory"}:
        checks += [Check("data", slower.load), Check("experts", slower.experts)]
    checks += [
        Check("earlier results", slower.earlier),
        Check("time", lambda: slower.time(ranks, seconds)),
    ]
    more = run_checks(checks)
    # what both looked at is told by the second look, which has loaded it, but for what only the
    # first compares: files of experts with each other
    again = {f.name for f in more} & {"data", "splits", "experts"}
    kept = {("experts", "warn"), *((name, "fail") for name in again)}
    findings = [f for f in findings if f.name not in again or (f.name, f.state) in kept]
    told = {f.found for f in findings}
    return [*findings, *(f for f in more if f.found not in told)], slower.estimate


class StudyChecks:
    """The checks that build on each other: data, then experts and earlier results, then time."""

    def __init__(
        self,
        study: Study,
        threads: int,
        devices: Sequence[torch.device],
        scratch: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.estimate: Estimate | None = None
        self._study = study
        self._threads = threads
        self._devices = devices
        self._scratch = scratch
        self._progress = progress
        self._context: RunContext | None = None
        self._done: dict[str, int] | None = None

    def load(self) -> Iterator[Finding]:
        """Data and splits as `train` would read them; splits it would make are only derived."""
        self._progress("loading the data")
        stored, copy = self._study.splits_dir, self._scratch / "splits"
        copy.mkdir()
        copy_split_files(stored, copy)
        device = self._devices[0] if self._devices else torch.device("cpu")
        study = replace(self._study, splits_dir=copy)
        try:
            context = open_context(study, device, self._threads, progress=self._progress)
        except DataError as error:
            name = "splits" if isinstance(error, SplitError) else "data"
            found, advice = split_message(str(error).replace(str(copy), str(stored)))
            yield Finding(name, "fail", found, advice or "set data.* to what is there")
            return
        self._context = replace(context, study=self._study)
        yield from check_data(context.data)
        yield from check_splits(self._study, context.splits)

    def experts(self) -> Iterator[Finding]:
        if self._context is not None:
            self._progress("reading the experts")
            yield from examine_experts(self._context)

    def earlier(self) -> list[Finding]:
        self._progress("reading what earlier launches left")
        self._done, findings = finished_epochs(self._study)
        return findings

    def time(self, ranks: int, seconds: float) -> Iterator[Finding]:
        if self._context is None or self._done is None or not self._devices:
            yield Finding(
                "time", "warn", "not measured", "fix the failures above and run doctor again"
            )
            return
        self.estimate = estimate(
            self._context,
            self._done,
            ranks=ranks,
            seconds=seconds,
            scratch=self._scratch,
            progress=self._progress,
        )
        yield from self.estimate.findings
        total = self.estimate.seconds
        if total == 0:
            yield Finding("time", "pass", "nothing is left to do")
        elif total is None:
            yield Finding("time", "warn", "not known: some tasks couldn't be timed", "see above")
        else:
            found = f"about {duration(total)} with {plural(ranks, 'rank')}"
            if total > LONG_SECONDS:
                advice = "use more or faster devices, smaller networks or fewer epochs"
                yield Finding("time", "warn", found, advice)
            else:
                yield Finding("time", "pass", found)
