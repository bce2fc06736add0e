"""Many questions asked of the same images: p-values that hold for all of them together."""

from collections.abc import Sequence
from dataclasses import replace

from fusionrun.evaluation.over_seeds import TypeComparison
from fusionrun.evaluation.schema import FailedRow, MethodResult, RowResult


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given; each holds whatever the others are.

    Step-down: the smallest times their number, the next times one less, and so on, none below the
    one before and none above 1 (Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6, 1979). Raises ValueError: not between 0 and 1.
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"expected p-values between 0 and 1, found {wrong}")
    adjusted, least = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = least
    return adjusted


def corrected(entries: Sequence[RowResult | FailedRow]) -> tuple[RowResult | FailedRow, ...]:
    """The same with Holm's p-values in the rows that are asked whether fusion helps.

    Two families: the gain over averaging, declared beforehand, over rows; every method, controls
    too, of every row.
    """
    asked = [entry for entry in entries if isinstance(entry, RowResult) and not entry.control]
    primary = holm([row.gain_over_averaging.p_value for row in asked])
    every = iter(holm([difference.p_value for row in asked for difference in row.compared]))

    def of_method(method: MethodResult) -> MethodResult:
        if method.difference is None:
            return method
        return replace(method, difference=replace(method.difference, p_holm=next(every)))

    found = {
        row.task: replace(row, methods=tuple(map(of_method, row.methods)), gain_p_holm=p)
        for row, p in zip(asked, primary, strict=True)
    }
    return tuple(found.get(entry.task, entry) for entry in entries)


def corrected_types(found: Sequence[TypeComparison]) -> tuple[TypeComparison, ...]:
    """The same with Holm's p-values over all of them that were compared."""
    adjusted = iter(holm([each.p_value for each in found if each.p_value is not None]))
    return tuple(
        each if each.p_value is None else replace(each, p_holm=next(adjusted)) for each in found
    )
