"""A grid's answer: architectures down, fusion types across."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from fusionrun.evaluation.row_names import RowName
from fusionrun.evaluation.statistics.seeds import spread
from fusionrun.study.recipe import WITHOUT_EXPERTS
from fusionrun.tables.headline import GAIN, digits, signed
from fusionrun.tables.table import Column, Images, Table

TITLE = "Model x fusion: fused test accuracy"
NOTE = f"Percent, and in brackets the {GAIN} in points"

Cell = tuple[RowName, float | None, float | None]  # a row, its fused accuracy, its gain


def fusion_matrices(cells: Iterable[Cell], images: Images) -> list[Table]:
    """For each alpha a table of two architectures and two fusion types at least.

    Rows that share neither are no grid. Controls are no part of it; where seeds differ, a cell is
    their mean ± standard deviation.
    """
    asked = [
        cell for cell in cells if not cell[0].control and cell[0].fusion not in WITHOUT_EXPERTS
    ]
    alphas = dict.fromkeys(row.alpha for row, *_ in asked)
    tables = []
    for alpha in alphas:
        rows = [cell for cell in asked if cell[0].alpha == alpha]
        models = list(dict.fromkeys(row.model for row, *_ in rows))
        fusions = dict.fromkeys(row.fusion for row, *_ in rows)
        pairs = {(row.model, row.fusion) for row, *_ in rows}
        if min(len(models), len(fusions)) < 2 or len(pairs) <= max(len(models), len(fusions)):
            continue
        columns = [Column("model", "name", lambda model: model)]
        columns += [
            Column(name, "written", partial(_written, rows, name, digits(images.test)))
            for name in fusions
        ]
        title = TITLE if len(alphas) == 1 else f"{TITLE}, alpha {alpha:g}"
        seeds = "; mean ± standard deviation over seeds" if len(rows) > len(pairs) else ""
        tables.append(Table(title, columns, models, f"{NOTE}{seeds}.", images=images))
    return tables


def _written(rows: Sequence[Cell], fusion: str, digits: int, model: Any) -> str | None:
    """The cell of a model and a fusion; None: not measured."""
    found = [cell for cell in rows if (cell[0].model, cell[0].fusion) == (model, fusion)]
    fused = [accuracy for _, accuracy, _ in found if accuracy is not None]
    gains = [gain for *_, gain in found if gain is not None]
    if not fused:
        return None
    gain = f"\n({signed(spread(gains).mean, digits)})" if gains else ""
    return spread(fused).text(digits) + gain
