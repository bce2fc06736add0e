"""What accuracy costs: training, parameters, work, latency, memory."""

from collections.abc import Callable, Sequence

from fusionrun.evaluation.schema import Cost, RowResult
from fusionrun.report import charts
from fusionrun.report.blocks import Block, Figure, Gallery, Text
from fusionrun.report.charts import SHAPES, Axis, Dot, Line
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import ROW
from fusionrun.tables.axis import round_ticks
from fusionrun.tables.headline import GAIN, digits
from fusionrun.tables.table import Column, Table

MODEL_COLOURS = 8  # of the style sheet
REFERENCE = "before_mean_probabilities"  # what the experts give without any fusion training


def expert_seconds(of: Cost) -> float | None:
    """All experts'; None where one was trained elsewhere."""
    known = [seconds for seconds in of.expert_seconds if seconds is not None]
    return sum(known) if known and len(known) == len(of.expert_seconds) else None


def expert_minutes(of: Cost) -> float | None:
    """The same in minutes."""
    seconds = expert_seconds(of)
    return None if seconds is None else seconds / 60


def minutes(of: Cost) -> float | None:
    """Of all experts and the fusion training."""
    experts = expert_minutes(of)
    fusion = of.train_seconds
    return None if experts is None or fusion is None else experts + fusion / 60


COSTS = (
    ROW,
    Column("fused", "accuracy", lambda row: row.fused.top1),
    Column(GAIN, "margin", lambda row: row.gain_over_averaging.margin),
    Column("parameters", "count", lambda row: row.cost.parameters),
    Column("MACs", "count", lambda row: row.cost.macs),
    Column("images seen", "count", lambda row: row.cost.images_seen),
    Column("optimizer steps", "count", lambda row: row.cost.steps),
    Column("image passes", "count", lambda row: row.cost.image_passes),
    Column("experts' training, s", "amount", lambda row: expert_seconds(row.cost)),
    Column("fusion training, s", "amount", lambda row: row.cost.train_seconds),
    Column("latency, ms", "percent", lambda row: row.cost.latency_ms),
    Column("latency low", "percent", lambda row: row.cost.latency_low),
    Column("latency high", "percent", lambda row: row.cost.latency_high),
    Column("images/s", "amount", lambda row: row.cost.images_per_second),
    Column(
        "peak memory, MiB",
        "amount",
        lambda row: row.cost.peak_memory_bytes and row.cost.peak_memory_bytes / 2**20,
    ),
)
Amount = Callable[[Cost], float | None]
# title, unit, what the row costs, and what its experts alone did where that is known
COST_AXES: tuple[tuple[str, str, Amount, Amount | None], ...] = (
    ("Training", "minutes for experts and fusion", minutes, expert_minutes),
    ("Size", "parameters, millions", lambda of: of.parameters and of.parameters / 1e6, None),
    ("Work", "MACs for one image, millions", lambda of: of.macs and of.macs / 1e6, None),
)


def cost(study: StudyResults) -> list[Block]:
    """Accuracy against each cost, and every cost as a number."""
    rows = study.evaluation.rows
    models, fusions = _palette(rows)
    legend = [(charts.swatch(colour), model) for model, colour in models.items()]
    legend += [(charts.swatch("ink", shape), fusion) for fusion, shape in fusions.items()]
    legend.append((charts.swatch("ink hollow"), "its experts before: mean of probabilities"))
    shown = digits(study.evaluation.data.test_images)
    figures = [figure for axis in COST_AXES if (figure := cost_plot(rows, shown, *axis))]
    note = "Test accuracy of the fused models. Up and to the left is better."
    table_note = (
        "MACs: multiply-accumulates of convolutions and linear layers for one image. Latency: one "
        "image, median, 5th and 95th percentile. Images/s and memory: a batch of evaluation. "
        "Experts that several rows share are counted in each; seconds of experts that were trained "
        "side by side (experts.together) passed at the same time."
    )
    gallery = [Gallery(figures, legend, note)] if figures else []
    table = Table("Costs", COSTS, rows, table_note, images=study.evaluation.data.images)
    training = study.evaluation.training
    shared = "Where they share the same cores or the same GPU, each is slower for it."
    together = [Text(f"{training.text()} {shared}")] if training else []
    return [*gallery, table, *together] if rows else []


def cost_plot(
    rows: Sequence[RowResult],
    shown: int,
    title: str,
    unit: str,
    whole: Amount,
    experts: Amount | None,
) -> Figure | None:
    """A dot a row, joined with what its experts gave before fusion training, at their cost.

    Accuracies have `shown` digits.
    """
    models, fusions = _palette(rows)
    dots: list[Dot] = []
    lines: list[Line] = []
    for row in rows:
        after, before = whole(row.cost), experts(row.cost) if experts else None
        reference = row.method(REFERENCE)
        if after is None:
            continue
        colour, shape = models[row.model], fusions[row.fusion]
        if before is not None and reference is not None:
            tooltip = f"{row.name}, {reference.label}: {reference.top1:.{shown}f} %"
            dots.append(Dot(f"{colour} hollow", before, reference.top1, tooltip, 4, shape))
            ends = [(before, reference.top1), (after, row.fused.top1)]
            lines.append(Line(f"{colour} thin", ends))
        tooltip = f"{row.name}: {row.fused.top1:.{shown}f} %, {after:.3g} {unit}"
        dots.append(Dot(colour, after, row.fused.top1, tooltip, 5, shape))
    if not dots:
        return None
    x = Axis(unit, round_ticks([0.0, *(dot.x for dot in dots)]))
    y = Axis("accuracy, %", round_ticks([dot.y for dot in dots]))
    return Figure(title, charts.plot(f"accuracy against {unit}", x, y, lines, dots))


def _palette(rows: Sequence[RowResult]) -> tuple[dict[str, str], dict[str, str]]:
    """Colours by model, shapes by fusion."""
    models = dict.fromkeys(row.model for row in rows)
    fusions = dict.fromkeys(row.fusion for row in rows)
    return (
        {model: f"model{i % MODEL_COLOURS}" for i, model in enumerate(models)},
        {fusion: SHAPES[i % len(SHAPES)] for i, fusion in enumerate(fusions)},
    )
