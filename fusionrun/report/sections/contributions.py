"""What each expert brings, and whether the fusion needs more than one."""

from fusionrun.evaluation.schema import PathGradients, RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Figure, Gallery, Text, bar_figures
from fusionrun.report.charts import ALTERNATIVE, FUSED, Grid, heat_map
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import OF_ROW, ROW
from fusionrun.tables.headline import digits
from fusionrun.tables.table import Column, Table

LEFT_OUT = (
    "Points of accuracy that leaving out one expert changes: fused, with that expert's features "
    "replaced by their mean over validation, and the mean of the other experts' probabilities."
)
TOGETHER = (
    ROW,
    Column("fused", "accuracy", lambda row: row.fused.top1),
    Column("oracle", "accuracy", lambda row: row.contributions.oracle),
    Column(
        "right though no expert is", "percent", lambda row: row.contributions.attribution.no_expert
    ),
    Column("contested images", "count", lambda row: row.contributions.dominance.contested),
)
TOGETHER_NOTE = (
    "oracle: percent of images that any expert gets right. right though no expert is: percent of "
    "the fused model's right answers. contested: the experts don't all answer the same."
)


def differs(row: RowResult, k: int) -> float:
    """Percent of images that expert k answers unlike another one, mean over the others."""
    shares = row.contributions.disagreement[k]
    return 100 * sum(shares) / (len(shares) - 1)


def _gradients(row: RowResult, k: int) -> PathGradients:
    gradients = row.contributions.gradients
    return gradients[k] if gradients else PathGradients(None, None)


EXPERTS = (  # of (row, k)
    OF_ROW,
    Column("expert", "written", lambda of: (of[0].members or range(len(of[0].experts)))[of[1]]),
    Column("before", "accuracy", lambda of: of[0].experts[of[1]].before_top1),
    Column("after", "accuracy", lambda of: of[0].experts[of[1]].top1),
    Column("weight", "score", lambda of: of[0].weights[of[1]]),
    Column("mean without it", "accuracy", lambda of: of[0].contributions.without_expert[of[1]]),
    Column(
        "fused without it",
        "accuracy",
        lambda of: of[0].contributions.fused_without_expert[of[1]],
    ),
    Column(
        "only it knows",
        "percent",
        lambda of: of[0].contributions.attribution.only_expert[of[1]],
    ),
    Column("differs", "percent", lambda of: differs(*of)),
    Column("fused agrees", "percent", lambda of: of[0].contributions.dominance.agreement[of[1]]),
    Column(
        "attention",
        "score",
        lambda of: of[0].contributions.attention and of[0].contributions.attention[of[1]],
    ),
    Column("fused gradient", "percent", lambda of: _gradients(*of).fused_share),
    Column("cosine", "cosine", lambda of: _gradients(*of).cosine),
)
EXPERTS_NOTE = (
    "before, after: its accuracy around fusion training. weight: fitted on validation. only it "
    "knows: percent of the fused model's right answers that no other expert has. differs: "
    "percent of images answered unlike another expert, mean. fused agrees: percent of the "
    "contested images. attention: what the fusion itself weighs it, if it does. fused gradient: "
    "percent of the expert's gradient that comes from the fused loss, the rest from its own; "
    "cosine: between the two, negative where they pull apart."
)


def contributions(study: StudyResults) -> list[Block]:
    """How experts differ, what leaving one out costs, and what each is worth."""
    rows, images = study.evaluation.rows, study.evaluation.data.images
    if not rows:
        return []
    squares = [
        [[100 * share for share in line] for line in row.contributions.disagreement] for row in rows
    ]
    most = max(value for square in squares for line in square for value in line)
    maps, shown = [], digits(images.test)
    for row, square in zip(rows, squares, strict=True):
        numbers = [str(k) for k in range(len(square))]
        grid = Grid("expert", row.members or numbers, numbers, square)
        maps.append(Figure(row.name, heat_map(f"{row.name}: disagreement", grid, 0.0, most, shown)))
    legend = (
        (charts.swatch(FUSED, "bar"), "fused"),
        (charts.swatch(ALTERNATIVE, "bar"), "mean of probabilities"),
    )
    return [
        *(
            Text(f"{row.name}: {row.contributions.alarm}", True)
            for row in rows
            if row.contributions.alarm
        ),
        Gallery(maps, note="Percent of test images that two experts answer differently."),
        Gallery(
            bar_figures([left_out(row) for row in rows], "without each expert", shown),
            legend,
            LEFT_OUT,
        ),
        Table("What the experts know together", TOGETHER, rows, TOGETHER_NOTE, images=images),
        Table(
            "Expert by expert",
            EXPERTS,
            [(row, k) for row in rows for k in range(len(row.experts))],
            EXPERTS_NOTE,
            images=images,
        ),
    ]


def left_out(row: RowResult) -> tuple[str, charts.Bars]:
    """(title, bars): what accuracy changes by without each expert."""
    groups = []
    parts = zip(
        row.contributions.fused_without_expert, row.contributions.without_expert, strict=True
    )
    for k, (fused, others) in enumerate(parts):
        changes = [(FUSED, fused - row.fused.top1), (ALTERNATIVE, others - row.averaging.top1)]
        groups.append((row.members[k] if row.members else f"expert {k}", changes))
    return row.name, groups
