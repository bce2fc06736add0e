"""What each expert brings to a row's fusion, from the row's predictions."""

import math

from fusionrun.evaluation.predictions import Predictions
from fusionrun.evaluation.row_names import RowName
from fusionrun.evaluation.schema import Contributions, PathGradients
from fusionrun.evaluation.statistics.expert_diversity import (
    attribution,
    disagreement,
    dominance,
    leave_one_expert_out,
    oracle_accuracy,
)
from fusionrun.evaluation.statistics.metrics import percent


def expert_contributions(row: RowName, predictions: Predictions) -> Contributions:
    """What each expert brings, and whether the fusion needs more than one."""
    labels = predictions.test.labels
    fused, experts = predictions.test.of("fusion")[:, 0], predictions.test.of("after")
    dominant = dominance(fused, experts)
    k, alarm = dominant.carried_by, ""
    if k is not None:
        alarm = (
            f"{row.expert_name(k)} carries everything: of the {dominant.contested} images on which "
            f"the experts differ, the fused model answers {dominant.agreement[k]:.1f} % as this "
            "expert does"
        )
    gradients = (
        PathGradients(None, None) if math.isnan(share) else PathGradients(100 * share, cosine)
        for share, cosine in predictions.gradients.tolist()
    )
    return Contributions(
        disagreement=tuple(map(tuple, (disagreement(experts) / 100).tolist())),
        oracle=oracle_accuracy(experts, labels),
        without_expert=leave_one_expert_out(experts, labels) if experts.shape[1] > 1 else (),
        attribution=attribution(fused, experts, labels),
        dominance=dominant,
        fused_without_expert=tuple(
            percent(classes == labels) for classes in predictions.without.unbind(dim=1)
        ),
        attention=tuple(predictions.attention.tolist()) or None,
        gradients=tuple(gradients) or None,
        alarm=alarm,
    )
