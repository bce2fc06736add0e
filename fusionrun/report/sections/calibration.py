"""Whether confidence can be believed, before and after the temperature."""

from collections.abc import Sequence

from fusionrun.common.text import plural
from fusionrun.evaluation.schema import Bin, MethodResult, RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Figure, Gallery
from fusionrun.report.charts import ALTERNATIVE, FUSED, Axis, Dot, Line
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import METHOD
from fusionrun.tables.table import Column, Table

PERCENTS: tuple[float, ...] = (0, 20, 40, 60, 80, 100)
CALIBRATION = (
    *METHOD,
    Column("top-5", "accuracy", lambda pair: pair[1].top5),
    Column("NLL", "score", lambda pair: pair[1].nll),
    Column("ECE", "percent", lambda pair: pair[1].ece),
    Column("Brier", "score", lambda pair: pair[1].brier),
    Column("temperature", "score", lambda pair: pair[1].temperature),
    Column("NLL after", "score", lambda pair: pair[1].calibrated and pair[1].calibrated.nll),
    Column("ECE after", "percent", lambda pair: pair[1].calibrated and pair[1].calibrated.ece),
    Column("Brier after", "score", lambda pair: pair[1].calibrated and pair[1].calibrated.brier),
)


def calibration(study: StudyResults) -> list[Block]:
    """A reliability diagram a row, and the quality of every method's probabilities."""
    rows = study.evaluation.rows
    legend = (
        (charts.swatch(FUSED), "fused"),
        (charts.swatch(ALTERNATIVE), "mean of probabilities"),
        (charts.swatch(f"{FUSED} dashed", "line"), "with the temperature"),
        (charts.swatch("muted dashed", "line"), "confidence = accuracy"),
    )
    note = (
        "Test images by how sure the answer is; larger dots stand for more images. Below the "
        "diagonal: surer than right. →, dashed: with the temperature fitted on validation."
    )
    table_note = (
        "NLL: negative log-likelihood in nats. ECE: expected calibration error in percent. Brier: "
        "0 to 2. after: divided by the temperature that was fitted on validation."
    )
    pairs = [(row, method) for row in rows for method in row.methods]
    images = study.evaluation.data.images
    title = "Quality of the probabilities"
    table = Table(title, CALIBRATION, pairs, table_note, folded=True, images=images)
    return (
        [Gallery([reliability_diagram(row) for row in rows], legend, note), table] if rows else []
    )


def reliability_diagram(row: RowResult) -> Figure:
    """Confidence against accuracy, of the fused model and the mean of its experts."""
    lines = [Line("muted dashed", [(0, 0), (100, 100)])]
    dots: list[Dot] = []
    for style, method in ((FUSED, row.fused), (ALTERNATIVE, row.averaging)):
        bins = _points(method.reliability)
        total = sum(samples for samples, _, _ in bins)
        lines.append(Line(f"{style} thin", [(x, y) for _, x, y in bins]))
        if method.calibrated:
            tempered = _points(method.calibrated.reliability)
            lines.append(Line(f"{style} thin dashed", [(x, y) for _, x, y in tempered]))
        for samples, confidence, accuracy in bins:
            tooltip = (
                f"{method.label}: {plural(samples, 'image')}, {confidence:.1f} % sure, "
                f"{accuracy:.1f} % right"
            )
            radius = 1.5 + 7 * (samples / total) ** 0.5
            dots.append(Dot(f"{style} faint", confidence, accuracy, tooltip, radius))
    x, y = Axis("confidence, %", PERCENTS), Axis("accuracy, %", PERCENTS)
    picture = charts.plot(f"{row.name}: reliability diagram", x, y, lines, dots)
    return Figure(row.name, picture, f"{_ece(row.fused)}; {_ece(row.averaging)}")


def _points(bins: Sequence[Bin]) -> list[tuple[int, float, float]]:
    """(samples, confidence, accuracy) of the bins that have any."""
    return [
        (part.samples, part.confidence, part.accuracy)
        for part in bins
        if part.confidence is not None and part.accuracy is not None
    ]


def _ece(method: MethodResult) -> str:
    after = method.calibrated
    return f"{method.label}: ECE {method.ece:.2f}{f' → {after.ece:.2f}' if after else ''}"
