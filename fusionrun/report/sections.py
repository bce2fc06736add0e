"""What the report says of one study, section by section."""

from collections.abc import Callable, Sequence
from typing import Any

from fusionrun.evaluation.schema import (
    Bin,
    Cost,
    MethodResult,
    PathGradients,
    RowResult,
    TrainingTime,
)
from fusionrun.report import charts
from fusionrun.report.answer import DIFFERENCE, ROW, answer, count
from fusionrun.report.blocks import Block, Figure, Gallery, Listing, Text
from fusionrun.report.charts import SHAPES, Axis, Dot, Grid, Line, heat_map, round_ticks
from fusionrun.report.load import StudyResults
from fusionrun.report.robustness import robustness
from fusionrun.tables.table import Column, Table

MOST_CLASSES = 20  # in a chart; of more only those at both ends
MODEL_COLOURS = 6  # of the style sheet
PERCENTS: tuple[float, ...] = (0, 20, 40, 60, 80, 100)
FUSED, ALTERNATIVE = "fused", "alternative"  # styles
REFERENCE = "before_mean_probabilities"  # what the experts give without any fusion training


def accuracy(study: StudyResults) -> list[Block]:
    rows = study.evaluation.rows
    labels = {c.key: c.label for row in rows for c in row.methods}
    note = (
        "Percent of test images; the highest of each row stands out. Best experts and weights are "
        "chosen on validation; before: the experts without any fusion training."
    )
    methods = [Column(label, "percent", _top1(key), True) for key, label in labels.items()]
    main = Table("Top-1 accuracy", [ROW, *methods], rows, note)
    pairs = [(row, c, c.difference) for row in rows for c in row.methods if c.difference]
    note = "Fused minus each alternative, image by image. No correction for many comparisons."
    return [main, Table("Every comparison", COMPARISON, pairs, note, folded=True)] if rows else []


def _top1(key: str) -> Callable[[RowResult], float | None]:
    def of(row: RowResult) -> float | None:
        found = row.method(key)
        return None if found is None else found.top1

    return of


METHOD = (  # of (row, method, ...)
    Column("row", "text", lambda pair: pair[0].name),
    Column("method", "text", lambda pair: pair[1].label),
    Column("stage", "text", lambda pair: pair[1].stage),
)
COMPARISON = (
    *METHOD,
    Column("top-1", "percent", lambda pair: pair[1].top1),
    *DIFFERENCE,
    Column("only fused right", "count", lambda pair: pair[2].only_fused),
    Column("only other right", "count", lambda pair: pair[2].only_other),
    Column("p", "p", lambda pair: pair[2].p_value),
)


def over_seeds(study: StudyResults) -> list[Block]:
    groups = study.evaluation.over_seeds
    names = dict.fromkeys(name for group in groups for name in group.columns)
    labels = {c.key: c.label for row in study.evaluation.rows for c in row.methods}
    columns = [
        Column("model", "text", lambda group: group.model),
        Column("fusion", "text", lambda group: group.fusion),
        Column("alpha", "plain", lambda group: group.alpha),
        Column("seeds", "count", lambda group: group.seeds),
        *(Column(f"{labels.get(name, name)} ±", "written", _spread(name)) for name in names),
    ]
    note = (
        "Mean ± sample standard deviation of rows that differ in the seed of their fusion training "
        "alone; they start from the same experts. Percent, gain in points."
    )
    return [Table("Means over seeds", columns, groups, note)] if groups else []


def _spread(name: str) -> Callable[[Any], str | None]:
    def of(group: Any) -> str | None:
        found = group.columns.get(name)
        return found and f"{found.mean:{'+' if name == 'gain' else ''}.2f} ± {found.deviation:.2f}"

    return of


def learning_curves(study: StudyResults) -> list[Block]:
    drawn = [row for row in study.evaluation.rows if study.curves[row.task]]
    epochs = [epoch for row in drawn for epoch in study.curves[row.task]]
    if not epochs:
        return []
    x = Axis("epoch", round_ticks([0.0, *(e.epoch for e in epochs)]))
    y = Axis("accuracy, %", round_ticks([v for e in epochs for v in (e.train, e.validation)]))
    figures = []
    for row in drawn:
        curve = study.curves[row.task]
        lines = [
            Line("muted dashed", [(e.epoch, e.train) for e in curve]),
            Line(FUSED, [(e.epoch, e.validation) for e in curve]),
        ]
        dots = [
            Dot(FUSED, e.epoch, e.validation, f"selected: epoch {e.epoch:g}, {e.validation:.2f} %")
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


def calibration(study: StudyResults) -> list[Block]:
    rows = study.evaluation.rows
    legend = (
        (charts.swatch(FUSED), "fused"),
        (charts.swatch(ALTERNATIVE), "best alternative"),
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
    table = Table("Quality of the probabilities", CALIBRATION, pairs, table_note, folded=True)
    return [Gallery([_reliability(row) for row in rows], legend, note), table] if rows else []


CALIBRATION = (
    *METHOD,
    Column("top-5", "percent", lambda pair: pair[1].top5),
    Column("NLL", "score", lambda pair: pair[1].nll),
    Column("ECE", "percent", lambda pair: pair[1].ece),
    Column("Brier", "score", lambda pair: pair[1].brier),
    Column("temperature", "score", lambda pair: pair[1].temperature),
    Column("NLL after", "score", lambda pair: pair[1].calibrated and pair[1].calibrated.nll),
    Column("ECE after", "percent", lambda pair: pair[1].calibrated and pair[1].calibrated.ece),
    Column("Brier after", "score", lambda pair: pair[1].calibrated and pair[1].calibrated.brier),
)


def _reliability(row: RowResult) -> Figure:
    lines = [Line("muted dashed", [(0, 0), (100, 100)])]
    dots: list[Dot] = []
    for style, method in ((FUSED, row.fused), (ALTERNATIVE, row.best_alternative)):
        own = _reliability_dots(style, method)
        lines.append(Line(f"{style} thin", [(dot.x, dot.y) for dot in own]))
        if method.calibrated:
            tempered = _points(method.calibrated.reliability)
            lines.append(Line(f"{style} thin dashed", [(x, y) for _, x, y in tempered]))
        dots += own
    x, y = Axis("confidence, %", PERCENTS), Axis("accuracy, %", PERCENTS)
    picture = charts.plot(f"{row.name}: reliability diagram", x, y, lines, dots)
    return Figure(row.name, picture, f"{_ece(row.fused)}; {_ece(row.best_alternative)}")


def _reliability_dots(style: str, method: MethodResult) -> list[Dot]:
    total = sum(part.samples for part in method.reliability)
    dots = []
    for samples, confidence, accuracy in _points(method.reliability):
        tooltip = (
            f"{method.label}: {count(samples, 'image')}, {confidence:.1f} % sure, "
            f"{accuracy:.1f} % right"
        )
        radius = 1.5 + 7 * (samples / total) ** 0.5
        dots.append(Dot(f"{style} faint", confidence, accuracy, tooltip, radius))
    return dots


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


def per_class(study: StudyResults) -> list[Block]:
    data, rows = study.evaluation.data, study.evaluation.rows
    items: list[tuple[RowResult, str, Any, Any, Any]] = []
    charted: list[tuple[str, charts.Bars]] = []
    for row in rows:
        of = row.per_class
        parts = list(zip(data.classes, of.fused, of.best_alternative, of.gain, strict=True))
        items += [(row, *part) for part in parts]
        gains = [(name, gain) for name, _, _, gain in parts if gain is not None]
        ranked = sorted(gains, key=lambda pair: -pair[1])
        if len(ranked) > MOST_CLASSES:
            ranked = ranked[: MOST_CLASSES // 2] + ranked[-MOST_CLASSES // 2 :]
        groups = [(name, [("gain" if gain > 0 else "loss", gain)]) for name, gain in ranked]
        charted.append((row.name, groups))
    each = data.test_images / len(data.classes)
    note = (
        "Points of accuracy that fused has over the best alternative, class by class. With about "
        f"{each:,.0f} test images a class, one image is {100 / each:.3g} points."
    )
    if len(data.classes) > MOST_CLASSES:
        note += f" The {MOST_CLASSES // 2} highest and lowest of {len(data.classes)} classes."
    table = Table("Accuracy by class", CLASSES, items, "Percent, gain in points.", folded=True)
    return [Gallery(_bars(charted, "gain by class"), note=note), table] if rows else []


def _bars(charted: Sequence[tuple[str, charts.Bars]], what: str) -> list[Figure]:
    """Bar charts that share their axis."""
    values = [value for _, groups in charted for _, bars in groups for _, value in bars]
    ticks = round_ticks([0.0, *values], 4)
    return [Figure(name, charts.bars(f"{name}: {what}", groups, ticks)) for name, groups in charted]


CLASSES = (
    Column("row", "text", lambda item: item[0].name),
    Column("class", "text", lambda item: item[1]),
    Column("fused", "percent", lambda item: item[2]),
    Column("best alternative", "percent", lambda item: item[3]),
    Column("gain", "points", lambda item: item[4]),
)


def cost(study: StudyResults) -> list[Block]:
    rows = study.evaluation.rows
    models, fusions = _palette(rows)
    legend = [(charts.swatch(colour), model) for model, colour in models.items()]
    legend += [(charts.swatch("ink", shape), fusion) for fusion, shape in fusions.items()]
    legend.append((charts.swatch("ink hollow"), "its experts before: mean of probabilities"))
    figures = [figure for axis in COST_AXES if (figure := _cost_plot(rows, *axis))]
    note = "Test accuracy of the fused models. Up and to the left is better."
    table_note = (
        "MACs: multiply-accumulates of convolutions and linear layers for one image. Latency: one "
        "image, median, 5th and 95th percentile. Images/s and memory: a batch of evaluation. "
        "Experts that several rows share are counted in each."
    )
    gallery = [Gallery(figures, legend, note)] if figures else []
    table = Table("Costs", COSTS, rows, table_note)
    return [*gallery, table, *_training(study.evaluation.training)] if rows else []


def _training(of: TrainingTime | None) -> list[Text]:
    if of is None:
        return []
    serial, parallel = of.serial_seconds / 60, of.parallel_seconds / 60
    return [
        Text(
            f"All {of.tasks} experts and rows together trained for {serial:.1f} minutes, in "
            f"{parallel:.1f} minutes in which any of them trained: {serial / parallel:.2f} at a "
            "time. Where they share the same cores or the same GPU, each is slower for it."
        )
    ]


def _expert_seconds(of: Cost) -> float | None:
    """All experts'; None where one was trained elsewhere."""
    known = [seconds for seconds in of.expert_seconds if seconds is not None]
    return sum(known) if known and len(known) == len(of.expert_seconds) else None


def _expert_minutes(of: Cost) -> float | None:
    seconds = _expert_seconds(of)
    return None if seconds is None else seconds / 60


def _minutes(of: Cost) -> float | None:
    experts = _expert_minutes(of)
    fusion = of.train_seconds
    return None if experts is None or fusion is None else experts + fusion / 60


COSTS = (
    ROW,
    Column("fused", "percent", lambda row: row.fused.top1),
    Column("parameters", "count", lambda row: row.cost.parameters),
    Column("MACs", "count", lambda row: row.cost.macs),
    Column("experts' training, s", "amount", lambda row: _expert_seconds(row.cost)),
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
    ("Training", "minutes for experts and fusion", _minutes, _expert_minutes),
    ("Size", "parameters, millions", lambda of: of.parameters and of.parameters / 1e6, None),
    ("Work", "MACs for one image, millions", lambda of: of.macs and of.macs / 1e6, None),
)


def _cost_plot(
    rows: Sequence[RowResult], title: str, unit: str, whole: Amount, experts: Amount | None
) -> Figure | None:
    """A dot a row, joined with what its experts gave before fusion training, at their cost."""
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
            tooltip = f"{row.name}, {reference.label}: {reference.top1:.2f} %"
            dots.append(Dot(f"{colour} hollow", before, reference.top1, tooltip, 4, shape))
            ends = [(before, reference.top1), (after, row.fused.top1)]
            lines.append(Line(f"{colour} thin", ends))
        tooltip = f"{row.name}: {row.fused.top1:.2f} %, {after:.3g} {unit}"
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


def xray(study: StudyResults) -> list[Block]:
    rows = study.evaluation.rows
    if not rows:
        return []
    squares = [
        [[100 * share for share in line] for line in row.contributions.disagreement] for row in rows
    ]
    most = max(value for square in squares for line in square for value in line)
    maps = []
    for row, square in zip(rows, squares, strict=True):
        names = [str(k) for k in range(len(square))]
        grid = Grid("expert", names, names, square)
        maps.append(Figure(row.name, heat_map(f"{row.name}: disagreement", grid, 0.0, most)))
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
        Gallery(_bars([_left_out(row) for row in rows], "without each expert"), legend, LEFT_OUT),
        Table("What the experts know together", TOGETHER, rows, TOGETHER_NOTE),
        Table(
            "Expert by expert",
            EXPERTS,
            [(row, k) for row in rows for k in range(len(row.experts))],
            EXPERTS_NOTE,
        ),
    ]


def _left_out(row: RowResult) -> tuple[str, charts.Bars]:
    groups = []
    mean = row.method("mean_probabilities")
    parts = zip(
        row.contributions.fused_without_expert, row.contributions.without_expert, strict=True
    )
    for k, (fused, others) in enumerate(parts):
        bars = [(FUSED, fused - row.fused.top1)]
        if mean is not None:
            bars.append((ALTERNATIVE, others - mean.top1))
        groups.append((f"expert {k}", bars))
    return row.name, groups


LEFT_OUT = (
    "Points of accuracy that leaving out one expert changes: fused, with that expert's features "
    "replaced by their mean over validation, and the mean of the other experts' probabilities."
)
TOGETHER = (
    ROW,
    Column("fused", "percent", lambda row: row.fused.top1),
    Column("oracle", "percent", lambda row: row.contributions.oracle),
    Column(
        "right though no expert is", "percent", lambda row: row.contributions.attribution.no_expert
    ),
    Column("contested images", "count", lambda row: row.contributions.dominance.contested),
)
TOGETHER_NOTE = (
    "oracle: percent of images that any expert gets right. right though no expert is: percent of "
    "the fused model's right answers. contested: the experts don't all answer the same."
)


def _differs(row: RowResult, k: int) -> float:
    """Percent of images that expert k answers unlike another one, mean over the others."""
    shares = row.contributions.disagreement[k]
    return 100 * sum(shares) / (len(shares) - 1)


def _gradients(row: RowResult, k: int) -> PathGradients:
    gradients = row.contributions.gradients
    return gradients[k] if gradients else PathGradients(None, None)


EXPERTS = (  # of (row, k)
    Column("row", "text", lambda of: of[0].name),
    Column("expert", "plain", lambda of: of[0].experts[of[1]].expert),
    Column("before", "percent", lambda of: of[0].experts[of[1]].before_top1),
    Column("after", "percent", lambda of: of[0].experts[of[1]].top1),
    Column("weight", "score", lambda of: of[0].weights[of[1]]),
    Column("mean without it", "percent", lambda of: of[0].contributions.without_expert[of[1]]),
    Column(
        "fused without it",
        "percent",
        lambda of: of[0].contributions.fused_without_expert[of[1]],
    ),
    Column(
        "only it knows",
        "percent",
        lambda of: of[0].contributions.attribution.only_expert[of[1]],
    ),
    Column("differs", "percent", lambda of: _differs(*of)),
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


def recipe(study: StudyResults) -> list[Block]:
    return [Listing("recipe.yaml", study.recipe)]


def measured(study: StudyResults) -> list[Block]:
    of = study.evaluation
    facts = {
        "study": of.study,
        "output directory": of.output_dir,
        "evaluated": of.evaluated,
        "data": of.data.name,
        "classes": f"{len(of.data.classes):,}",
        "test images": f"{of.data.test_images:,}",
        "validation images": f"{of.data.val_images:,}",
        "image size": f"{of.data.image_size} × {of.data.image_size}",
        "device": of.device,
        "threads": of.threads,
        **of.versions,
    }
    text = (
        "Validation, a part of the training set that neither experts nor fusion learn from, "
        "selected the epoch, the best experts, the weights, the temperatures and the best "
        "alternative. The test set was read afterwards and decided nothing. What was not "
        "measured is n/a."
    )
    columns = [Column("what", "text", lambda fact: fact[0])]
    columns.append(Column("value", "text", lambda fact: fact[1]))
    return [Text(text), Table("Measured with", columns, list(facts.items()))]


# one that returns nothing is left out
SECTIONS: tuple[tuple[str, Callable[[StudyResults], Sequence[Block]]], ...] = (
    ("The answer", answer),
    ("Accuracy", accuracy),
    ("Over seeds", over_seeds),
    ("Learning curves", learning_curves),
    ("Calibration", calibration),
    ("Class by class", per_class),
    ("Accuracy against cost", cost),
    ("X-ray of the fusion", xray),
    ("Robustness", robustness),
    ("How it was measured", measured),
    ("Recipe", recipe),
)
