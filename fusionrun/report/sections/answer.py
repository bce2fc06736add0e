"""The answer that a study was made for, as its intervals have it."""

from collections.abc import Sequence

from fusionrun.common.text import plural
from fusionrun.evaluation.controls_table import CONTROLS_NOTE
from fusionrun.evaluation.schema import Evaluation, RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Text, Verdict, Verdicts
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import DIFFERENCE_TO_CONTROL, OF_ROW, ROW
from fusionrun.tables.axis import Ticks, round_ticks
from fusionrun.tables.headline import (
    GAIN,
    VS_BEST_ALTERNATIVE,
    VS_BEST_EXPERT,
    Margin,
    digits,
    too_few,
)
from fusionrun.tables.markup import Markup
from fusionrun.tables.table import Column, Table, p_value

HOW_TO_READ = (
    f"{GAIN.capitalize()}: test accuracy of the fused model minus that of the mean of its experts' "
    "probabilities, in points, declared beforehand as the answer; with the 95 % interval of a "
    "paired bootstrap over test images and McNemar's p. The intervals speak of other test images, "
    "not of training again with another seed."
)
BESIDE = (
    f"{VS_BEST_EXPERT}: the expert that is best on validation. {VS_BEST_ALTERNATIVE}: the cheap "
    "alternative that is best on validation. Nothing is chosen on the test set. In brackets 95 % "
    "intervals over test images, each for itself; many comparisons are corrected in their p-values "
    "(Holm), above for the gain over the rows, and for every alternative and control of every row "
    "where one is said to beat them all."
)
COMPARED = (
    ROW,
    Column("fused", "accuracy", lambda row: row.fused.top1),
    Column("mean of probabilities", "accuracy", lambda row: row.averaging.top1),
    Column(GAIN, "margin", lambda row: row.gain_over_averaging.margin),
    Column("best expert's name", "text", lambda row: row.best_expert_name),
    Column(VS_BEST_EXPERT, "margin", lambda row: row.vs_best_expert.margin),
    Column("best alternative", "text", lambda row: row.best_alternative.label),
    Column(VS_BEST_ALTERNATIVE, "margin", lambda row: row.vs_best_alternative.margin),
)
COLUMNS = (
    ROW,
    Column("model", "text", lambda row: row.model),
    Column("fusion", "text", lambda row: row.fusion),
    Column("seed", "plain", lambda row: row.seed),
    Column("alpha", "plain", lambda row: row.alpha),
    Column("epoch", "plain", lambda row: row.epoch),
    Column("fused", "accuracy", lambda row: row.fused.top1),
    Column("mean of probabilities", "accuracy", lambda row: row.averaging.top1),
    Column(GAIN, "points", lambda row: row.gain_over_averaging.points),
    Column("low", "points", lambda row: row.gain_over_averaging.low),
    Column("high", "points", lambda row: row.gain_over_averaging.high),
    Column("p", "p", lambda row: row.gain_over_averaging.p_value),
    Column("p (Holm)", "p", lambda row: row.gain_p_holm),
)
CONTROLS = (
    OF_ROW,
    Column("fused", "accuracy", lambda pair: pair[0].fused.top1),
    Column("against", "text", lambda pair: pair[1].label),
    Column("its accuracy", "accuracy", lambda pair: pair[1].top1),
    *DIFFERENCE_TO_CONTROL,
)


def summary(evaluation: Evaluation) -> str:
    """One sentence for all rows, and one for those that have no answer."""
    missing = len(evaluation.failures)
    left_out = f" {plural(missing, 'row')} could not be measured." if missing else ""
    return f"{evaluation.verdict}{left_out}"


def answer(study: StudyResults) -> list[Block]:
    """A sentence for every row, and how to read it."""
    of = study.evaluation
    rows, images = of.in_question, of.data.images
    margins = [row.gain_over_averaging for row in rows]
    ticks = round_ticks([0.0, *(edge for m in margins for edge in (m.low, m.high))])
    verdicts = [verdict(row, ticks, digits(images.test)) for row in rows]
    verdicts += [
        Verdict("unknown", row.name, f"n/a, not measured: {row.problem}", Markup())
        for row in of.failures
    ]
    reading = HOW_TO_READ
    if len(rows) > 1:
        reading += (
            f" Of {len(rows)} rows without any real difference, {0.05 * len(rows):.1f} would be "
            "expected to stand out by luck alone; Holm's correction over the rows accounts for it."
        )
    few = too_few(of.data.val_images)
    note = (
        f"{GAIN} in points; low, high: its 95 % interval over test images; p: McNemar's, then "
        "corrected over the rows (Holm)."
    )
    return [
        Verdicts(summary(of), verdicts, charts.interval_axis(ticks)),
        *([Text(f"{few[0].upper()}{few[1:]}.", True)] if few else []),
        Text(reading),
        Table("Beside other comparisons", COMPARED, rows, BESIDE, images=images),
        Table("The answer in numbers", COLUMNS, rows, note, folded=True, images=images),
        *against_controls(of),
    ]


def against_controls(evaluation: Evaluation) -> list[Block]:
    """Whether it's fusion that helps: each row against the rows that were trained to settle it."""
    pairs = [
        (row, method, method.difference)
        for row in evaluation.in_question
        for method in row.methods
        if method.stage == "control" and method.difference
    ]
    found: dict[str, list[Margin]] = {}
    for _, method, difference in pairs:
        found.setdefault(method.label, []).append(difference.margin)
    sentences = [
        f"{label}: the interval of fused minus it lies above zero in {_count(margins, 'ahead')} of "
        f"{plural(len(margins), 'row')}, below in {_count(margins, 'behind')}."
        for label, margins in found.items()
    ]
    images, note = evaluation.data.images, " ".join([*sentences, CONTROLS_NOTE])
    return [Table("Against its controls", CONTROLS, pairs, note, images=images)] if pairs else []


def _count(margins: Sequence[Margin], outcome: str) -> int:
    return sum(margin.outcome == outcome for margin in margins)


def verdict(row: RowResult, ticks: Ticks, digits: int) -> Verdict:
    """A row's answer, and its interval drawn on an axis that all rows share."""
    of = row.gain_over_averaging
    found, p = of.margin.outcome, p_value(of.p_value)
    numbers = of.margin.text(digits).replace("\n", " ")
    finding = f"{numbers} points over averaging, p {p if p.startswith('<') else f'= {p}'}"
    if row.gain_p_holm is not None:
        finding += f", corrected {p_value(row.gain_p_holm)}"
    picture = charts.interval(ticks, found, of.low, of.points, of.high, f"{row.name}: {finding}")
    return Verdict(found, row.name, finding, picture)
