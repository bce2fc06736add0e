"""An assembled model on a study's images, beside the alternatives that its experts are."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from fusionrun.common.distributed import RankInfo, choose_device, divide_threads
from fusionrun.components.assemble import Assembled, blame, check_equal
from fusionrun.evaluation.alternatives import accuracy
from fusionrun.evaluation.statistics.metrics import mix_logits, mix_probabilities
from fusionrun.study.context import EVALUATION_BATCH, RunContext, open_context
from fusionrun.study.stored import stored_study
from fusionrun.training.identity import of_data
from fusionrun.training.inference import collect_logits

LABELS = {
    "fused": "fused",
    "best_expert": "best expert (on validation)",
    "mean_probabilities": "mean prob.",
    "mean_logits": "mean logits",
}
NOTE = (
    "Accuracy in percent. Nothing trained or selected this model as a whole: the numbers are those "
    "of this one combination. To choose among several, use validation, not the test set."
)


def measure_assembled(assembled: Assembled, folder: str, rank_info: RankInfo) -> dict[str, Any]:
    """What the manifest says of the model's accuracy on the study in `folder`, in percent.

    Raises RecipeError where that study can't be opened or has images that the components don't
    take, LaunchError, DataError and OSError.
    """
    with blame(assembled.plan, "evaluate"):
        study = stored_study(Path(folder).expanduser())
    context = open_context(
        study,
        choose_device(rank_info, study.recipe.runtime.device),
        divide_threads(rank_info, study.recipe.runtime.threads),
        progress=partial(print, file=sys.stderr, flush=True),
    )
    _check_data(assembled, context)
    context.settle(assembled.model)
    validation, test = (
        collect_logits(assembled.model, loader, bf16=context.bf16)
        for loader in (
            context.loader(context.splits.fusion_val, EVALUATION_BATCH),
            context.test_loader(EVALUATION_BATCH),
        )
    )
    own = [accuracy(each, validation[1]) for each in validation[0][:, 1:].unbind(dim=1)]
    best = own.index(max(own))
    return {
        "validation": _accuracies(*validation, best),
        "test": _accuracies(*test, best),
        "evaluated_on": {
            "study": str(study.layout.output_dir),
            "data": context.data.name,
            "fingerprint": context.data.fingerprint,
            "val_images": len(validation[1]),
            "test_images": len(test[1]),
            "device": str(context.device),
            "note": NOTE,
            "cautions": _cautions(assembled, context),
        },
    }


def _check_data(assembled: Assembled, context: RunContext) -> None:
    """Raise RecipeError unless the study's images are what the components take."""
    data, first = context.data, assembled.experts[0]
    found = {
        "num_classes": len(data.classes),
        "classes": list(data.classes),
        "image_size": data.test_images.shape[-1],
        "mean": list(data.mean),
        "std": list(data.std),
    }
    with blame(assembled.plan, "evaluate"):
        expected = {name: getattr(first.info, name) for name in found}
        check_equal(context.study.layout.output_dir, found, expected, f"as in {first.path}")


def _accuracies(logits: Tensor, labels: Tensor, best: int) -> dict[str, Any]:
    """In percent, of logits (N, 1 + E, C): fused, then the experts; `best` is one of these."""
    experts = logits[:, 1:]
    each = [accuracy(own, labels) for own in experts.unbind(dim=1)]
    return {
        "fused": accuracy(logits[:, 0], labels),
        "best_expert": each[best],
        "mean_probabilities": accuracy(mix_probabilities(experts), labels),
        "mean_logits": accuracy(mix_logits(experts), labels),
        "experts": each,
    }


def _cautions(assembled: Assembled, context: RunContext) -> list[str]:
    """Where a component may have seen the study's validation images, or even its test images."""
    here = context.identity(context.study.tasks[0]).of_data
    found = []
    for part in assembled.parts:
        there = of_data(part.settings)
        if not there:
            found.append(f"{part.field}: it isn't known on which data {part.path} was trained")
        elif differing := here.differences(there):
            problem = f"was trained on other data or splits ({'; '.join(differing)})"
            found.append(f"{part.field}: {part.path} {problem} and may know these images")
    return found


def assembled_table(assembled: Assembled, measured: Mapping[str, Any]) -> Table:
    """What `measure_assembled` found, for people."""
    on = measured["evaluated_on"]
    title = f"The assembled model on {on['study']} ({on['data']})"
    table = Table(title=title, caption=NOTE, box=SIMPLE_HEAD)
    table.caption_justify = "left"
    table.add_column("")
    columns = {"validation": on["val_images"], "test": on["test_images"]}
    for name, images in columns.items():
        table.add_column(f"{name}\n({images} images)", justify="right")
    for key, label in LABELS.items():
        table.add_row(label, *(f"{measured[name][key]:.2f}" for name in columns))
    for k, part in enumerate(assembled.experts):
        cells = (f"{measured[name]['experts'][k]:.2f}" for name in columns)
        table.add_row(f"expert {k}: {part.info.model}", *cells)
    return table
