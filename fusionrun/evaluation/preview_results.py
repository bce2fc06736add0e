"""preview.json, format 1: what `preview` found of the fusions, and how people read it."""

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from rich.console import Group as Lines
from rich.text import Text

from fusionrun.common.atomic_files import write_json, write_text
from fusionrun.common.typed_fields import plain
from fusionrun.evaluation.alternatives import METHODS
from fusionrun.evaluation.schema import RunHeader
from fusionrun.evaluation.statistics.seeds import spread
from fusionrun.study.study import Study
from fusionrun.tables import headline
from fusionrun.tables.markdown import markdown_table
from fusionrun.tables.table import Column, Table
from fusionrun.tables.terminal import terminal_table

TITLE = "Fusions on the features of frozen experts"
LEGEND = (
    "Validation accuracy in percent, mean ± sample standard deviation over seeds. "
    f"{headline.GAIN}: points over the mean of the frozen experts' probabilities on the same "
    "images. Epochs and best expert were chosen on them, too, which flatters both a little. "
    "Experts that train with their fusion can change the order."
)


@dataclass(frozen=True)
class FusionPreview:
    """A fusion over the seeds; one with a problem has no numbers."""

    fusion: str
    problem: str = ""
    accuracies: tuple[float, ...] = ()  # of each seed
    epochs: tuple[int, ...] = ()  # the best one of each seed
    mean: float | None = None
    deviation: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ModelPreview:
    """The experts of an architecture's rows, or of a mixed row, and their fusions, best first."""

    model: str
    problem: str
    images: int  # of training
    mean_probabilities: float
    best_expert: float
    fusions: tuple[FusionPreview, ...]
    best_expert_name: str = ""
    members: tuple[str, ...] = ()  # of mixed rows


@dataclass(frozen=True)
class FailedModel:
    """Experts that can't be had."""

    model: str
    problem: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preview(RunHeader):
    """preview.json, format 1. Accuracies are percent; None is what was not measured."""

    epochs: int  # of each training
    seeds: tuple[int, ...]
    models: tuple[ModelPreview | FailedModel, ...]

    @property
    def failures(self) -> tuple[FailedModel, ...]:
        return tuple(model for model in self.models if isinstance(model, FailedModel))


COLUMNS = (
    Column("model", "name", itemgetter(0)),
    Column("fusion", "name", itemgetter(1)),
    Column("validation", "written", itemgetter(2)),
    Column(headline.GAIN, "written", itemgetter(3)),
    Column("seeds", "written", itemgetter(4), dispensable=2),
    Column("seconds", "written", itemgetter(5), dispensable=1),
)


def write_preview(study: Study, found: Preview) -> Path:
    """preview.json and preview.md; returns the one that has everything."""
    parts = [
        f"# {TITLE}\n\n{found.study}, {found.evaluated}: {found.data.name}, "
        f"{found.data.val_images} validation images, {found.epochs} epochs, seeds "
        f"{', '.join(map(str, found.seeds))}.\n",
        markdown_table(Table(TITLE, COLUMNS, lines(found))),
        f"{LEGEND}\n",
        "".join(f"- {line}\n" for line in problems(found)),
    ]
    write_json(study.layout.preview("json"), plain(found))
    write_text(study.layout.preview("md"), "\n".join(part for part in parts if part))
    return study.layout.preview("json")


def tables(found: Preview, width: int) -> Lines:
    """For the terminal."""
    table = terminal_table(Table(TITLE, COLUMNS, lines(found), LEGEND), width)
    return Lines(table, *(Text(line) for line in problems(found)))


def lines(found: Preview) -> list[tuple[str | None, ...]]:
    """By COLUMNS; among the fusions what they have to beat."""
    drawn: list[tuple[str | None, ...]] = []
    shown = headline.digits(found.data.val_images)
    for model in found.models:
        if isinstance(model, FailedModel):
            drawn.append((model.model, *[None] * 5))
            continue
        bar, best = model.mean_probabilities, model.best_expert
        mean_label, best_label = (
            METHODS[k].label for k in (headline.AVERAGING, headline.BEST_EXPERT)
        )
        ranked: list[tuple[float, tuple[str | None, ...]]] = []
        for of in model.fusions:
            cells: tuple[str | None, ...] = (of.fusion, *[None] * 4)
            if of.mean is not None and of.seconds is not None:
                mean = spread(of.accuracies).text(shown)
                over, seconds = headline.signed(of.mean - bar, shown), f"{of.seconds:.0f}"
                cells = (of.fusion, mean, over, str(len(of.accuracies)), seconds)
            ranked.append((of.mean or 0.0, cells))
        ranked.append((bar, (mean_label, f"{bar:.{shown}f}", "", "", "")))
        over = headline.signed(best - bar, shown)
        ranked.append((best, (best_label, f"{best:.{shown}f}", over, "", "")))
        ranked.sort(key=lambda pair: pair[0], reverse=True)
        drawn += [(model.model, *cells) for _, cells in ranked]
    return drawn


def problems(found: Preview) -> list[str]:
    few = headline.too_few(found.data.val_images)
    said = [f"Warning: {few}."] if few else []
    types = (of.fusion for m in found.models if isinstance(m, ModelPreview) for of in m.fusions)
    if note := headline.types_note(types, found.fusion_recipe):
        said.append(note)
    said += [f"note: {note}" for note in found.data.notes]
    for model in found.models:
        if model.members:
            name = "" if isinstance(model, FailedModel) else model.best_expert_name
            best = f"; best expert: {name}" if name else ""
            said.append(f"{model.model}: {', '.join(model.members)}{best}")
        if isinstance(model, FailedModel):
            said.append(f"{model.model}: not measured: {model.problem}")
            continue
        for of in model.fusions:
            if of.problem:
                said.append(f"{model.model}, {of.fusion}: not measured: {of.problem}")
    return said
