"""What the doctor says: findings and estimates drawn for people. Pure, no I/O."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fusionrun.common.text import NOT_AVAILABLE, duration, plural, size
from fusionrun.doctor.estimate import Estimate, RowEstimate
from fusionrun.doctor.step_timing import Timing
from fusionrun.launch.preflight import Finding

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
LONGEST_WORD = 22  # multiplicativeAddition: not cut where 80 columns have to do


def findings_table(title: str, findings: Sequence[Finding]) -> Table:
    """A line a finding; what to do stands below what was found."""
    table = Table(title=Text(f"Doctor: {title}"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    table.add_column("check")
    table.add_column("found, and what to do", overflow="fold")
    for finding in findings:
        found = Text(finding.found)
        if finding.advice:
            found.append(f"\n-> {finding.advice}", STYLES[finding.state])
        table.add_row(Text(finding.state, STYLES[finding.state]), Text(finding.name), found)
    return table


def estimates_table(numbers: Estimate) -> Table:
    """A line a row: what is left to do, how long it takes, how much memory."""
    table = Table(
        title=f"Estimate for {plural(numbers.ranks, 'rank')} at work",
        caption=CAPTION + (SCALED if any(_is_scaled(row) for row in numbers.rows) else ""),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    longest = max(len(word) for row in numbers.rows for word in (row.row.model, row.row.variant))
    table.add_column("row", overflow="fold", min_width=min(longest, LONGEST_WORD))
    for heading in ("experts", "epoch", "fusion", "memory", "timed"):
        table.add_column(heading, justify="right")
    for row in numbers.rows:
        table.add_row(Text(f"{row.row.model} {row.row.variant}"), *_cells(row))
    return table


CAPTION = (
    "experts: those still to train, and the time of each (shared by the rows of a model); epoch, "
    "fusion: one epoch of fusion training and all that are left; memory: peak of a rank's process; "
    "timed: real training steps x images. Evaluation counts as a third of training. Ranks that "
    "share a device are taken to slow each other down evenly."
)
SCALED = " ~: a smaller batch was timed (images of it/of a full one), the rest is extrapolated."


def _cells(row: RowEstimate) -> list[str]:
    timing = row.timing
    experts = "done"
    if row.experts_left:
        experts = f"{row.experts_left} x {_about(row.expert_timing)}{_time(row.expert_seconds)}"
    if row.seconds == 0:
        return [experts, "", "done", "", ""]
    timed = NOT_AVAILABLE
    if timing is not None:
        whole = f"/{timing.full_batch}" if timing.is_scaled else ""
        timed = f"{timing.steps} x {timing.batch}{whole}"
    about = _about(timing)
    memory = NOT_AVAILABLE if row.memory is None else about + size(row.memory)
    return [
        experts,
        about + _time(row.epoch_seconds),
        about + _time(row.seconds),
        memory,
        timed,
    ]


def _is_scaled(row: RowEstimate) -> bool:
    return bool(_about(row.timing) or _about(row.expert_timing))


def _about(timing: Timing | None) -> str:
    return "~" if timing is not None and timing.is_scaled else ""


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = {state: sum(finding.state == state for finding in findings) for state in STYLES}
    if counts["fail"]:
        return f"{plural(counts['fail'], 'check')} failed: a launch would fail, or fail in part."
    warned = f"; {plural(counts['warn'], 'warning')} above" if counts["warn"] else ""
    return f"Ready to train{warned}."


def _time(seconds: float | None) -> str:
    return NOT_AVAILABLE if seconds is None else duration(seconds)
