"""Classes that a part of the data has no image of: nobody can learn, select or measure them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusionrun.common.text import printable_path
from fusionrun.data.splits import Splits

NAMED = 5  # classes that a note names

Labels = npt.NDArray[np.int64]


def absent_classes(
    train_labels: Labels, test_labels: Labels, classes: Sequence[str], splits: Splits
) -> tuple[str, ...]:
    """A note for each part of the data that lacks classes, by their names.

    Where each expert has classes of its own, only those that no expert has are told.
    """
    wanted = np.arange(len(classes))
    experts = splits.expert_train
    parts = {f"expert {k} trains on": train_labels[part] for k, part in enumerate(experts)}
    owned = [set(np.unique(labels).tolist()) for labels in parts.values()]
    if len(experts) > 1 and all(a.isdisjoint(b) for a in owned for b in owned if a is not b):
        parts = {"the experts train on": train_labels[np.concatenate(experts)]}
    parts |= {
        "fusion trains on": train_labels[splits.fusion_train],
        "validation has": train_labels[splits.fusion_val],
        "the test set has": test_labels,
    }
    notes = []
    for part, labels in parts.items():
        absent = np.setdiff1d(wanted, labels)
        if len(absent):
            named = ", ".join(printable_path(classes[k]) for k in absent[:NAMED])
            more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
            of = f"{len(absent):,} of {len(classes):,} classes"
            notes.append(f"{part} no image of {of}: {named}{more}")
    return tuple(notes)
