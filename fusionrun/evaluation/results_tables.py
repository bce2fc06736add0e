"""The final table: every row's fusion beside the cheap alternatives, on the test set."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Group
from rich.text import Text

from fusionrun.common.atomic_files import write_text
from fusionrun.evaluation.alternatives import CONTROLS, FIRST_HEAD, FUSED, METHODS
from fusionrun.evaluation.matrix import fusion_matrices
from fusionrun.evaluation.over_seeds import OverSeeds
from fusionrun.evaluation.results import (
    UNFITTED,
    Result,
    csv_line,
    gains_of,
    images_of,
    words_of,
)
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

CONTROLS_TITLE = "Does fusion itself help?"
CONTROLS_CAPTION = (
    "paired with the row by seed; what each column is stands in results.md, what it cost (images "
    "seen, steps, passes, MACs) in the table that `evaluate` makes"
)
CONTROLS_LEGEND = (
    "Does fusion itself help? `experts frozen`: the same fusion on experts that fusion training "
    "leaves as they are. `experts without fusion`: the mean of the probabilities of experts that "
    "only their own losses train on, everything else as in the row. `one network`: the "
    "architecture once, trained as an expert is, on all images that experts and fusion saw. "
    "`full ensemble`: the mean of the probabilities of as many such networks as there are experts, "
    "each with a seed of its own."
)


def top1(key: str) -> Column:
    """On a narrow terminal the fused model and the mean of probabilities are the last to go."""
    last = {FUSED.key: 0, headline.AVERAGING: 0, headline.BEST_EXPERT: 6}
    last |= {"mean_logits": 5, "before_mean_logits": 2}
    of: Callable[[Result], float | None] = lambda result: result.top1.get(key)  # noqa: E731
    return Column(METHODS[key].heading, "accuracy", of, dispensable=last.get(key, 1))


NAMES = (
    Column("model", "name", lambda result: result.model),
    Column("fusion", "name", lambda result: result.fusion),
    Column("seed", "whole", lambda result: result.seed),
    Column("alpha", "plain", lambda result: result.alpha),
)
EXPERT_SEED = Column(
    "experts' seed",
    "written",
    lambda result: "the study's" if result.expert_seed is None else str(result.expert_seed),
)
STACKED = Column("row", "name", lambda result: f"{result.model}\n{result.variant}")
NUMBERS = (
    Column("epoch", "whole", lambda result: result.epoch, dispensable=3),
    Column("val.", "validation", lambda result: result.val_accuracy, dispensable=4),
    top1(FUSED.key),
    top1(headline.AVERAGING),
    Column(headline.GAIN, "margin", lambda result: result.over(headline.AVERAGING)),
    top1(headline.BEST_EXPERT),
    Column(
        headline.VS_BEST_EXPERT, "margin", lambda row: row.over(headline.BEST_EXPERT), dispensable=7
    ),
    *(top1(key) for key in UNFITTED if key not in (headline.AVERAGING, headline.BEST_EXPERT)),
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


def controls_table(results: Sequence[Result]) -> Table:
    """Every row that has controls beside them; they settle whether fusion itself helped."""

    beside = []
    for row in results:
        controls: dict[str, float] = {}
        for other in results:
            if other.is_control_of(row):
                method = METHODS[other.control or other.fusion]
                # its method's key among the control's own: all heads but the first are experts
                own = FUSED.key if method.formula is FIRST_HEAD else headline.AVERAGING
                controls |= {method.key: other.top1[own]} if own in other.top1 else {}
        if any(other.is_control_of(row) for other in results):
            beside.append(replace(row, top1={**row.top1, **controls}))
    *shown, ensemble = CONTROLS  # which takes many trainings, and is rarely there
    shown += [ensemble] if any(ensemble.key in each.top1 for each in beside) else []
    columns = [*names_of(results), top1(FUSED.key), *(top1(method.key) for method in shown)]
    return Table(CONTROLS_TITLE, columns, beside, CONTROLS_CAPTION, images=images_of(results))


def names_of(results: Sequence[Result]) -> list[Column]:
    """What tells the rows apart."""
    varied = any(result.expert_seed is not None for result in results)
    return [*NAMES, *([EXPERT_SEED] if varied else [])]


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
    tables.append((controls_table(results), CONTROLS_LEGEND))
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
