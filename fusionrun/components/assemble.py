"""`assemble MANIFEST OUTPUT_DIR`: one model of components that different rows or runs trained."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fusionrun import __version__
from fusionrun.common.atomic_files import write_atomically
from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, divide_threads
from fusionrun.common.exit_status import ExitStatus
from fusionrun.components.assembly import (
    SHARED,
    Part,
    Plan,
    blame,
    check_equal,
    find_parts,
    join,
    read_plan,
)
from fusionrun.components.manifest import ComponentFile, Manifest, component_paths, write_manifest
from fusionrun.components.store import state_hash
from fusionrun.data.datasets import DataError
from fusionrun.evaluation.alternatives import accuracy
from fusionrun.evaluation.statistics.metrics import mix_logits, mix_probabilities
from fusionrun.fusions import FusionModel
from fusionrun.study.context import EVALUATION_BATCH, RunContext, open_context
from fusionrun.study.paths import Layout, RowFiles
from fusionrun.study.recipe import RecipeError
from fusionrun.study.recipe_yaml import load_recipe
from fusionrun.study.study import Study, plan_study
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


def assemble(manifest: Path, output_dir: Path, rank_info: RankInfo, console: Console) -> int:
    """Put the model together, measure it where a study is named, save it; returns 0.

    Raises RecipeError, naming the manifest's field, for what can't be used or doesn't fit, and
    LaunchError when the study's data or the device isn't there, or nothing can be written.
    """
    plan = read_plan(manifest)
    measured: dict[str, Any] = {"validation": {}, "test": {}, "evaluated_on": None}
    try:
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise RecipeError(f"{output_dir}: is there already; expected a new or an empty folder")
        parts = find_parts(plan)
        model = join(plan, parts)
        if plan.evaluate is not None:
            study = _plan_study(plan, plan.evaluate)
            measured = _measure(plan, parts, model, study, rank_info)
        _save(output_dir, plan, parts, model, measured)
    except (DataError, OSError) as error:
        raise LaunchError(str(error)) from None
    if measured["evaluated_on"] is not None:
        console.print(_table(measured, parts))
        for caution in measured["evaluated_on"]["cautions"]:
            console.print(caution, markup=False, soft_wrap=True)
    console.print(f"assembled model: {output_dir}", markup=False, soft_wrap=True)
    return ExitStatus.DONE


def _plan_study(plan: Plan, folder: str) -> Study:
    with blame(plan, "evaluate"):
        output_dir = Path(folder).expanduser()
        path = Layout(output_dir).recipe
        return plan_study(load_recipe(path, preset={"output_dir": str(output_dir)}), str(path))


def _measure(
    plan: Plan, parts: Sequence[Part], model: FusionModel, study: Study, rank_info: RankInfo
) -> dict[str, Any]:
    """What the manifest says of the model's accuracy, in percent. Raises DataError, OSError."""
    context = open_context(
        study,
        choose_device(rank_info, study.recipe.runtime.device),
        divide_threads(rank_info, study.recipe.runtime.threads),
        progress=partial(print, file=sys.stderr, flush=True),
    )
    _check_data(plan, parts[0], context)
    context.settle(model)
    validation = collect_logits(
        model, context.loader(context.splits.fusion_val, EVALUATION_BATCH), bf16=context.bf16
    )
    test = collect_logits(model, context.test_loader(EVALUATION_BATCH), bf16=context.bf16)
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
            "cautions": _cautions(parts, context),
        },
    }


def _check_data(plan: Plan, first: Part, context: RunContext) -> None:
    """Raise RecipeError unless the study's images are what the components take."""
    data = context.data
    found = {
        "num_classes": len(data.classes),
        "classes": list(data.classes),
        "image_size": data.test_images.shape[-1],
        "mean": list(data.mean),
        "std": list(data.std),
    }
    with blame(plan, "evaluate"):
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


def _cautions(parts: Sequence[Part], context: RunContext) -> list[str]:
    """Where a component may have seen the study's validation images, or even its test images."""
    here = context.identity(context.study.tasks[0]).of_data
    found = []
    for part in parts:
        there = of_data(part.settings)
        if not there:
            found.append(f"{part.field}: it isn't known on which data {part.path} was trained")
        elif differing := here.differences(there):
            problem = f"was trained on other data or splits ({'; '.join(differing)})"
            found.append(f"{part.field}: {part.path} {problem} and may know these images")
    return found


def _table(measured: Mapping[str, Any], parts: Sequence[Part]) -> Table:
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
    for k, part in enumerate(parts[:-2]):
        cells = (f"{measured[name]['experts'][k]:.2f}" for name in columns)
        table.add_row(f"expert {k}: {part.info.model}", *cells)
    return table


# --- files ---------------------------------------------------------------------------------------


def _save(
    directory: Path,
    plan: Plan,
    parts: Sequence[Part],
    model: FusionModel,
    measured: Mapping[str, Any],
) -> None:
    """Copies of the components, then the manifest that vouches for them. Raises OSError."""
    files = RowFiles(directory, csv=Path())
    *experts, fusion, _ = parts
    first = experts[0].info
    copies = component_paths(files, len(experts))
    for part, path in zip(parts, copies.values(), strict=True):
        _copy(part.path, path)
    manifest = Manifest(
        model="+".join(dict.fromkeys(part.info.model for part in experts)),
        fusion=fusion.info.fusion,
        num_experts=len(experts),
        **{name: getattr(first, name) for name in SHARED},
        val_accuracy=measured["validation"].get("fused"),
        settings={},
        weights=state_hash(model.state_dict()),
        validation=measured["validation"],
        test=measured["test"],
        assembled={
            "by": str(plan.path),
            "at": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            "versions": {"fusionrun": __version__, "torch": torch.__version__},
            "from": {name: _origin(part) for name, part in zip(copies, parts, strict=True)},
            "evaluated_on": measured["evaluated_on"],
        },
        components={
            name: ComponentFile(str(path.relative_to(directory)), part.sha256, path.stat().st_size)
            for (name, path), part in zip(copies.items(), parts, strict=True)
        },
    )
    write_manifest(files.manifest, manifest)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content:
        write_atomically(target, lambda file: shutil.copyfileobj(content, file))


def _origin(part: Part) -> dict[str, Any]:
    names = ("model", "fusion", "expert", "epoch", "val_accuracy")
    said = {name: getattr(part.info, name) for name in names}
    return {"file": str(part.path), "sha256": part.sha256, "row": part.row, **said}
