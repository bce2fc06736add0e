"""An output directory as an object: its recipe, results, models, data and evaluation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from fusionrun.common.distributed import read_rank_info
from fusionrun.common.file_paths import expanded_path
from fusionrun.common.text import nearest
from fusionrun.common.typed_fields import read_json
from fusionrun.components.store import load_model, load_single
from fusionrun.data.datasets import Dataset
from fusionrun.evaluation.evaluate import evaluate as evaluate_study
from fusionrun.evaluation.results import Result, collect_results
from fusionrun.evaluation.schema import Evaluation
from fusionrun.experts import Expert
from fusionrun.experts.ensemble import Ensemble
from fusionrun.fusions import FusionModel
from fusionrun.study.context import load_images
from fusionrun.study.paths import Layout
from fusionrun.study.recipe import Recipe
from fusionrun.study.rows import Row
from fusionrun.study.stored import stored_study
from fusionrun.study.study import Study


class OpenStudy:
    """A study's output directory, finished or not; `train` and `open_study` return one."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __repr__(self) -> str:
        return f"OpenStudy({str(self.paths.output_dir)!r}, {len(self.rows)} rows)"

    @property
    def recipe(self) -> Recipe:
        """As it was resolved, every field with its value."""
        return self._study.recipe

    @property
    def rows(self) -> tuple[Row, ...]:
        """The experiments, in the recipe's order."""
        return self._study.rows

    @property
    def paths(self) -> Layout:
        """Where each of the study's files lies."""
        return self._study.layout

    @property
    def results(self) -> list[Result]:
        """Each row's test accuracies in percent, None where not measured; read again each time."""
        return collect_results(self._study)

    def load_model(self, row: Row | str) -> FusionModel | Expert | Ensemble:
        """The trained model of a row, or of its name: resnet/concatenation, or as in results.

        On the CPU, in evaluation mode; a row that is one network gives an Expert, a full
        ensemble its networks, which answer together. Raises
        ValueError for a row that isn't there, CheckpointError for one that isn't finished.
        """
        by_name = {f"{each.model}/{each.variant}": each for each in self.rows}
        if isinstance(row, str):
            found = by_name.get(row) or {each.name: each for each in self.rows}.get(row)
            if found is None:
                raise ValueError(f"{self!r}: no row {row!r}; {nearest(row, by_name)}")
            row = found
        directory = self.paths.row(row.model, row.variant).directory
        load = load_single if row.is_single else load_model
        return load(directory, self.recipe.plugins.values())

    def load_data(self) -> Dataset:
        """The images and labels of the study; its `test_images` are uint8, as `predict` takes them.

        Raises DataError.
        """
        return load_images(self._study, progress=lambda text: None)

    def evaluate(self, *, output: str | os.PathLike[str] | None = None) -> Evaluation:
        """Measure every finished row beside its alternatives, as the command does.

        Writes evaluation.*, results.* and the rows' predictions, to the study or to the folder
        `output`. What can't be measured is among the returned `failures`. Raises LaunchError when
        data, split or device isn't there, or nothing can be written.
        """
        study = self._study.measured_in(None if output is None else expanded_path(output))
        with process_as_found():
            evaluate_study(study, read_rank_info({}), Console(quiet=True))
        return read_json(study.layout.evaluation("json"), Evaluation)


def open_study(output_dir: str | os.PathLike[str], *overrides: str) -> OpenStudy:
    """The study in `output_dir`, finished or not.

    `overrides` are key=value for where things lie now, e.g. data.root=/data. Raises RecipeError.
    """
    return OpenStudy(stored_study(expanded_path(output_dir), overrides))


def evaluate(output_dir: str | os.PathLike[str], *overrides: str) -> Evaluation:
    """`open_study(output_dir, ...).evaluate()`."""
    return open_study(output_dir, *overrides).evaluate()


@contextmanager
def process_as_found() -> Iterator[None]:
    """Training sets torch up as it needs it; afterwards it is as the caller had it."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn: Any = torch.backends.cudnn  # whose `conv` mypy doesn't know
    convolutions = cudnn.conv.fp32_precision
    products = torch.backends.cuda.matmul.fp32_precision
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        if cudnn.conv.fp32_precision != convolutions:
            cudnn.allow_tf32 = convolutions == "tf32"
        if torch.backends.cuda.matmul.fp32_precision != products:
            torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
