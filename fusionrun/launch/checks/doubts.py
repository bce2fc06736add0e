"""Whether an expert answers as one that was trained for these classes, in this order."""

import math

import torch
from torch import Tensor

LEAST_IMAGES = 50  # fewer tell nothing
WORTH_SAYING = 0.4  # of the answers right under another order, and twice as many as under this one


def doubt(answers: Tensor, labels: Tensor, classes: int) -> str:
    """What speaks against an expert, by its answers and labels (N,) int64; "" where nothing does.

    Its weights may be all right for classes that are numbered otherwise: then its answers fit the
    labels once they are renamed, the commonest pairs first.
    """
    count = len(labels)
    choices = len(set(labels.tolist()))  # an expert may have been asked about some classes alone
    if count < LEAST_IMAGES or choices < 2:
        return ""
    right = int((answers == labels).sum())
    pairs = torch.bincount(answers * classes + labels, minlength=classes**2).view(classes, classes)
    renamed, table = 0, pairs.clone()
    for _ in range(classes):
        best = int(table.argmax())
        answer, label = divmod(best, classes)
        renamed += max(0, int(table[answer, label]))
        table[answer, :] = table[:, label] = -1
    accuracy = f"it is right on {100 * right / count:.0f} % of {count} validation images"
    if count >= 4 * classes and renamed >= max(2 * right, WORTH_SAYING * count):
        return (
            f"{accuracy}, and with its classes in another order on {100 * renamed / count:.0f} %: "
            f"its class order may be another than this data set's"
        )
    chance = 1 / choices
    if right <= count * chance + 2 * math.sqrt(count * chance * (1 - chance)):
        return (
            f"{accuracy}, no better than chance: it hasn't learned enough, or its class order, or "
            f"the data it was trained on, is another"
        )
    return ""
