"""What several rows say together: means over seeds, fusion types against each other.

Two kinds of luck, never mixed: a standard deviation is over seeds, so it speaks of training again;
an interval or a p-value is over test images, of the mean over the seeds that there are.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusionrun.evaluation.comparison import Compared
from fusionrun.evaluation.many_comparisons import corrected, corrected_types
from fusionrun.evaluation.over_seeds import Spread, TypeComparison
from fusionrun.evaluation.row_names import RowName
from fusionrun.evaluation.schema import FailedRow, RowResult
from fusionrun.evaluation.statistics.seeds import by_seeds, over_seeds, spread, varied
from fusionrun.evaluation.statistics.significance import bootstrap_difference, sign_flip_test
from fusionrun.tables.headline import GAIN_KEY

Pair = tuple[Tensor, Tensor]  # two rows' right answers on the same images, each (N,) bool


def across_rows(found: Sequence[Compared | FailedRow]) -> dict[str, Any]:
    """The fields of an Evaluation that need all rows, in the study's order."""
    entries: list[RowResult | FailedRow] = [
        each.result if isinstance(each, Compared) else each for each in found
    ]
    measured = [each for each in found if isinstance(each, Compared)]
    right = {each.result.task: each.right for each in measured}

    def intervals(rows: Sequence[RowName]) -> dict[str, Spread]:
        known = [right[row.task] for row in rows]
        return {
            key: mean_difference([(of.fused, of.others[key]) for of in known], rows[0])
            for key in known[0].others
        }

    return {
        "entries": corrected(entries),
        "over_seeds": over_seeds(
            ((each.result, each.result.numbers) for each in measured), intervals
        ),
        "fusion_types": against_each_other([each for each in measured if not each.result.control]),
    }


def mean_difference(pairs: Sequence[Pair], row: RowName) -> Spread:
    """Points between the two of each pair, a pair a seed; the bootstrap's seed is `row`'s."""
    points = 100 * _summed(pairs).double() / len(pairs)
    _, low, high = bootstrap_difference(points, torch.zeros_like(points), seed=row.seed)
    each = [100 * float((one.double() - other.double()).mean()) for one, other in pairs]
    return replace(spread(each), low=low, high=high)


def _summed(pairs: Sequence[Pair]) -> Tensor:
    """(N,) whole numbers: how many more of the first than of the second get an image right."""
    return torch.stack([one.long() - other.long() for one, other in pairs]).sum(dim=0)


def against_each_other(measured: Sequence[Compared]) -> tuple[TypeComparison, ...]:
    """Each fusion type against the best other one of its architecture and alpha, by validation."""
    groups = by_seeds((each.result, each.right) for each in measured)
    validation = {
        name: statistics.fmean(right.validation for _, right in rows)
        for name, rows in groups.items()
    }
    found = []
    for name, rows in groups.items():
        others = [other for other in groups if other[::2] == name[::2] and other != name]
        if not others:
            continue
        best = max(others, key=lambda other: validation[other])
        theirs = {(row.seed, row.expert_seed): right.fused for row, right in groups[best]}
        pairs = [
            (right.fused, theirs[row.seed, row.expert_seed])
            for row, right in rows
            if (row.seed, row.expert_seed) in theirs
        ]
        gains = [(right.fused, right.others[GAIN_KEY]) for _, right in rows]
        found.append(
            TypeComparison(
                *name,
                seeds=len(rows),
                varied=varied([row for row, _ in rows]),
                validation=validation[name],
                fused=spread([100 * float(right.fused.double().mean()) for _, right in rows]),
                gain=mean_difference(gains, rows[0][0]),
                best_other=best[1],
                difference=mean_difference(pairs, rows[0][0]) if pairs else None,
                p_value=sign_flip_test(_summed(pairs)) if pairs else None,
            )
        )
    return corrected_types(found)
