"""An assembled model on a study's images, beside the alternatives that its experts are."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from rich.console import Group

from fusionrun.common.distributed import RankInfo
from fusionrun.common.file_paths import expanded_path
from fusionrun.common.typed_fields import build
from fusionrun.components.assemble import Assembled, blame, check_equal
from fusionrun.evaluation.accuracies import accuracies_by_method
from fusionrun.evaluation.alternatives import METHODS
from fusionrun.evaluation.opening import open_study
from fusionrun.evaluation.predictions import head_logits
from fusionrun.evaluation.problems import in_a_line, say
from fusionrun.evaluation.schema import Difference
from fusionrun.evaluation.statistics.metrics import accuracy
from fusionrun.study.context import RunContext
from fusionrun.study.stored import stored_study
from fusionrun.tables.headline import AVERAGING, GAIN, digits, too_few
from fusionrun.tables.table import Column, Images, Table
from fusionrun.tables.terminal import terminal_table
from fusionrun.training.identity import of_data

NOTE = (
    "Accuracy in percent. Nothing trained or selected this model as a whole: the numbers are those "
    "of this one combination. To choose among several, use validation, not the test set."
)


def measure_assembled(
    assembled: Assembled, folder: str, rank_info: RankInfo, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """What the manifest says of the model's accuracy on the study in `folder`, in percent.

    Raises RecipeError where that study can't be opened or has images that the components don't
    take, LaunchError, DataError and OSError.
    """
    with blame(assembled.plan, "evaluate"):
        study = stored_study(expanded_path(folder), overrides)
    context = open_study(study, rank_info, say)
    _check_data(assembled, context)
    with in_a_line():
        context.settle(assembled.model)
        validation, test = (
            head_logits(context, assembled.model, loader)
            for loader in (
                context.loader(context.splits.fusion_val, context.evaluation_batch),
                context.test_loader(),
            )
        )
    val_accuracies = [accuracy(e, validation.labels) for e in validation.of("after").unbind(dim=1)]
    return {
        "validation": accuracies_by_method(validation, val_accuracies),
        "test": accuracies_by_method(test, val_accuracies),
        "evaluated_on": {
            "study": str(study.layout.output_dir),
            "data": context.data.name,
            "fingerprint": context.data.fingerprint,
            "val_images": len(validation.labels),
            "test_images": len(test.labels),
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


def assembled_table(assembled: Assembled, measured: Mapping[str, Any]) -> Group:
    """What `measure_assembled` found, for people."""
    on, splits = measured["evaluated_on"], (measured["validation"], measured["test"])
    lines = [
        (method.label, *(split[method.key] for split in splits))
        for method in METHODS.values()
        if method.key in measured["test"]
    ]
    for k, part in enumerate(assembled.experts):
        lines.append((f"expert {k}: {part.info.model}", *(split["experts"][k] for split in splits)))
    columns = (
        Column("", "text", itemgetter(0)),
        Column(f"validation ({on['val_images']} images)", "validation", itemgetter(1)),
        Column(f"test ({on['test_images']} images)", "accuracy", itemgetter(2)),
    )
    images = Images(on["test_images"], on["val_images"])
    found = build(Difference, measured["test"]["differences"][AVERAGING])
    gain = found.margin.text(digits(images.test)).replace("\n", " ")
    note = f"{GAIN}, test: {gain} points, with its 95 % interval. {NOTE}"
    few = too_few(on["val_images"])
    title = f"The assembled model on {on['study']} ({on['data']})"
    table = Table(title, columns, lines, f"{note} Warning: {few}." if few else note, images=images)
    return terminal_table(table)
