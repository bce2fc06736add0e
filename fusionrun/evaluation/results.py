"""The final table: every row's fusion beside the cheap alternatives, on the test set."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console, Group

from fusionrun.common.atomic_files import write_text
from fusionrun.components.manifest import read_manifest
from fusionrun.evaluation.alternatives import (
    ALTERNATIVES,
    CONTROLS,
    FIRST_HEAD,
    FUSED,
    METHODS,
)
from fusionrun.evaluation.schema import OverSeeds, RowName, name_row
from fusionrun.evaluation.statistics.significance import over_seeds
from fusionrun.study.paths import Layout
from fusionrun.study.study import Study
from fusionrun.tables.csv import csv_text
from fusionrun.tables.markdown import markdown_table
from fusionrun.tables.table import Column, Table
from fusionrun.tables.terminal import terminal_table
from fusionrun.training.checkpoint import CheckpointError

SVG_WIDTH = 150  # columns of the picture
SUMMARISED = ("fused", "best_expert", "mean_probabilities", "mean_logits", "before_mean_logits")

TITLE = "Test accuracy in percent, read once"
CAPTION = "before: the experts without any fusion training; gain: fused minus the best alternative"

LEGEND = (
    "Accuracy on the test set in percent, read once, after validation selected the epoch. "
    "`best expert`, `mean prob.` and `mean logits` use the experts after fusion training, "
    "`before` the same experts as their own training left them; the best expert is chosen on "
    "validation. `gain`: fused minus the best alternative, in points."
)

SEEDS_TITLE = "Mean ± standard deviation over seeds"
SEEDS_CAPTION = "seeds of fusion training; the experts before it are the same"
SEEDS_LEGEND = (
    "Mean ± sample standard deviation over rows that differ in the seed of their fusion training "
    "alone. They start from the same experts."
)

CONTROLS_TITLE = "Does fusion itself help?"
CONTROLS_CAPTION = "paired with the row by seed; what each column is stands in results.md"
CONTROLS_LEGEND = (
    "Does fusion itself help? `experts frozen`: the same fusion on experts that fusion training "
    "leaves as they are. `experts without fusion`: the mean of the probabilities of experts that "
    "only their own losses train on, everything else as in the row. `one network`: the "
    "architecture once, trained as an expert is, on all images that experts and fusion saw."
)


@dataclass(frozen=True, kw_only=True)
class Result(RowName):
    """One row's accuracies on the test set, in percent."""

    epoch: int | None = None  # that validation selected; None: not finished
    val_accuracy: float | None = None
    top1: Mapping[str, float] = field(default_factory=dict)  # by method's key, those measured

    @property
    def fused(self) -> float | None:
        return self.top1.get(FUSED.key)

    @property
    def gain(self) -> float | None:
        """Points of the fused model over the best of all alternatives."""
        others = [self.top1[method.key] for method in ALTERNATIVES if method.key in self.top1]
        return None if self.fused is None or not others else self.fused - max(others)


def top1(key: str) -> Column:
    """On a narrow terminal tuned and old mean probabilities go: their logits' tell the same."""
    dispensable = {"before_mean_probabilities": 3, "mean_probabilities": 4}.get(key, 0)
    of: Callable[[Result], float | None] = lambda result: result.top1.get(key)  # noqa: E731
    return Column(METHODS[key].heading, "percent", of, dispensable=dispensable)


# by their names in results.csv
COLUMNS: Mapping[str, Column] = {
    "task": Column("row", "text", lambda result: result.task),
    "model": Column("model", "text", lambda result: result.model),
    "fusion_type": Column("fusion", "text", lambda result: result.fusion),
    "seed": Column("seed", "whole", lambda result: result.seed),
    "alpha": Column("alpha", "plain", lambda result: result.alpha),
    "epoch": Column("epoch", "whole", lambda result: result.epoch, dispensable=1),
    "val_accuracy": Column("val.", "percent", lambda result: result.val_accuracy, dispensable=2),
    **{
        method.key: top1(method.key)
        for method in (FUSED, *ALTERNATIVES)
        if method.formula.chosen != "weights"
    },
    "gain": Column("gain", "points", lambda result: result.gain),
}


def collect_results(study: Study) -> list[Result]:
    """A result for every row of the study; rows without a manifest have no numbers."""
    results = []
    for row in study.rows:
        try:
            manifest = read_manifest(study.layout.row(row.model, row.variant).manifest)
        except CheckpointError:
            results.append(Result(**name_row(row)))
            continue
        results.append(
            Result(
                **name_row(row),
                epoch=manifest.epoch,
                val_accuracy=manifest.val_accuracy,
                top1={key: value for key, value in manifest.test.items() if key in METHODS},
            )
        )
    return results


def seeds_table(results: Sequence[Result]) -> Table:
    """Of the rows that differ in nothing but their seed."""

    def spread(key: str) -> Callable[[OverSeeds], str | None]:
        def of(group: OverSeeds) -> str | None:
            found = group.columns.get(key)
            return None if found is None else found.text("+" if key == "gain" else "")

        return of

    groups = over_seeds(
        (result, result.top1 if result.gain is None else {**result.top1, "gain": result.gain})
        for result in results
        if result.fused is not None
    )
    columns = [
        Column("model", "text", lambda group: group.model),
        Column("fusion", "text", lambda group: group.fusion),
        Column("alpha", "plain", lambda group: group.alpha),
        Column("seeds", "whole", lambda group: group.seeds),
        *(Column(METHODS[key].heading, "written", spread(key)) for key in SUMMARISED),
        Column("gain", "written", spread("gain")),
    ]
    return Table(SEEDS_TITLE, columns, groups, SEEDS_CAPTION)


def controls_table(results: Sequence[Result]) -> Table:
    """Every row that has controls beside them; they settle whether fusion itself helped."""

    beside = []
    for row in results:
        controls: dict[str, float] = {}
        for other in results:
            if other.is_control_of(row):
                method = METHODS[other.control or other.fusion]
                # its method's key among the control's own: all heads but the first are experts
                own = FUSED.key if method.formula is FIRST_HEAD else "mean_probabilities"
                controls |= {method.key: other.top1[own]} if own in other.top1 else {}
        if any(other.is_control_of(row) for other in results):
            beside.append(replace(row, top1={**row.top1, **controls}))
    names = [COLUMNS[name] for name in ("model", "fusion_type", "seed", "alpha", FUSED.key)]
    columns = [
        *names,
        *(top1(method.key) for method in CONTROLS),
    ]
    return Table(CONTROLS_TITLE, columns, beside, CONTROLS_CAPTION)


def results_tables(results: Sequence[Result], width: int) -> Group:
    """For people: every row; means over seeds and controls where there are any."""
    unvaried = {
        name
        for name in ("seed", "alpha")
        if len({getattr(result, name) for result in results}) <= 1
    }
    columns = [column for name, column in COLUMNS.items() if name not in {"task", *unvaried}]
    tables = [Table(TITLE, columns, results, CAPTION)]
    tables += [table for table in (seeds_table(results), controls_table(results)) if table.items]
    return Group(*(terminal_table(table, width) for table in tables))


def write_results(layout: Layout, results: Sequence[Result]) -> None:
    """results.csv, results.md and results.svg in the output directory."""
    table = Table(TITLE, list(COLUMNS.values()), results)
    lines = [[cell.text for cell in cells] for cells in table.lines()]
    text = csv_text([dict(zip(COLUMNS, line, strict=True)) for line in lines], list(COLUMNS))
    write_text(layout.results("csv"), text)
    columns = [column for name, column in COLUMNS.items() if name != "task"]
    text = f"{markdown_table(Table(TITLE, columns, results))}\n{LEGEND}\n"
    for table, legend in (
        (seeds_table(results), SEEDS_LEGEND),
        (controls_table(results), CONTROLS_LEGEND),
    ):
        if table.items:
            text += f"\n{markdown_table(table)}\n{legend}\n"
    write_text(layout.results("md"), text)
    console = Console(record=True, width=SVG_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(results_tables(results, SVG_WIDTH))
    write_text(layout.results("svg"), console.export_svg(title="fusionrun"))
