"""One model over seeds. Needs no torch."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from fusionrun.evaluation.over_seeds import EXPERTS, TRAINING, OverSeeds, Spread
from fusionrun.evaluation.row_names import RowName
from fusionrun.study.recipe import WITHOUT_EXPERTS

T = TypeVar("T")
Intervals = Callable[[Sequence[RowName]], Mapping[str, Spread]]
Group = tuple[str, str, float]  # model, fusion, alpha


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of one number over seeds. Raises ValueError: none, or not finite."""
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected at least one value, all finite, found {list(values)}")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def by_seeds(rows: Iterable[tuple[RowName, T]]) -> dict[Group, list[tuple[RowName, T]]]:
    """Rows that differ in nothing but their seeds, together, with what belongs to each."""
    groups: dict[Group, list[tuple[RowName, T]]] = {}
    for row, of in rows:
        groups.setdefault((row.model, row.fusion, row.alpha), []).append((row, of))
    return groups


def varied(rows: Sequence[RowName]) -> str:
    """Whose seeds differ between rows: of the fusion training, of the experts, or of both."""
    if rows[0].fusion in WITHOUT_EXPERTS:
        return "training"
    seeds, experts = {row.seed for row in rows}, {row.expert_seed for row in rows}
    found = [TRAINING] * (len(seeds) > 1) + [EXPERTS] * (len(experts) > 1)
    return " and ".join(found) or TRAINING


def over_seeds(
    rows: Iterable[tuple[RowName, Mapping[str, float]]],
    intervals: Intervals = lambda rows: {},
) -> tuple[OverSeeds, ...]:
    """The columns of numbers of rows that differ in nothing but their seeds, where all have them.

    Those that start from the same experts together, then all. `intervals` gives of such rows the
    spreads that it knows more of.
    """
    found = []
    for (model, fusion, alpha), group in by_seeds(rows).items():
        experts = dict.fromkeys(row.expert_seed for row, _ in group)
        parts = [(seed, [of for of in group if of[0].expert_seed == seed]) for seed in experts]
        parts += [(None, group)] if len(parts) > 1 else []
        for seed, part in parts:
            if len(part) < 2:
                continue
            names, columns = [row for row, _ in part], [of for _, of in part]
            known = [key for key in columns[0] if all(key in each for each in columns)]
            spreads = {key: spread([each[key] for each in columns]) for key in known}
            spreads |= intervals(names)
            whose = varied(names)
            found.append(OverSeeds(model, fusion, alpha, len(part), spreads, seed, whose))
    return tuple(found)
