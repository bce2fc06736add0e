"""What the doctor says: findings and estimates as tables. Pure, no I/O."""

from collections.abc import Sequence

from fusionrun.common.text import NOT_AVAILABLE, duration, plural, size
from fusionrun.doctor.cards import Cards, RowOnCards
from fusionrun.doctor.estimate import Estimate, RowEstimate
from fusionrun.doctor.step_timing import Timing
from fusionrun.launch.checks.finding import Finding
from fusionrun.tables.table import Cell, Column, Table

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}

NOTE = (
    "experts: those still to train, and the time of each (shared by the rows of a model); epoch, "
    "fusion: one epoch of fusion training and all that are left; memory: peak of a rank's process; "
    "timed: real training steps x images. Evaluation counts as a third of training. Ranks that "
    "share a device are taken to slow each other down evenly."
)
SCALED = " ~: a smaller batch was timed (images of it/of a full one), the rest is extrapolated."

CARDS_NOTE = (
    "needs: of a GPU's memory, for a whole batch at once, one row a GPU; twice: if experts are "
    "computed twice (runtime.recompute); by 64: not more images at a time, which is what batch "
    "norm sees then (fusion.micro_batch); no: not even two."
)


def findings_table(title: str, findings: Sequence[Finding]) -> Table:
    """A line a finding; what to do stands below what was found."""

    def found(finding: Finding) -> str:
        return finding.found + (f"\n-> {finding.advice}" if finding.advice else "")

    columns = [
        Column("", "text", lambda finding: Cell(finding.state, style=STYLES[finding.state])),
        Column("check", "text", lambda finding: finding.name),
        Column("found, and what to do", "text", found),
    ]
    return Table(f"Doctor: {title}", columns, findings)


def estimates_table(numbers: Estimate) -> Table:
    """A line a row: what is left to do, how long it takes, how much memory."""

    def experts(row: RowEstimate) -> str:
        if not row.experts_left:
            return "done"
        return f"{row.experts_left} x {_time(row.expert_seconds, row.expert_timing)}"

    def memory(row: RowEstimate) -> str | None:
        return None if row.memory is None else _about(row.timing) + size(row.memory)

    def timed(row: RowEstimate) -> str | None:
        if row.timing is None:
            return None
        whole = f"/{row.timing.full_batch}" if row.timing.is_scaled else ""
        return f"{row.timing.steps} x {row.timing.batch}{whole}"

    def epoch(row: RowEstimate) -> str:
        return _time(row.epoch_seconds, row.timing)

    def fusion(row: RowEstimate) -> str:
        return "done" if row.seconds == 0 else _time(row.seconds, row.timing)

    columns = [
        Column("model", "name", lambda row: row.row.model),
        Column("fusion type", "name", lambda row: row.row.variant),
        Column("experts", "written", experts),
        Column("epoch", "written", lambda row: "" if row.seconds == 0 else epoch(row)),
        Column("fusion", "written", fusion),
        Column("memory", "written", lambda row: "" if row.seconds == 0 else memory(row)),
        Column("timed", "written", lambda row: "" if row.seconds == 0 else timed(row)),
    ]
    timings = [timing for row in numbers.rows for timing in (row.timing, row.expert_timing)]
    scaled = SCALED if any(map(_about, timings)) else ""
    mixed = {row.row.model: row.row.members for row in numbers.rows if row.row.is_mixed}
    members = "".join(f"\n{model}: {of}" for model, of in mixed.items())
    title = f"Estimate for {plural(numbers.ranks, 'rank')} at work, in {numbers.precision.name}"
    return Table(title, columns, numbers.rows, note=NOTE + scaled + members)


def cards_table(cards: Cards) -> Table:
    """A line a row: how much of each GPU it needs, and whether that is there."""

    def fits(card: str) -> Column:
        def cell(row: RowOnCards) -> str:
            images = row.fits[card]
            if images == row.batch:
                return "twice" if card in row.twice else "yes"
            return f"by {images}" if images else "no"

        return Column(card, "written", cell)

    columns = [
        Column("model", "name", lambda row: row.row.model),
        Column("fusion type", "name", lambda row: row.row.variant),
        Column("batch", "whole", lambda row: row.batch),
        Column("needs", "written", lambda row: size(row.need)),
        *map(fits, cards.rows[0].fits),
    ]
    numbers = "half precision (fp16 or bf16)" if cards.is_half else "float32"
    return Table(f"Rows on GPUs, in {numbers}, about", columns, cards.rows, note=CARDS_NOTE)


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = {state: sum(finding.state == state for finding in findings) for state in STYLES}
    if counts["fail"]:
        return f"{plural(counts['fail'], 'check')} failed: a launch would fail, or fail in part."
    warned = f"; {plural(counts['warn'], 'warning')} above" if counts["warn"] else ""
    return f"Ready to train{warned}."


def _time(seconds: float | None, timing: Timing | None) -> str:
    return NOT_AVAILABLE if seconds is None else _about(timing) + duration(seconds)


def _about(timing: Timing | None) -> str:
    return "~" if timing is not None and timing.is_scaled else ""
