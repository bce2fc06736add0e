"""One model over seeds. Needs no torch."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from fusionrun.evaluation.row_names import RowName
from fusionrun.evaluation.schema import OverSeeds, Spread


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of one number over seeds. Raises ValueError: none, or not finite."""
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected at least one value, all finite, found {list(values)}")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def over_seeds(
    rows: Iterable[tuple[RowName, Mapping[str, float]]],
) -> tuple[OverSeeds, ...]:
    """The columns of numbers of rows that differ in nothing but their seed, where all have them."""
    groups: dict[tuple[str, str, float, int | None], list[Mapping[str, float]]] = {}
    for row, columns in rows:
        of_experts = row.expert_seed
        groups.setdefault((row.model, row.fusion, row.alpha, of_experts), []).append(columns)
    found = []
    for (model, fusion, alpha, of_experts), group in groups.items():
        known = [key for key in group[0] if all(key in columns for columns in group)]
        spreads = {key: spread([columns[key] for columns in group]) for key in known}
        found.append(OverSeeds(model, fusion, alpha, len(group), spreads, of_experts))
    return tuple(each for each in found if each.seeds > 1)
