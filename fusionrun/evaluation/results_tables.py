"""The final table: every row's fusion beside the cheap alternatives, on the test set."""

from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Group
from rich.text import Text

from fusionrun.common.atomic_files import write_text
from fusionrun.evaluation.alternatives import METHODS
from fusionrun.evaluation.matrix import fusion_matrices
from fusionrun.evaluation.over_seeds import OverSeeds
from fusionrun.evaluation.results import Result, csv_line, gains_of, images_of, words_of
from fusionrun.evaluation.results_columns import NUMBERS, STACKED, names_of
from fusionrun.evaluation.results_controls import controls_tables
from fusionrun.evaluation.row_names import members_of, mixed_notes
from fusionrun.evaluation.statistics.seeds import over_seeds
from fusionrun.study.paths import Layout
from fusionrun.tables import headline
from fusionrun.tables.csv import csv_text
from fusionrun.tables.forest import forest
from fusionrun.tables.markdown import escape, markdown_table
from fusionrun.tables.table import Column, Table
from fusionrun.tables.terminal import terminal_table

SUMMARISED = (
    "fused",
    headline.AVERAGING,
    headline.BEST_EXPERT,
    "mean_logits",
    "before_mean_logits",
)

TITLE = "Test accuracy in percent, read once"
CAPTION = (
    f"{headline.GAIN}: fused minus the mean of the experts' probabilities, points (95 % interval); "
    "best expert: on validation; before: the experts without any fusion training"
)

LEGEND = (
    "Accuracy on the test set in percent, read once, after validation selected the epoch. "
    "`mean prob.`, `best expert` and `mean logits` use the experts after fusion training, "
    "`before` the same experts as their own training left them.\n\n"
    f"`{headline.GAIN}`, declared beforehand as the answer: fused minus `mean prob.` in points, "
    "with the 95 % interval of a paired bootstrap over the test images. "
    f"`{headline.VS_BEST_EXPERT}`: likewise, over the expert that is best on validation. Nothing "
    "is chosen on the test set. The intervals speak of other test images, not of training again "
    "with other seeds."
)
CHART_NOTE = (
    "Fused minus the mean of its experts' probabilities on the same test images; bars: 95 % "
    "intervals of a paired bootstrap over these images. They say nothing of training again."
)

SEEDS_TITLE = "Mean ± standard deviation over seeds"
SEEDS_CAPTION = (
    "how far training again moves a row; seeds of: whose differ. Other test images are another "
    "luck: the intervals above"
)
SEEDS_LEGEND = (
    "Mean ± sample standard deviation over rows that differ in nothing but their seeds: how far "
    "training again moves a row. `seeds of` says whose differ; rows whose fusion training has "
    "another seed start from the same experts. It says nothing of other test images; for the "
    "mean's interval over these: `evaluate`."
)


def seeds_table(results: Sequence[Result]) -> Table:
    """Of the rows that differ in nothing but their seed."""
    images = images_of(results)
    shown = headline.digits(images.test)

    def spread(key: str, *, points: bool = False) -> Callable[[OverSeeds], str | None]:
        def of(group: OverSeeds) -> str | None:
            found = group.columns.get(key)
            return None if found is None else found.text(shown, points=points)

        return of

    groups = over_seeds((each, each.numbers) for each in results if each.fused is not None)
    columns = [
        Column("model", "name", lambda group: group.model),
        Column("fusion", "name", lambda group: group.fusion),
        Column("alpha", "plain", lambda group: group.alpha),
        Column("seeds", "whole", lambda group: group.seeds),
        Column("seeds of", "text", lambda group: group.seeds_of),
        *(Column(METHODS[key].heading, "written", spread(key)) for key in SUMMARISED[:2]),
        Column(headline.GAIN, "written", spread(headline.GAIN_KEY, points=True)),
        *(Column(METHODS[key].heading, "written", spread(key)) for key in SUMMARISED[2:]),
    ]
    return Table(SEEDS_TITLE, columns, groups, SEEDS_CAPTION, images=images)


def notes_of(results: Sequence[Result]) -> list[str]:
    """On mixed rows, and on experts that the recipe didn't train."""
    rows = Counter(other for result in results for other in result.other_experts)
    others = [
        f"Experts that this recipe didn't train, of {count} of {len(results)} rows: {other}"
        for other, count in rows.items()
    ]
    return [*mixed_notes(results), *others]


def more_tables(results: Sequence[Result]) -> list[tuple[Table, str]]:
    """Those that the study gives rise to, each with its legend in Markdown."""
    cells = [(each, each.fused, each.gain) for each in results]
    tables = [(table, table.note) for table in fusion_matrices(cells, images_of(results))]
    tables.append((seeds_table(results), SEEDS_LEGEND))
    tables += controls_tables(results)
    return [(table, legend) for table, legend in tables if table.items]


def results_tables(results: Sequence[Result], width: int) -> Group:
    """For people: every row; the matrix of a grid, means over seeds, controls; the answer."""
    main = Table(TITLE, [STACKED, *NUMBERS], results, CAPTION, images=images_of(results))
    notes = (Text(note, "dim") for note in notes_of(results))
    more = (terminal_table(table, width) for table, _ in more_tables(results))
    words = (Text(f"\n{line}") for line in words_of(results))
    return Group(terminal_table(main, width), *notes, *more, *words)


def write_results(layout: Layout, results: Sequence[Result]) -> None:
    """results.csv, results.md and results.svg in the output directory."""
    write_text(layout.results("csv"), csv_text([csv_line(each) for each in results]))
    images = images_of(results)
    main = Table(TITLE, [*names_of(results), *NUMBERS], results, images=images)
    sentence, *warnings = words_of(results)
    notes = (escape(note) for note in notes_of(results))
    parts = [sentence, markdown_table(main).rstrip("\n"), *notes, *warnings, LEGEND]
    for table, legend in more_tables(results):
        parts += [markdown_table(table).rstrip("\n"), legend]
    write_text(layout.results("md"), "\n\n".join(parts) + "\n")
    members = (f"{name}: {of}." for name, of in members_of(results).items())
    note = " ".join([CHART_NOTE, *members])
    chart = forest(gains_of(results), headline.digits(images.test), note)
    write_text(layout.results("svg"), f"{chart}\n")
