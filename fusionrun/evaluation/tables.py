"""evaluation.json for people: a main table in Markdown and on the terminal, a long one as CSV."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusionrun.common.text import NOT_AVAILABLE

Tree = Mapping[str, Any]

HEADINGS = ("model", "fusion", "fused", "best alternative", "its", "difference", "p", "NLL", "ECE")
LINES = ("row", "contender", "top-1", "difference", "p", "NLL", "ECE")
LEFT = ("model", "fusion", "control", "best alternative", "row", "contender", "method")
CONTROLS = ("model", "fusion", "fused", "control", "its", "difference", "p")
SEEDS = ("fused", "best_expert", "mean_probabilities", "mean_logits", "weighted", "gain")

TITLE = "Fused models and their best alternatives"
LEGEND = (
    "Test accuracy in percent. The best alternative is the one with the highest validation "
    "accuracy; difference: fused minus it in points, with its 95 % interval (paired bootstrap) "
    "and McNemar's p. NLL (nats) and ECE (percent) of both, each after a temperature fitted on "
    "validation."
)
CONTROLS_TITLE = "Does fusion itself help? Fused models and their controls"
SEEDS_TITLE = "Mean ± sample standard deviation over seeds"

CSV_COLUMNS = (
    "task",
    "model",
    "fusion",
    "variant",
    "seed",
    "alpha",
    "epoch",
    "contender",
    "stage",
    "top1",
    "top5",
    "nll",
    "ece",
    "brier",
    "temperature",
    "calibrated_nll",
    "calibrated_ece",
    "calibrated_brier",
    "difference",
    "low",
    "high",
    "only_fused",
    "only_other",
    "p_value",
)


def tables(tree: Tree) -> Group:
    """For the terminal: of every row a line for the fused model, and below it its rival's."""
    main = rich_table(TITLE, LINES, [_double_cells(row) for row in tree["rows"]], caption=LEGEND)
    parts: list[RenderableType] = [main]
    if controls := _controls(tree):
        parts.append(rich_table(CONTROLS_TITLE, CONTROLS, controls))
    if tree["over_seeds"]:
        parts.append(rich_table(SEEDS_TITLE, *_seeds(tree)))
    return Group(*parts, *(Text(line) for line in _remarks(tree)))


def markdown(tree: Tree) -> str:
    """evaluation.md."""
    data = tree["data"]
    parts = [
        f"# {TITLE}\n\n{tree['study']}, {tree['evaluated']}: {data['name']}, "
        f"{data['test_images']} test and {data['val_images']} validation images.\n",
        markdown_table(HEADINGS, [_cells(row) for row in tree["rows"]]),
        f"{LEGEND}\n",
        "".join(f"- {line}\n" for line in _remarks(tree)),
    ]
    if controls := _controls(tree):
        parts += [f"## {CONTROLS_TITLE}\n", markdown_table(CONTROLS, controls)]
    if tree["over_seeds"]:
        parts += [f"## {SEEDS_TITLE}\n", markdown_table(*_seeds(tree))]
    return "\n".join(part for part in parts if part)


def long_rows(tree: Tree) -> Iterator[dict[str, object]]:
    """A line for each contender of each row that was evaluated, by CSV_COLUMNS."""
    for row in tree["rows"]:
        for contender in row.get("contenders", ()):
            found = {**row, **contender, "contender": contender["key"]}
            found |= {f"calibrated_{key}": value for key, value in found["calibrated"].items()}
            difference = contender["difference"] or {}
            found |= {**difference, "difference": difference.get("points")}
            yield {column: found.get(column) for column in CSV_COLUMNS}


def _cells(row: Tree) -> list[str]:
    """A line of the main table."""
    if row["problem"]:
        return [row["model"], row["variant"], *[NOT_AVAILABLE] * (len(HEADINGS) - 2)]
    fused, other = _rivals(row)
    points, interval, p = _difference(other)
    return [
        row["model"],
        row["variant"],
        f"{fused['top1']:.2f}",
        other["label"],
        f"{other['top1']:.2f}",
        f"{points} ({interval})",
        p,
        *(" / ".join(pair) for pair in zip(_calibrated(fused), _calibrated(other), strict=True)),
    ]


def _double_cells(row: Tree) -> list[str]:
    """The same in two lines."""
    name = f"{row['model']}\n{row['variant']}"
    if row["problem"]:
        return [name, *[NOT_AVAILABLE] * (len(LINES) - 1)]
    fused, other = _rivals(row)
    points, interval, p = _difference(other)
    return [
        name,
        f"{fused['label']}\n{other['label']}",
        f"{fused['top1']:.2f}\n{other['top1']:.2f}",
        f"{points}\n{interval}",
        p,
        *("\n".join(pair) for pair in zip(_calibrated(fused), _calibrated(other), strict=True)),
    ]


def _rivals(row: Tree) -> tuple[Tree, Tree]:
    """(fused, best alternative)."""
    contenders = {contender["key"]: contender for contender in row["contenders"]}
    return contenders["fused"], contenders[row["best_alternative"]]


def _difference(other: Tree) -> tuple[str, str, str]:
    """(points, interval, p)."""
    found = other["difference"]
    p = "<0.001" if found["p_value"] < 0.001 else f"{found['p_value']:.3f}"
    return f"{found['points']:+.2f}", f"{found['low']:+.2f} to {found['high']:+.2f}", p


def _calibrated(contender: Tree) -> tuple[str, str]:
    """(NLL, ECE)."""
    found = contender["calibrated"]
    return f"{found['nll']:.3f}", f"{found['ece']:.1f}"


def _controls(tree: Tree) -> list[list[str]]:
    """A line for each row and each of its controls."""
    lines = []
    for row in tree["rows"]:
        for contender in row.get("contenders", ()):
            if contender["stage"] == "control":
                points, interval, p = _difference(contender)
                name = contender["label"].removeprefix("control: ")
                fused = f"{row['contenders'][0]['top1']:.2f}"
                numbers = [f"{contender['top1']:.2f}", f"{points} ({interval})", p]
                lines.append([row["model"], row["variant"], fused, name, *numbers])
    return lines


def _seeds(tree: Tree) -> tuple[list[str], list[list[str]]]:
    """(headings, lines)."""
    names = ["model", "fusion", "alpha", "seeds"]
    lines = []
    for group in tree["over_seeds"]:
        columns = [group["columns"][key] for key in SEEDS]
        texts = [f"{column['mean']:.2f} ± {column['deviation']:.2f}" for column in columns]
        lines.append([*(str(group[name]) for name in names), *texts])
    return [*names, *(key.replace("_", " ") for key in SEEDS)], lines


def _remarks(tree: Tree) -> list[str]:
    """The verdict, then what a reader must not overlook."""
    problems = [
        f"{row['task']}: not evaluated: {row['problem']}" for row in tree["rows"] if row["problem"]
    ]
    measured = [row for row in tree["rows"] if not row["problem"]]
    alarms = [f"{row['task']}: {row['xray']['alarm']}" for row in measured if row["xray"]["alarm"]]
    verdict = [_verdict(rows)] if (rows := [row for row in measured if not row["control"]]) else []
    return [*verdict, *alarms, *problems, *_training(tree["training"])]


def _training(of: Tree | None) -> list[str]:
    if of is None:
        return []
    serial, parallel = of["serial_seconds"] / 60, of["parallel_seconds"] / 60
    return [
        f"All {of['tasks']} experts and rows together trained for {serial:.1f} minutes, in "
        f"{parallel:.1f} minutes in which any of them trained: {serial / parallel:.2f} at a time."
    ]


def _verdict(rows: Sequence[Tree]) -> str:
    """How often the interval leaves no doubt about who is ahead."""
    differences = [_rivals(row)[1]["difference"] for row in rows]
    won = sum(difference["low"] > 0 for difference in differences)
    lost = sum(difference["high"] < 0 for difference in differences)
    return (
        f"Of {len(rows)} rows, fused is ahead of its best alternative in {won} and behind in "
        f"{lost}; {len(rows) - won - lost} too close to tell (the interval holds 0)."
    )


def rich_table(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str | None = None
) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption_justify = "left"
    for heading in headings:
        justify: Any = "left" if heading in LEFT else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for line in lines:
        table.add_row(*line, style="dim" if NOT_AVAILABLE in line else "")
    return table


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---" if heading in LEFT else "--:" for heading in headings]
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, marks, *lines])
