"""The answer that a study was made for, counted from intervals."""

from collections.abc import Sequence

from fusionrun.common.text import plural
from fusionrun.evaluation.schema import Difference, Evaluation, RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Outcome, Text, Verdict, Verdicts
from fusionrun.report.load import StudyResults
from fusionrun.report.markup import Markup
from fusionrun.report.sections.columns import DIFFERENCE, OF_ROW, ROW
from fusionrun.tables.table import Column, Table, p_value

HOW_TO_READ = (
    "Points of test accuracy over the alternative that was best on validation, with the 95 % "
    "interval of a paired bootstrap over test images; p is McNemar's. A row beats or loses when "
    "its interval leaves out zero. The intervals speak of other test images, not of training "
    "again with another seed."
)
COLUMNS = (
    ROW,
    Column("model", "text", lambda row: row.model),
    Column("fusion", "text", lambda row: row.fusion),
    Column("seed", "plain", lambda row: row.seed),
    Column("alpha", "plain", lambda row: row.alpha),
    Column("epoch", "plain", lambda row: row.epoch),
    Column("fused", "percent", lambda row: row.fused.top1),
    Column("against", "text", lambda row: row.best_alternative.label),
    Column("its accuracy", "percent", lambda row: row.best_alternative.top1),
    Column("difference", "points", lambda row: row.difference.points),
    Column("low", "points", lambda row: row.difference.low),
    Column("high", "points", lambda row: row.difference.high),
    Column("p", "p", lambda row: row.difference.p_value),
)
CONTROLS = (
    OF_ROW,
    Column("fused", "percent", lambda pair: pair[0].fused.top1),
    Column("against", "text", lambda pair: pair[1].label),
    Column("its accuracy", "percent", lambda pair: pair[1].top1),
    *DIFFERENCE,
    Column("p", "p", lambda pair: pair[2].p_value),
)


def outcome(difference: Difference) -> Outcome:
    """By the interval alone: does it leave out zero, and on which side?"""
    if difference.low > 0:
        return "beats"
    return "loses" if difference.high < 0 else "open"


def summary(evaluation: Evaluation) -> str:
    """One sentence for all rows."""
    found = [outcome(row.difference) for row in evaluation.in_question]
    missing = len(evaluation.failures)
    left_out = f" {plural(missing, 'row')} could not be measured." if missing else ""
    if not found:
        return f"No row could be compared.{left_out}"
    beats, still, loses = (found.count(each) for each in ("beats", "open", "loses"))
    return (
        f"Learned fusion beats the best cheap alternative in {beats} of {plural(len(found), 'row')}"
        f", loses in {loses}, and in {still} there is no clear difference.{left_out}"
    )


def answer(study: StudyResults) -> list[Block]:
    """A sentence for every row, and how to read it."""
    rows, failures = study.evaluation.in_question, study.evaluation.failures
    edges = [edge for row in rows for edge in (row.difference.low, row.difference.high)]
    ticks = charts.round_ticks([0.0, *edges])
    verdicts = [verdict(row, ticks) for row in rows]
    verdicts += [
        Verdict("unknown", row.name, f"n/a, not measured: {row.problem}", Markup())
        for row in failures
    ]
    reading = HOW_TO_READ
    if len(rows) > 1:
        reading += (
            f" Of {len(rows)} rows without any real difference, {0.05 * len(rows):.1f} would be "
            "expected to stand out by luck alone."
        )
    note = "difference: fused minus the alternative in points; low, high: its 95 % interval."
    return [
        Verdicts(summary(study.evaluation), verdicts, charts.interval_axis(ticks)),
        Text(reading),
        Table("The answer in numbers", COLUMNS, rows, note, folded=True),
        *against_controls(rows),
    ]


def against_controls(rows: Sequence[RowResult]) -> list[Block]:
    """Whether it's fusion that helps: each row against the rows that were trained to settle it."""
    pairs = [
        (row, method, method.difference)
        for row in rows
        for method in row.methods
        if method.stage == "control" and method.difference
    ]
    found: dict[str, list[Outcome]] = {}
    for _, method, difference in pairs:
        found.setdefault(method.label, []).append(outcome(difference))
    sentences = [
        f"{label}: fused is ahead in {outcomes.count('beats')} of {plural(len(outcomes), 'row')}, "
        f"behind in {outcomes.count('loses')}."
        for label, outcomes in found.items()
    ]
    return [Table("Against its controls", CONTROLS, pairs, " ".join(sentences))] if pairs else []


def verdict(row: RowResult, ticks: charts.Ticks) -> Verdict:
    """A row's answer, and its interval drawn on an axis that all rows share."""
    found, d = outcome(row.difference), row.difference
    over = "over" if found == "beats" else "against"
    p = p_value(d.p_value)
    finding = (
        f"{d.points:+.2f} points [{d.low:.2f}, {d.high:.2f}] {over} {row.best_alternative.label}, "
        f"p {p if p.startswith('<') else f'= {p}'}"
    )
    picture = charts.interval(ticks, found, d.low, d.points, d.high, f"{row.name}: {finding}")
    return Verdict(found, row.name, finding, picture)
