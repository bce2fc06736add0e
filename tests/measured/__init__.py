"""What `python -m tests.figures` measured, and how documents show it."""

import json
from dataclasses import dataclass
from pathlib import Path

from fusionrun.common.typed_fields import read_json
from fusionrun.tables.headline import GAIN, Margin, digits

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
    controls_seconds: float | None = None  # more, for the controls of all rows
    controls: tuple[Control, ...] = ()


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


def controls(record: Record) -> str:
    """Every row beside its controls, with the intervals of the differences."""
    lines = [["model", "fusion", "fused", *CONTROLS.values()], ["---", "---", *["--:"] * 4]]
    by_row: dict[tuple[str, str], list[str]] = {}
    for one in sorted(record.controls, key=lambda one: list(CONTROLS).index(one.control)):
        cells = by_row.setdefault((one.model, one.fusion_type), [f"{one.fused:.2f}"])
        cells.append(f"{one.accuracy:.2f} ({one.low:+.1f} to {one.high:+.1f})")
    for row in record.rows:
        key = (row.model, row.fusion_type)
        lines.append([*key, *by_row.get(key, ["n/a"] * 4)])
    return table_of(lines)


def conditions(record: Record) -> str:
    """When a table is true."""
    words = f"{spent(record.seconds)} on {machine(record)}, torch {record.torch}"
    if record.controls_seconds is not None:
        words += f"; the controls took {spent(record.controls_seconds)} more"
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


def machine(record: Record) -> str:
    return f"{record.cores} cores of an {record.processor}"


def spent(seconds: float) -> str:
    """2 min 7 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def table_of(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
