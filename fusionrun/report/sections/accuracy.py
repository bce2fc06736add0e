"""How accurate every method is, row by row and over seeds."""

from functools import partial

from fusionrun.evaluation.over_seeds import OverSeeds
from fusionrun.evaluation.schema import RowResult
from fusionrun.evaluation.tables import MARGINS, SEEDS_NOTE, matrices, seeds_of, types_table
from fusionrun.report.blocks import Block, Text
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.columns import DIFFERENCE, METHOD, ROW
from fusionrun.tables.headline import GAIN, digits
from fusionrun.tables.table import Column, Table

COMPARISON = (
    *METHOD,
    Column("top-1", "accuracy", lambda pair: pair[1].top1),
    *DIFFERENCE,
    Column("only fused right", "count", lambda pair: pair[2].only_fused),
    Column("only other right", "count", lambda pair: pair[2].only_other),
    Column("p", "p", lambda pair: pair[2].p_value),
    Column("p (Holm)", "p", lambda pair: pair[2].p_holm),
)


def accuracy(study: StudyResults) -> list[Block]:
    """Every method of every row, and all of them against fused."""
    rows = study.evaluation.rows
    labels = {method.key: method.label for row in rows for method in row.methods}
    note = (
        "Percent of test images; the highest of each row stands out. Best experts and weights are "
        "chosen on validation; before: the experts without any fusion training."
    )
    methods = [Column(name, "accuracy", partial(top1, key), True) for key, name in labels.items()]
    images = study.evaluation.data.images
    main = Table("Top-1 accuracy", [ROW, *methods], rows, note, images=images)
    pairs = [(row, m, m.difference) for row in rows for m in row.methods if m.difference]
    note = (
        "Fused minus each alternative, image by image; low, high: 95 % over test images; p: "
        "McNemar's, then corrected over all lines but those of controls' own rows (Holm)."
    )
    every = Table("Every comparison", COMPARISON, pairs, note, folded=True, images=images)
    if not rows:
        return []
    types = types_table(study.evaluation)
    said = [Text(note)] if (note := study.evaluation.types_note) else []
    return [*matrices(study.evaluation), *said, *([types] if types.items else []), main, every]


def top1(key: str, row: RowResult) -> float | None:
    """Of the method `key`, if the row has it."""
    method = row.method(key)
    return None if method is None else method.top1


def over_seeds(study: StudyResults) -> list[Block]:
    """Means and deviations where rows differ in their seed alone."""
    groups = study.evaluation.over_seeds
    names = dict.fromkeys(name for group in groups for name in group.columns)
    labels = {c.key: c.label for row in study.evaluation.rows for c in row.methods} | MARGINS
    shown = digits(study.evaluation.data.test_images)
    columns = [
        Column("model", "text", lambda group: group.model),
        Column("fusion", "text", lambda group: group.fusion),
        Column("alpha", "plain", lambda group: group.alpha),
        Column("seeds", "count", lambda group: group.seeds),
        seeds_of(groups),
        *(
            Column(f"{labels.get(name, name)} ±", "written", partial(spread, name, shown))
            for name in names
        ),
    ]
    note = (
        f"Rows that differ in nothing but their seeds. {SEEDS_NOTE} {GAIN} and the like in points."
    )
    return [Table("Means over seeds", columns, groups, note)] if groups else []


def spread(name: str, digits: int, group: OverSeeds) -> str | None:
    """A column's mean ± deviation, if all rows of the group have it."""
    found = group.columns.get(name)
    return None if found is None else found.text(digits, points=name in MARGINS)
