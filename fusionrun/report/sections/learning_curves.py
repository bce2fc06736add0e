"""How accuracy rose epoch by epoch."""

from fusionrun.report import charts
from fusionrun.report.blocks import Block, Figure, Gallery
from fusionrun.report.charts import FUSED, Axis, Dot, Line
from fusionrun.report.load import StudyResults
from fusionrun.tables.axis import round_ticks
from fusionrun.tables.headline import digits


def learning_curves(study: StudyResults) -> list[Block]:
    """A chart a row whose table of epochs is still there."""
    drawn = [row for row in study.evaluation.rows if study.curves[row.task]]
    epochs = [epoch for row in drawn for epoch in study.curves[row.task]]
    if not epochs:
        return []
    x = Axis("epoch", round_ticks([0.0, *(e.epoch for e in epochs)]))
    y = Axis("accuracy, %", round_ticks([v for e in epochs for v in (e.train, e.validation)]))
    figures, shown = [], digits(study.evaluation.data.val_images)
    for row in drawn:
        curve = study.curves[row.task]
        lines = [
            Line("muted dashed", [(e.epoch, e.train) for e in curve]),
            Line(FUSED, [(e.epoch, e.validation) for e in curve]),
        ]
        dots = [
            Dot(
                FUSED,
                e.epoch,
                e.validation,
                f"selected: epoch {e.epoch:g}, {e.validation:.{shown}f} %",
            )
            for e in curve
            if e.epoch == row.epoch
        ]
        picture = charts.plot(f"{row.name}: accuracy by epoch", x, y, lines, dots)
        figures.append(Figure(row.name, picture))
    legend = (
        (charts.swatch(FUSED, "line"), "fused, validation"),
        (charts.swatch("muted dashed", "line"), "fused, training"),
        (charts.swatch(FUSED), "the epoch that validation selected"),
    )
    note = "Training accuracy is that of augmented, perhaps mixed images: it can be the lower one."
    return [Gallery(figures, legend, note)]
