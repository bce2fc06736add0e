"""robustness.json for people: tables in Markdown and on the terminal, every accuracy as CSV."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fusionrun.common.text import NOT_AVAILABLE
from fusionrun.evaluation.tables import markdown_table, rich_table

Tree = Mapping[str, Any]

MAIN = ("fused", "best_expert", "mean_probabilities")  # contenders of the main table
RIVAL = "mean_probabilities"

TITLE = "Accuracy on noisy and corrupted images"
LEGEND = (
    "Test accuracy in percent. noise: Gaussian noise of that standard deviation added after "
    "normalisation. corrupted: mean over fifteen corruptions at five severities, made by "
    "fusionrun; kept: that as percent of clean. The best expert is chosen on validation; experts "
    "are as fusion training left them."
)
PUBLISHED_LEGEND = " published: the same on the published images of the folder given."
EACH_TITLE = "Corruption by corruption"
EACH_LEGEND = "Test accuracy in percent, mean over five severities."
DETECTION_TITLE = "Telling foreign images from the study's own"
DETECTION_LEGEND = (
    "AUROC in percent (50: chance): how often a clean test image gets a higher score than a "
    "foreign one. Energy is the log of the sum of exponentials of the logits; averaged "
    "probabilities have none."
)
SCORES = {"max_probability": "largest probability", "energy": "energy"}
DETECTED = ("images", "contender", "score", "AUROC", "AUPR in", "AUPR out", "FPR at 95 % TPR")
MORE_LEGEND = (
    "AUPR: average precision of finding the own images (in) or the foreign ones (out). FPR at 95 % "
    "TPR: foreign images that pass where 95 % of the own do."
)

CSV_COLUMNS = ("task", "model", "fusion", "set", "severity", "contender", "top1")


def tables(tree: Tree) -> Group:
    """For the terminal."""
    headings, legend = _headings(tree)
    main = [_stacked(row, _accuracy_lines(tree, row)) for row in tree["rows"]]
    parts: list[RenderableType] = [rich_table(TITLE, ["row", *headings], main, caption=legend)]
    names = ["row", "contender", *(of["name"].replace("_", " ") for of in tree["foreign"])]
    lines = [_stacked(row, _detection_lines(tree, row)) for row in tree["rows"]]
    legend = f"{DETECTION_LEGEND} By {' / by '.join(SCORES.values())}."
    parts.append(rich_table(DETECTION_TITLE, names, lines, caption=legend))
    return Group(*parts, *(Text(line) for line in _remarks(tree)))


def markdown(tree: Tree) -> str:
    """robustness.md."""
    headings, legend = _headings(tree)
    parts = [
        f"# {TITLE}\n\n{tree['study']}, {tree['evaluated']}: {tree['data']['name']}, "
        f"{tree['images']} of {tree['data']['test_images']} test images.\n",
        markdown_table(["model", "fusion", *headings], _lines(tree, _accuracy_lines)),
        f"{legend}\n",
        "".join(f"- {line}\n" for line in _remarks(tree)),
    ]
    for suite, what in (("made", "made by fusionrun"), ("published", "published images")):
        if names := _corruptions(tree, suite):
            lines = _lines(tree, partial(_corruption_lines, suite))
            table = markdown_table(["model", "fusion", "contender", *names], lines)
            parts += [f"## {EACH_TITLE}, {what}\n", table, f"{EACH_LEGEND}\n"]
    detection = markdown_table(["model", "fusion", *DETECTED], _lines(tree, _every_detection))
    parts += [f"## {DETECTION_TITLE}\n", detection, f"{DETECTION_LEGEND} {MORE_LEGEND}\n"]
    return "\n".join(part for part in parts if part)


def long_rows(tree: Tree) -> Iterator[dict[str, object]]:
    """A line for every accuracy, by CSV_COLUMNS; severity is sigma where the set is noise."""
    for row in tree["rows"]:
        for contender in row.get("contenders", ()):
            common = {column: row[column] for column in ("task", "model", "fusion")}
            for name, severity, top1 in _accuracies(contender):
                of = {"set": name, "severity": severity, "contender": contender["key"]}
                yield {**common, **of, "top1": top1}


def _accuracies(contender: Tree) -> Iterator[tuple[str, float | None, float]]:
    """(set, severity, top1)."""
    yield "clean", None, contender["clean"]
    for of in contender["noise"]:
        yield "noise", of["sigma"], of["top1"]
    for suite, prefix in (("made", ""), ("published", "published:")):
        for corruption in (contender[suite] or {"corruptions": ()})["corruptions"]:
            for severity, top1 in enumerate(corruption["top1"], 1):
                yield f"{prefix}{corruption['name']}", severity, top1


def _headings(tree: Tree) -> tuple[list[str], str]:
    """(headings of the main table, its legend)."""
    sigmas = next((c["noise"] for row in tree["rows"] for c in row.get("contenders", ())), ())
    noise = [f"noise {of['sigma']:g}" for of in sigmas if of["sigma"]]
    headings = ["contender", "clean", *noise, "corrupted", "kept"]
    if tree["corrupted"]:
        return [*headings, "published", "kept of it"], LEGEND + PUBLISHED_LEGEND
    return headings, LEGEND


Cells = Callable[[Tree, Tree], Sequence[Sequence[str]]]


def _lines(tree: Tree, cells: Cells) -> list[list[str]]:
    """Of all rows, each contender's line after the row's model and variant."""
    return [[row["model"], row["variant"], *of] for row in tree["rows"] for of in cells(tree, row)]


def _stacked(row: Tree, lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a row as one, its name before them."""
    columns = zip(*lines, strict=True)
    return [f"{row['model']}\n{row['variant']}", *("\n".join(column) for column in columns)]


def _accuracy_lines(tree: Tree, row: Tree) -> list[list[str]]:
    """The main table's part of a row."""
    if row["problem"]:
        return [[NOT_AVAILABLE] * len(_headings(tree)[0])]
    suites = ["made", "published"] if tree["corrupted"] else ["made"]
    return [
        [
            contender["label"],
            _text(contender["clean"]),
            *(_text(of["top1"]) for of in contender["noise"] if of["sigma"]),
            *(_text(contender[suite][key]) for suite in suites for key in ("mean", "kept")),
        ]
        for contender in row["contenders"]
        if contender["key"] in MAIN
    ]


def _corruptions(tree: Tree, suite: str) -> list[str]:
    """Names of those that some row was asked about."""
    measured = [c[suite] for row in tree["rows"] for c in row.get("contenders", ()) if c[suite]]
    return [corruption["name"] for corruption in measured[0]["corruptions"]] if measured else []


def _corruption_lines(suite: str, tree: Tree, row: Tree) -> list[list[str]]:
    if row["problem"]:
        return [[NOT_AVAILABLE] * (1 + len(_corruptions(tree, suite)))]
    return [
        [contender["label"], *(_text(of["mean"]) for of in contender[suite]["corruptions"])]
        for contender in row["contenders"]
        if contender["key"] in MAIN
    ]


def _detection_lines(tree: Tree, row: Tree) -> list[list[str]]:
    """AUROC by both scores, for each contender and foreign set."""
    if row["problem"]:
        return [[NOT_AVAILABLE] * (1 + len(tree["foreign"]))]
    labels = {contender["key"]: contender["label"] for contender in row["contenders"]}
    found = {(of["contender"], of["set"], of["score"]): of["auroc"] for of in row["detection"]}
    return [
        [
            labels[key],
            *(
                " / ".join(_text(found[key, of["name"], score]) for score in SCORES)
                for of in tree["foreign"]
            ),
        ]
        for key in dict.fromkeys(key for key, _, _ in found)
    ]


def _every_detection(tree: Tree, row: Tree) -> list[list[str]]:
    """By DETECTED."""
    if row["problem"]:
        return [[NOT_AVAILABLE] * len(DETECTED)]
    labels = {contender["key"]: contender["label"] for contender in row["contenders"]}
    numbers = ("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr")
    return [
        [of["set"], labels[of["contender"]], SCORES[of["score"]], *(_text(of[n]) for n in numbers)]
        for of in row["detection"]
    ]


def _text(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.2f}"


def _remarks(tree: Tree) -> list[str]:
    """The verdict, what the foreign images are, then what a reader must not overlook."""
    measured = [row for row in tree["rows"] if not row["problem"]]
    verdict = _verdict(measured)
    foreign = [f"{of['name']}: {of['images']} images: {of['about']}" for of in tree["foreign"]]
    problems = [
        f"{row['task']}: not measured: {row['problem']}" for row in tree["rows"] if row["problem"]
    ]
    return [*([verdict] if verdict else []), *foreign, *tree["notes"], *problems]


def _verdict(rows: Sequence[Tree]) -> str:
    """How often fused keeps ahead of the experts' mean when images are corrupted."""
    pairs = []
    for row in rows:
        means = {contender["key"]: contender["made"]["mean"] for contender in row["contenders"]}
        if RIVAL in means:
            pairs.append((means["fused"], means[RIVAL]))
    ahead = sum(fused > rival for fused, rival in pairs)
    return (
        f"On corrupted images fused is more accurate than the mean of its experts' probabilities "
        f"in {ahead} of {len(pairs)} rows (plain means, without intervals)."
        if pairs
        else ""
    )
