"""How good a row's methods are on some images, as its manifest says it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusionrun.common.typed_fields import plain
from fusionrun.evaluation.alternatives import FUSED, Stage, scores_by_method
from fusionrun.evaluation.answers import compare_right
from fusionrun.evaluation.predictions import HeadLogits
from fusionrun.evaluation.statistics.metrics import accuracy, correct, percent
from fusionrun.tables.headline import AVERAGING, BEST_EXPERT


def accuracies_by_method(
    answers: HeadLogits,
    val_accuracies: Sequence[float] = (),
    before_val_accuracies: Sequence[float] = (),
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """What a manifest says of these images, in percent: by method, then expert by expert.

    Then how many images they are, and the differences of fused to the mean of probabilities and to
    the best expert; `seed` is the bootstrap's. That expert is chosen by its *validation* accuracy:
    choosing it on these images would flatter it. Weights aren't in it: only logits of validation
    can fit them. Experts without such accuracies are left out. Raises ValueError.
    """
    chosen_by: dict[Stage, Sequence[float]] = {
        "after": val_accuracies,
        "before": before_val_accuracies,
    }
    best = {stage: known.index(max(known)) for stage, known in chosen_by.items() if known}
    logits: dict[Stage, Tensor] = {stage: answers.of(stage) for stage in ("fusion", *best)}
    right = {
        method.key: correct(scores, answers.labels)
        for method, scores in scores_by_method(logits, best).items()
    }
    found: dict[str, Any] = {key: percent(each) for key, each in right.items()}
    for stage in best:
        each = logits[stage].unbind(dim=1)
        key = "experts" if stage == "after" else "before_experts"
        found[key] = [accuracy(of_expert, answers.labels) for of_expert in each]
    fused = right.pop(FUSED.key)
    differences = {
        key: plain(compare_right(fused, right[key], seed=seed))
        for key in (AVERAGING, BEST_EXPERT)
        if key in right
    }
    for difference in differences.values():
        del difference["p_holm"]  # other rows are not known here
    return {**found, "images": len(answers.labels), "differences": differences}
