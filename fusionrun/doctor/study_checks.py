"""What a launch will work with, loaded and tried on the machine's devices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fusionrun.common.text import duration, plural
from fusionrun.data.datasets import DataError
from fusionrun.data.room import room_for_data
from fusionrun.data.split_files import copy_split_files
from fusionrun.data.splits import SplitError
from fusionrun.doctor.cards import Cards, rows_on_cards
from fusionrun.doctor.checks import check_data, check_splits, finished_epochs
from fusionrun.doctor.devices import check_throttling
from fusionrun.doctor.estimate import Estimate, estimate
from fusionrun.doctor.experts import examine_experts
from fusionrun.launch.checks.finding import Finding, split_message
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.study import Study

LONG_SECONDS = 30 * 86400  # a launch that takes longer was hardly meant


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
        self.cards: Cards | None = None
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
            with room_for_data(device):
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

    def time(self, ranks: int, gpus: int, seconds: float) -> Iterator[Finding]:
        if self._context is None or self._done is None or not self._devices:
            yield Finding(
                "time", "warn", "not measured", "fix the failures above and run doctor again"
            )
            return
        self.estimate = estimate(
            self._context,
            self._done,
            ranks=ranks,
            gpus=gpus,
            seconds=seconds,
            scratch=self._scratch,
            progress=self._progress,
        )
        yield from self.estimate.findings
        cards = rows_on_cards(self._context, self.estimate, self._devices)
        if cards.rows and cards.all_fit:
            yield cards.finding
        elif cards.rows:
            self.cards = cards
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
        yield from check_throttling(self._devices[:1])
