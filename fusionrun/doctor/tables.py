"""What the doctor says: findings and estimates drawn for people. Pure, no I/O."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fusionrun.doctor.estimate import Estimate, RowEstimate
from fusionrun.doctor.step_timing import Timing
from fusionrun.launch.preflight import Finding, plural, size

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
UNKNOWN = "n/a"
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
        experts = f"{row.experts_left} x {_about(row.expert_timing)}{duration(row.expert_seconds)}"
    if row.seconds == 0:
        return [experts, "", "done", "", ""]
    timed = UNKNOWN
    if timing is not None:
        whole = f"/{timing.full_batch}" if timing.is_scaled else ""
        timed = f"{timing.steps} x {timing.batch}{whole}"
    about = _about(timing)
    memory = UNKNOWN if row.memory is None else about + size(row.memory)
    return [
        experts,
        about + duration(row.epoch_seconds),
        about + duration(row.seconds),
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


def duration(seconds: float | None) -> str:
    """Two digits and more, in six characters: 0.25s, 8.1s, 45s, 8m30s, 45m, 1h02m, 3d04h, 12d."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.2f}s" if seconds < 0.995 else f"{seconds:.1f}s"
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m{whole % 60:02}s"
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{hours // 24}d{hours % 24:02}h" if hours < 240 else f"{round(hours / 24)}d"
