"""What `python -m tests.figures` measured, and how documents show it."""

import json
from dataclasses import dataclass
from pathlib import Path

from fusionrun.common.typed_fields import read_json
from fusionrun.evaluation.over_seeds import TypeComparison
from fusionrun.evaluation.preview_results import ModelPreview
from fusionrun.tables.headline import GAIN, Margin, digits
from fusionrun.tables.table import p_value

FOLDER = Path(__file__).parent
COLUMNS = {  # of results.csv: heading in the documents
    "fused": "fused",
    "mean_probabilities": "mean prob.",
    "gain": GAIN,
    "best_expert": "best expert",
    "mean_logits": "mean logits",
    "before_mean_logits": "before: mean logits",
}
IN_HEADERS = {key: heading for key, heading in COLUMNS.items() if "mean_logits" not in key}
CONTROLS = {
    "frozen": "experts frozen",
    "detached": "experts without fusion",
    "single": "one network",
    "full_ensemble": "full ensemble",
}


@dataclass(frozen=True)
class Accuracies:
    """A row of results.csv in percent, and the interval of its gain, where it's known."""

    model: str
    fusion_type: str
    fused: float
    best_expert: float
    mean_probabilities: float
    mean_logits: float
    before_mean_logits: float
    gain_low: float | None = None
    gain_high: float | None = None

    @property
    def gain(self) -> float:
        return self.fused - self.mean_probabilities


@dataclass(frozen=True)
class Control:
    """A row beside one of its controls, as evaluation.json has it."""

    model: str
    fusion_type: str
    seed: int
    control: str
    fused: float
    accuracy: float
    low: float  # 95 % interval of fused minus the control in points
    high: float


@dataclass(frozen=True)
class Record:
    """What one recipe gave, on which machine."""

    recipe: str
    processor: str
    cores: int
    torch: str
    seconds: float  # of the whole command, Python's start included
    rows: tuple[Accuracies, ...]
    test_images: int


@dataclass(frozen=True)
class FusionTypes:
    """What a study of all fusion types gave, on which machine."""

    processor: str
    cores: int
    torch: str
    test_images: int
    val_images: int
    types: tuple[TypeComparison, ...]
    controls: tuple[Control, ...]
    frozen: tuple[ModelPreview, ...]  # on the features of experts that don't learn


def read(name: str) -> Record | None:
    """What was measured for configs/<name>.yaml, if it was."""
    path = FOLDER / f"{name}.json"
    return read_json(path, Record) if path.exists() else None


def header(record: Record) -> str:
    """Lines of comment for the recipe: time, result, what it says."""
    lines = [["model", "fusion", *IN_HEADERS.values()]]
    shown = digits(record.test_images)
    lines += [[row.model, row.fusion_type, *numbers(row, IN_HEADERS, shown)] for row in record.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    comment = [
        f"Time:   {spent(record.seconds)} on {machine(record)}, once Python is set up.",
        f"Result: test accuracy in percent (torch {record.torch}, one thread a rank):",
        "",
        *table,
        "",
        verdict(record),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in comment)


def results(record: Record) -> str:
    """The table of results.md's main columns."""
    lines = [["model", "fusion", *COLUMNS.values()], ["---", "---", *["--:"] * len(COLUMNS)]]
    shown = digits(record.test_images)
    lines += [[row.model, row.fusion_type, *numbers(row, COLUMNS, shown)] for row in record.rows]
    return table_of(lines)


def read_types() -> FusionTypes | None:
    """What was measured of all fusion types, if it was."""
    path = FOLDER / "fusion_types.json"
    return read_json(path, FusionTypes) if path.exists() else None


def controls(record: FusionTypes) -> str:
    """Rows that have every control beside these, with the intervals of the differences."""
    lines = [["model", "fusion", "seed", "fused", *CONTROLS.values()]]
    lines.append(["---", "---", *["--:"] * (len(CONTROLS) + 2)])
    shown = digits(record.test_images)
    found = {(one.model, one.fusion_type, one.seed, one.control): one for one in record.controls}
    for row in dict.fromkeys(key[:3] for key in found):
        beside = [found[*row, control] for control in CONTROLS if (*row, control) in found]
        if len(beside) == len(CONTROLS):
            model, fusion, seed = row
            cells = [
                f"{one.accuracy:.{shown}f} ({one.low:+.1f} to {one.high:+.1f})" for one in beside
            ]
            lines.append([model, fusion, str(seed), f"{beside[0].fused:.{shown}f}", *cells])
    return table_of(lines)


def fusion_types(record: FusionTypes) -> str:
    """Fusion types down, architectures across: means over seeds, gains over averaging."""

    def cell(found: TypeComparison) -> str:
        gain = found.gain.text(1, points=True).replace("\n", " ")
        return f"{found.fused.text(1)}; {gain}"

    cells = {(each.fusion, each.model): cell(each) for each in record.types}
    return _matrix(cells)


def against_best(record: FusionTypes) -> str:
    """Each type against the best other one of its architecture on validation."""

    def cell(found: TypeComparison) -> str:
        if found.difference is None:
            return "n/a"
        difference = found.difference.text(1, points=True).replace("\n", " ")
        p = "n/a" if found.p_holm is None else p_value(found.p_holm)
        return f"{found.best_other}: {difference}, p {p}"

    return _matrix({(each.fusion, each.model): cell(each) for each in record.types})


def frozen_features(record: FusionTypes) -> str:
    """What `preview` found: validation accuracies, with that of averaging first."""
    shown = digits(record.val_images)
    cells = {
        ("mean of probabilities", each.model): f"{each.mean_probabilities:.{shown}f}"
        for each in record.frozen
    }
    cells |= {
        (fusion.fusion, each.model): f"{fusion.mean:.{shown}f} ± {fusion.deviation:.{shown}f}"
        for each in record.frozen
        for fusion in each.fusions
        if fusion.mean is not None and fusion.deviation is not None
    }
    return _matrix(cells)


def _matrix(cells: dict[tuple[str, str], str]) -> str:
    """The cells of (fusion, model), in the order in which the names come."""
    fusions = dict.fromkeys(fusion for fusion, _ in cells)
    models = dict.fromkeys(model for _, model in cells)
    lines = [["fusion", *models], ["---", *["--:"] * len(models)]]
    lines += [[fusion, *(cells.get((fusion, m), "n/a") for m in models)] for fusion in fusions]
    return table_of(lines)


def types_conditions(record: FusionTypes) -> str:
    """When their tables are true."""
    return (
        "Read from that study by `python -m tests.figures fusion_types --study "
        f"runs/fusion_types`; {machine(record)}, torch {record.torch}."
    )


def conditions(record: Record) -> str:
    """When a table is true."""
    words = f"{spent(record.seconds)} on {machine(record)}, torch {record.torch}"
    return f"Measured by `python -m tests.figures {Path(record.recipe).stem}`: {words}."


def verdict(record: Record) -> str:
    """A sentence on what the rows say."""
    ahead = sum(row.gain > 0 for row in record.rows)
    return (
        f"The {GAIN} is positive in {ahead} of {len(record.rows)} rows; so short a run is for "
        "looking."
    )


def chaos() -> str:
    """How many kills the studies of `python -m tests.chaos` survived."""
    found = json.loads((FOLDER / "chaos.json").read_text())
    return (
        "Measured with `python -m tests.chaos --kills 50 --seed 100`: {worker} workers, {agent} "
        "torchruns and {tree} whole process trees killed at random in {studies} studies "
        "({launches} launches, {seconds} s); all of them ended with the weights and CSV numbers of "
        "the undisturbed one."
    ).format(**found)


def numbers(row: Accuracies, columns: dict[str, str], digits: int) -> list[str]:
    gain = Margin(row.gain, row.gain_low, row.gain_high).text(digits).replace("\n", " ")
    each = {key: f"{getattr(row, key):.{digits}f}" for key in columns if key != "gain"}
    return [each.get(key, gain) for key in columns]


def machine(record: Record | FusionTypes) -> str:
    return f"{record.cores} cores of an {record.processor}"


def spent(seconds: float) -> str:
    """2 min 7 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def table_of(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
