"""The report: what the page and the tables say is what evaluation.json says."""

import copy
import csv
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fusionrun.cli import main
from fusionrun.common.atomic_files import write_json
from fusionrun.logs.csv import row_columns, write_csv
from fusionrun.report.load import ReportError
from fusionrun.report.write import write_report
from fusionrun.study.paths import Layout
from fusionrun.tables.axis import round_ticks
from fusionrun.tables.headline import signed

CLASSES = ["airplane", "bird", "cat", "deer", "dog", "frog", "horse"]
NASTY = '<b>&"x_%$#{}~^|\\ [é中'
CONTENDERS = (
    ("fused", "fused", "fusion"),
    ("best_expert", "best expert", "after"),
    ("mean_probabilities", "mean of probabilities", "after"),
    ("mean_logits", "mean of logits", "after"),
    ("weighted", "weighted mean", "after"),
    ("stacking", "stacking", "after"),
    ("before_best_expert", "before: best expert", "before"),
    ("before_mean_probabilities", "before: mean of probabilities", "before"),
    ("before_mean_logits", "before: mean of logits", "before"),
    ("before_weighted", "before: weighted mean", "before"),
    ("before_stacking", "before: stacking", "before"),
)
# (points, low, high): fused over the best alternative
GAINS = ((1.23, 0.41, 2.04), (-2.51, -3.43, -1.62), (0.32, -0.48, 1.11), (3.07, 2.2, 3.9))
RECIPE = """
output_dir: {folder}
rows:
  - {{model: densenet, fusion: multiplicative}}
  - {{model: resnet, fusion: multiplicativeAddition}}
  - {{model: improved_wide_resnet, fusion: TransformerBase}}
  - {{model: resnext, fusion: concatenation}}
fusion: {{epochs: {epochs}}}
"""
ROWS = (
    ("densenet", "multiplicative"),
    ("resnet", "multiplicativeAddition"),
    ("improved_wide_resnet", "TransformerBase"),
    ("resnext", "concatenation"),
)


def make_evaluation(classes: list[str], seed: int = 1, **changes: Any) -> dict[str, Any]:
    """A plausible evaluation.json; every number is its own, so that none can stand for another."""
    draw = random.Random(seed)
    rows = [make_row(i, *names, classes, draw) for i, names in enumerate(ROWS)]
    spread = {"mean": draw.uniform(60, 80), "deviation": draw.uniform(0.1, 1)}
    return {
        "format": 1,
        "study": "configs/images.yaml",
        "output_dir": "runs/images",
        "evaluated": "2026-11-23 21:00:00",
        "data": {
            "name": "image_folder",
            "classes": classes,
            "test_images": 10000,
            "val_images": 240,
            "image_size": 32,
        },
        "device": "cpu",
        "threads": 2,
        "versions": {"fusionrun": "0.1.0", "torch": "2.14.1"},
        "rows": rows,
        "training": {"tasks": 12, "serial_seconds": 1234.0, "parallel_seconds": 617.0},
        "over_seeds": [
            {
                "model": "resnet",
                "fusion": "multiplicativeAddition",
                "alpha": 1.0,
                "seeds": 3,
                "columns": {"fused": spread, "gain": {"mean": -1.75, "deviation": 0.42}},
            }
        ],
        **changes,
    }


def make_row(
    index: int, model: str, fusion: str, classes: list[str], draw: random.Random
) -> dict[str, Any]:
    points, low, high = GAINS[index]
    fused = draw.uniform(60, 80)
    contenders = []
    for key, label, stage in CONTENDERS:
        best = key == "mean_probabilities"
        own = draw.uniform(1, 5)
        difference = {
            "points": points if best else own,
            "low": low if best else own - 0.9,
            "high": high if best else own + 0.9,
            "only_fused": draw.randrange(300, 400),
            "only_other": draw.randrange(200, 300),
            "p_value": (0.0031, 0.0004, 0.4417, 0.00002)[index] if best else draw.random(),
        }
        difference["p_holm"] = min(1.0, 9 * float(difference["p_value"]))
        contenders.append(
            {
                "key": key,
                "label": label,
                "stage": stage,
                "top1": fused if key == "fused" else fused - float(difference["points"]),
                "top5": None if len(classes) < 6 else draw.uniform(90, 99),
                "nll": draw.uniform(0.8, 1.2),
                "ece": draw.uniform(3, 9),
                "brier": draw.uniform(0.3, 0.5),
                "temperature": draw.uniform(1, 2),
                "calibrated": {
                    "nll": draw.uniform(0.7, 0.8),
                    "ece": draw.uniform(0.5, 2),
                    "brier": draw.uniform(0.2, 0.3),
                    "reliability": make_bins(draw),
                },
                "reliability": make_bins(draw),
                "difference": None if key == "fused" else difference,
            }
        )
    gains = [draw.gauss(0, 4) for _ in classes]
    accuracies = [draw.uniform(50, 80) for _ in classes]
    return {
        "task": f"task-{index}-{model}-{fusion}",
        "model": model,
        "fusion": fusion,
        "variant": fusion,
        "seed": 42,
        "alpha": 1.0,
        "epoch": 7,
        "problem": "",
        "contenders": contenders,
        "weights": [0.4, 0.3, 0.2, 0.1],
        "before_weights": [0.25] * 4,
        "experts": [
            {
                "expert": k,
                "top1": draw.uniform(50, 60),
                "before_top1": draw.uniform(40, 50),
                "validation": 55.0,
                "before_validation": 45.0,
            }
            for k in range(4)
        ],
        "per_class": {
            "fused": [a + g for a, g in zip(accuracies, gains, strict=True)],
            "best_alternative": accuracies,
            "gain": [*gains[:-1], None],
        },
        "best_alternative": "mean_probabilities",
        "xray": {
            "disagreement": [
                [0.0 if i == k else 0.2 + 0.05 * abs(i - k) for k in range(4)] for i in range(4)
            ],
            "oracle": draw.uniform(85, 95),
            "without_expert": [draw.uniform(55, 70) for _ in range(4)],
            "credit": {"only_expert": [draw.uniform(1, 9) for _ in range(4)], "no_expert": 2.17},
            "dominance": {
                "contested": draw.randrange(4000, 6000),
                "agreement": [draw.uniform(50, 80) for _ in range(4)],
                "carried_by": None,
            },
            "fused_without_expert": [fused - draw.uniform(-1, 9) for _ in range(4)],
            "attention": [0.1, 0.2, 0.3, 0.4] if fusion == "TransformerBase" else None,
            "gradients": None
            if index == 2
            else [{"fused_share": draw.uniform(5, 50), "cosine": 0.5 - k / 4} for k in range(4)],
            "alarm": "expert 2 alone decides 98.6 % of the contested images" if index == 1 else "",
        },
        "cost": {
            "parameters": draw.randrange(2_000_000, 40_000_000),
            "macs": draw.randrange(500_000_000, 6_000_000_000),
            "train_seconds": draw.uniform(500, 900),
            "expert_seconds": [draw.uniform(300, 500) for _ in range(4)],
            "latency_ms": draw.uniform(8, 12),
            "latency_low": 7.61,
            "latency_high": 12.42,
            "images_per_second": draw.uniform(800, 1200),
            "peak_memory_bytes": None,
        },
    }


def make_bins(draw: random.Random) -> list[dict[str, float | None]]:
    """The first bins of fifteen are empty, as they are of ten classes."""
    bins: list[dict[str, float | None]] = []
    for i in range(15):
        confidence = (i + draw.uniform(0.2, 0.8)) * 100 / 15
        samples = 0 if i < 2 else int(40 * 1.3**i)
        accuracy = max(confidence - draw.uniform(0, 12), 0.0)
        known = (confidence, accuracy) if samples else (None, None)
        bins.append(
            dict(zip(("samples", "confidence", "accuracy"), (samples, *known), strict=True))
        )
    return bins


def write_study(folder: Path, evaluation: dict[str, Any], epochs: int = 10) -> Path:
    """The files of a study that `report` reads."""
    layout = Layout(folder)
    write_json(layout.evaluation("json"), evaluation)
    layout.recipe.write_text(RECIPE.format(folder=folder, epochs=epochs))
    draw = random.Random(epochs)
    for row in evaluation["rows"]:
        lines = []
        for epoch in range(1, epochs + 1):
            level = 65 - 40 / (epoch + 0.5)
            accuracies = {
                "train_accuracy": level - 8 + draw.gauss(0, 1),
                "val_accuracy": level + draw.gauss(0, 1.5),
            }
            lines.append({"epoch": epoch, **accuracies})
        write_csv(layout.row(row["model"], row["variant"]).csv, row_columns(4), lines)
    return folder


class Page(HTMLParser):
    """A page taken apart; fails where an element isn't closed by its own tag."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.names: list[str] = []  # of all elements
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}  # by title, the header first
        self.strong: dict[str, set[tuple[int, int]]] = {}  # (line, column) of cells that stand out
        self.marks: list[tuple[str, str, dict[str, str], str]] = []  # chart, element, its text
        self._title = ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag == "meta":
            return
        self.open.append((tag, dict(attrs)))
        if tag in ("h4", "summary"):
            self._title = ""
        if tag == "table":
            title = self._title.split(" (")[0]
            self.tables[title], self.strong[title] = [], set()
        if tag == "strong":
            lines = list(self.tables.values())[-1]
            list(self.strong.values())[-1].add((len(lines) - 1, len(lines[-1]) - 1))
        if tag == "tr":
            list(self.tables.values())[-1].append([])
        if tag in ("td", "th"):
            list(self.tables.values())[-1][-1].append("")
        chart = next((a["aria-label"] for t, a in self.open if t == "svg" and "role" in a), None)
        if chart is not None:
            self.marks.append((chart, tag, {k: v or "" for k, v in attrs}, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        path = [tag for tag, _ in self.open]
        if "style" in path:
            return
        self.text += data
        if path and path[-1] in ("h4", "summary"):
            self._title += data
        if "td" in path or "th" in path:
            list(self.tables.values())[-1][-1][-1] += data
        if "svg" in path and self.marks:
            *rest, text = self.marks[-1]
            self.marks[-1] = (*rest, text + data)  # type: ignore[assignment]

    def chart(self, label: str, tag: str, style: str) -> list[tuple[dict[str, str], str]]:
        """(attributes, text or the tooltip in the next element) of the chart's marks."""
        found = []
        for i, (chart, name, attributes, text) in enumerate(self.marks):
            if (chart, name) == (label, tag) and style in attributes.get("class", "").split(" "):
                tooltip = self.marks[i + 1][3] if self.marks[i + 1 : i + 2] else ""
                found.append((attributes, text or tooltip))
        return found

    def scale(self, label: str, axis: str) -> "list[tuple[float, float]]":
        """(pixel, value) of an axis' tick labels; a y label stands 4 below its line."""
        return [
            (float(a["x"]) if axis == "x" else float(a["y"]) - 4, float(text))
            for a, text in self.chart(label, "text", axis)
        ]


def read_off(scale: list[tuple[float, float]], pixel: float) -> float:
    """The value at a pixel, by the labels at both ends of the axis."""
    (p0, v0), (p1, v1) = scale[0], scale[-1]
    return v0 + (pixel - p0) / (p1 - p0) * (v1 - v0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("runs") / "images", make_evaluation(CLASSES))
    write_report([folder])
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return Page(study / "report.html")


def evaluation(study: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((study / "evaluation.json").read_text())
    return tree


def test_the_page_needs_nothing_else(study: Path, page: Page) -> None:
    assert [path.name for path in sorted(study.glob("report.*"))] == [
        f"report.{suffix}" for suffix in ("csv", "html", "md", "tex")
    ]
    assert page.names.count("svg") > 4 * len(ROWS)
    assert {"script", "link", "img", "iframe", "object", "base"}.isdisjoint(page.names)
    assert not re.search(r"https?:|//\w|url\(|@import|\bsrc=", page.source)
    assert 'name="viewport"' in page.source and "prefers-color-scheme: dark" in page.source


def test_the_answer_comes_first(page: Page) -> None:
    summary = (
        "Gain over averaging: the 95 % interval lies above zero in 2 of 4 rows, below in 1, and "
        "holds zero in 1; from -2.51 (-3.43 to -1.62) to +3.07 (+2.20 to +3.90) points."
    )
    sentences = [
        "densenet + multiplicative: +1.23 (+0.41 to +2.04) points over averaging, p = 0.003",
        "resnet + multiplicativeAddition: -2.51 (-3.43 to -1.62) points over averaging, p < 0.001",
    ]
    places = [page.text.index(text) for text in (summary, *sentences, "Top-1 accuracy")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 2.0, "in 3 of 4 rows, below in 1, and holds zero in 0"),
        (0.0, 2.0, "in 2 of 4 rows, below in 1, and holds zero in 1"),
        (-2.0, 0.0, "in 2 of 4 rows, below in 1, and holds zero in 1"),
        (-2.0, -0.01, "in 2 of 4 rows, below in 2, and holds zero in 0"),
    ],
)
def test_an_interval_that_touches_zero_decides_nothing(
    tmp_path: Path, low: float, high: float, verdict: str
) -> None:
    tree = make_evaluation(CLASSES)
    tree["rows"][2]["contenders"][2]["difference"].update(low=low, high=high)
    write_report([write_study(tmp_path, tree)])
    assert verdict in (tmp_path / "report.md").read_text()


def test_the_tables_say_what_was_measured(study: Path, page: Page) -> None:
    tree = evaluation(study)
    rows = tree["rows"]
    (_, *lines) = page.tables["The answer in numbers"]
    for line, names, gain in zip(lines, ROWS, GAINS, strict=True):
        assert line[:6] == [" + ".join(names), *names, "42", "1", "7"]
        assert line[8:11] == [format(number, "+.2f") for number in gain]

    (header, *lines) = page.tables["Top-1 accuracy"]
    assert header == ["row", *(label for _, label, _ in CONTENDERS)]
    for line, row in zip(lines, rows, strict=True):
        assert line[0] == f"{row['model']} + {row['variant']}"
        assert line[1:] == [format(c["top1"], ".2f") for c in row["contenders"]]

    (_, *lines) = page.tables["Every comparison"]
    others = [c for row in rows for c in row["contenders"] if c["difference"]]
    for line, other in zip(lines, others, strict=True):
        d = other["difference"]
        p = [
            "< 0.001" if d[key] < 0.001 else format(d[key], ".3f") for key in ("p_value", "p_holm")
        ]
        numbers = [format(d[key], "+.2f") for key in ("points", "low", "high")]
        assert line[4:] == [*numbers, str(d["only_fused"]), str(d["only_other"]), *p]

    (_, *lines) = page.tables["Quality of the probabilities"]
    everybody = [c for row in rows for c in row["contenders"]]
    for line, c in zip(lines, everybody, strict=True):
        after = c["calibrated"]
        assert line[3:6] == [f"{c['top5']:.2f}", f"{c['nll']:.4f}", f"{c['ece']:.2f}"]
        assert line[8:] == [f"{after['nll']:.4f}", f"{after['ece']:.2f}", f"{after['brier']:.4f}"]

    (_, *lines) = page.tables["Costs"]
    for line, cost in zip(lines, (row["cost"] for row in rows), strict=True):
        assert line[3:5] == [f"{cost['parameters']:,}", f"{cost['macs']:,}"]
        assert line[5:8] == ["n/a"] * 3  # nor was work counted by older versions
        assert line[8] == f"{math.fsum(cost['expert_seconds']):,.1f}"
        assert line[-1] == "n/a"  # memory was not measured

    (_, *lines) = page.tables["Expert by expert"]
    experts = [(row, k) for row in rows for k in range(4)]
    for line, (row, k) in zip(lines, experts, strict=True):
        x, own = row["xray"], row["experts"][k]
        assert line[2:4] == [f"{own['before_top1']:.2f}", f"{own['top1']:.2f}"]
        assert line[5:7] == [f"{x[key][k]:.2f}" for key in ("without_expert", FUSED_WITHOUT)]
        away = [x["disagreement"][k][j] for j in range(4) if j != k]
        assert float(line[8]) == pytest.approx(100 * sum(away) / 3, abs=0.005)
        assert line[-3] == (f"{x['attention'][k]:.4f}" if x["attention"] else "n/a")
        share, cosine = (x["gradients"] and x["gradients"][k][key] for key in GRADIENTS)
        shown = ["n/a", "n/a"] if share is None else [f"{share:.2f}", f"{cosine:+.2f}"]
        assert line[-2:] == shown

    (_, *lines) = page.tables["Accuracy by class"]
    assert [line[1] for line in lines] == CLASSES * 4
    # about 1,400 test images a class
    assert lines[0][4] == signed(rows[0]["per_class"]["gain"][0], 1)
    assert lines[len(CLASSES) - 1][4] == "n/a"  # no test image of it


FUSED_WITHOUT = "fused_without_expert"
GRADIENTS = ("fused_share", "cosine")


MEMBERS = ["densenet 0", "timm:vit_tiny_patch16_224.augreg_in21k 1", "resnet 2", "resnext 3"]
SAID = f"mixed-1a2b3c4d: {', '.join(MEMBERS)}."


def mix(row: dict[str, Any], name: str = "mixed-1a2b3c4d") -> None:
    row.update(model=name, members=MEMBERS, best_expert=2, task=f"task-0-{name}-multiplicative")


def test_a_mixed_row_is_explained_wherever_it_first_stands(tmp_path: Path) -> None:
    tree = make_evaluation(CLASSES)
    mix(tree["rows"][0])
    write_report([write_study(tmp_path, tree)])
    page = Page(tmp_path / "report.html")
    for text in (page.source, (tmp_path / "report.md").read_text()):
        sections = re.split(r"<h3>|\n### ", text)
        for section in sections[1:]:
            named = section.count("mixed-1a2b3c4d") > 0
            assert section.count(SAID) == named, section[:40]
        assert text.count(SAID) >= 6
    # each of LaTeX's tables stands alone
    tables = re.findall(
        r"\\begin\{longtable\}.*?\\end\{longtable\}", (tmp_path / "report.tex").read_text(), re.S
    )
    for table in tables:
        caption = table.split("\\toprule")[0]
        assert ("mixed-{}1a2b3c4d" in table) == ("mixed-{}1a2b3c4d: densenet 0" in caption)


def test_each_expert_of_a_mixed_row_has_its_name(tmp_path: Path) -> None:
    tree = make_evaluation(CLASSES)
    mix(tree["rows"][0])
    write_report([write_study(tmp_path, tree)])
    page = Page(tmp_path / "report.html")
    (header, *lines) = page.tables["Beside other comparisons"]
    names = [line[header.index("best expert's name")] for line in lines]
    assert names == ["resnet expert 2", "n/a", "n/a", "n/a"]  # as an older version wrote them
    (_, *lines) = page.tables["Expert by expert"]
    assert [line[1] for line in lines] == [*MEMBERS, *"0123", *"0123", *"0123"]
    label = "mixed-1a2b3c4d + multiplicative: "
    texts = [text for _, text in page.chart(f"{label}without each expert", "text", "tick")]
    # a long name keeps its number, and the whole of it in its tooltip
    assert {"densenet 0", "timm:vit_ti… 1", "resnet 2", "resnext 3"} <= set(texts)
    texts = [text for _, text in page.chart(f"{label}disagreement", "text", "tick")]
    assert "timm:vit_tiny_patch16… 1" in texts and texts[:4] == [*"0123"]
    assert f"<title>{MEMBERS[1]}</title>" in page.source
    assert page.chart(f"{label}disagreement", "text", "cell")  # there is room for the numbers


def test_studies_are_compared_by_what_their_mixed_rows_are(tmp_path: Path) -> None:
    """Not by a name that people gave: the same experts on one line, others never."""
    trees = [make_evaluation(CLASSES, seed=seed) for seed in (1, 2, 3)]
    for tree, name in zip(trees, ("mixed-all", "mixed-1a2b3c4d", "mixed-all"), strict=True):
        mix(tree["rows"][0], name)
    trees[2]["rows"][0]["members"] = MEMBERS[::-1]
    folders = [write_study(tmp_path / name, t) for name, t in zip("abc", trees, strict=True)]
    write_report(folders, tmp_path / "three.html")
    (_, *lines) = Page(tmp_path / "three.html").tables["Fused accuracy"]
    mixed = {line[0]: line[1::4] for line in lines if line[0].startswith("mixed")}
    top1 = [f"{tree['rows'][0]['contenders'][0]['top1']:.2f}" for tree in trees]
    first = f"mixed-all + multiplicative ({', '.join(MEMBERS)})"
    other = f"mixed-all + multiplicative ({', '.join(MEMBERS[::-1])})"
    assert mixed == {first: [*top1[:2], "n/a"], other: ["n/a", "n/a", top1[2]]}


def test_the_highest_of_a_row_stands_out(page: Page) -> None:
    lines = page.tables["Top-1 accuracy"]
    expected = {(i, line.index(max(line[1:], key=float))) for i, line in enumerate(lines[1:], 1)}
    assert page.strong["Top-1 accuracy"] == expected


def test_curves_lie_where_the_axes_say(study: Path, page: Page) -> None:
    for row in evaluation(study)["rows"]:
        with Layout(study).row(row["model"], row["variant"]).csv.open() as file:
            epochs = list(csv.DictReader(file))
        label = f"{row['model']} + {row['variant']}: accuracy by epoch"
        x, y = page.scale(label, "x"), page.scale(label, "y")
        ((picture, _),) = page.chart(label, "svg", "")
        width, height = map(float, picture["viewbox"].split()[2:])
        assert all(0 <= pixel <= width for pixel, _ in x)
        assert all(0 <= pixel <= height for pixel, _ in y)
        for style, column in (("fused", "val_accuracy"), ("muted", "train_accuracy")):
            ((line, _),) = page.chart(label, "polyline", style)
            points = [tuple(map(float, pair.split(","))) for pair in line["points"].split()]
            for (across, up), epoch in zip(points, epochs, strict=True):
                assert read_off(x, across) == pytest.approx(float(epoch["epoch"]), abs=0.01)
                assert read_off(y, up) == pytest.approx(float(epoch[column]), abs=0.05)
        ((dot, tooltip),) = page.chart(label, "path", "dot")
        assert tooltip == f"selected: epoch 7, {float(epochs[6]['val_accuracy']):.0f} %"
        assert place(dot)[0] == pytest.approx(
            [float(p.split(",")[0]) for p in line["points"].split()][6], abs=0.01
        )


def place(dot: dict[str, str]) -> tuple[float, float]:
    x, y = dot["transform"].removeprefix("translate(").rstrip(")").split()
    return float(x), float(y)


def test_dots_lie_where_the_axes_say(study: Path, page: Page) -> None:
    row = evaluation(study)["rows"][0]
    label = "densenet + multiplicative: reliability diagram"
    x, y = page.scale(label, "x"), page.scale(label, "y")
    for style, contender in (
        ("fused", row["contenders"][0]),
        ("alternative", row["contenders"][2]),
    ):
        bins = [part for part in contender["reliability"] if part["samples"]]
        dots = page.chart(label, "path", style)
        for (dot, _), part in zip(dots, bins, strict=True):
            across, up = place(dot)
            assert read_off(x, across) == pytest.approx(part["confidence"], abs=0.05)
            assert read_off(y, up) == pytest.approx(part["accuracy"], abs=0.05)

    label = "accuracy against parameters, millions"
    x, y = page.scale(label, "x"), page.scale(label, "y")
    dots = page.chart(label, "path", "dot")
    for (dot, _), row in zip(dots, evaluation(study)["rows"], strict=True):
        across, up = place(dot)
        assert read_off(x, across) == pytest.approx(row["cost"]["parameters"] / 1e6, abs=0.05)
        assert read_off(y, up) == pytest.approx(row["contenders"][0]["top1"], abs=0.05)


def test_bars_are_as_long_as_their_numbers(study: Path, page: Page) -> None:
    row = evaluation(study)["rows"][1]
    label = "resnet + multiplicativeAddition: by class"
    x = page.scale(label, "x")
    gains = zip(CLASSES, row["per_class"]["gain"], strict=True)
    known = sorted(((name, gain) for name, gain in gains if gain is not None), key=lambda g: -g[1])
    bars = page.chart(label, "rect", "bar")
    for (bar, tooltip), (name, gain) in zip(bars, known, strict=True):
        assert tooltip == f"{name}: {gain:+.1f}"
        left, right = float(bar["x"]), float(bar["x"]) + float(bar["width"])
        end, zero = (right, left) if gain > 0 else (left, right)
        assert read_off(x, zero) == pytest.approx(0, abs=0.1)
        assert read_off(x, end) == pytest.approx(gain, abs=0.15)


@pytest.mark.parametrize(
    "values", [(0.0, 1.0), (-12.38, 3.5), (61.2, 61.9), (0, 40e6), (5.0, 5.0), (0.0, 0.0), (3, 250)]
)
def test_ticks_are_few_round_and_enclose(values: tuple[float, ...]) -> None:
    ticks = round_ticks(values)
    assert ticks[0] <= min(values) and max(values) <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    assert [b - a for a, b in itertools.pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1))
    assert f"{step:.3e}"[:5] in ("1.000", "2.000", "5.000")
    assert all(tick / step == pytest.approx(round(tick / step)) for tick in ticks)


def test_the_csv_has_full_precision_and_one_header(study: Path) -> None:
    with (study / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file, strict=True))
    assert all(None not in line and None not in line.values() for line in lines)
    accuracies = [line for line in lines if line["table"] == "Top-1 accuracy"]
    for line, row in zip(accuracies, evaluation(study)["rows"], strict=True):
        assert line["study"] == "images"
        for contender in row["contenders"]:
            assert float(line[contender["label"]]) == contender["top1"]
    # nothing but numbers in a column of numbers
    for column in ("fused", "gain over averaging", "vs best alternative", "difference", "p"):
        found = {line[column] for line in lines} - {"", "n/a"}
        assert found and all(math.isfinite(float(text)) for text in found)


def test_markdown_says_the_same_as_the_page(study: Path, page: Page) -> None:
    text = (study / "report.md").read_text()
    for title, lines in page.tables.items():
        block = text.split(f"**{title}**\n\n")[1].split("\n\n")[0]
        header, _, *rest = (
            [c.strip(" *") for c in line.split("|")[1:-1]] for line in block.splitlines()
        )
        assert [header, *rest] == [[" ".join(cell.split()) for cell in line] for line in lines]


def test_latex_is_whole(study: Path, page: Page) -> None:
    text = (study / "report.tex").read_text()
    bare = re.sub(r"\\[{}%&\\]", "", text)  # escaped ones aside
    assert bare.count("{") == bare.count("}")
    opened: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    tables = re.findall(r"\\begin\{longtable\}\{([lr]+)\}(.*?)\\end\{longtable\}", text, re.S)
    assert len(tables) == len(page.tables)
    for (align, body), lines in zip(tables, page.tables.values(), strict=True):
        assert len(align) == len(lines[0])
        drawn = body.split("\\endfoot\n")[1].splitlines()
        assert len(drawn) == len(lines) - 1
        for line in drawn:
            assert line.endswith(" \\\\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(align) - 1
    assert "{$-$2.51}" in text and "{$<$" not in text


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    classes = [NASTY, "</td></table><script>alert(1)</script>", *CLASSES]
    tree = make_evaluation(classes)
    for row in tree["rows"]:
        row["contenders"][2]["label"] = "</li>&amp;"
    tree["rows"][0]["variant"] = 'x" onload="y'
    write_report([write_study(tmp_path / "a<b>&", tree)])
    page = Page(tmp_path / "a<b>&" / "report.html")
    assert "script" not in page.names
    assert 'densenet + x" onload="y: by class' in {chart for chart, *_ in page.marks}
    assert [line[1] for line in page.tables["Accuracy by class"][1:3]] == classes[:2]
    assert page.tables["Top-1 accuracy"][0][3] == "</li>&amp;"
    markdown = (tmp_path / "a<b>&" / "report.md").read_text()
    assert r'| \<b>\&"x\_%$#{}~^\|\\ \[é中 |' in markdown
    latex = (tmp_path / "a<b>&" / "report.tex").read_text()
    escaped = (
        r"\textless{}b\textgreater{}\&\textquotedbl{}x\_\%\$\#\{\}\textasciitilde{}"
        r"\textasciicircum{}\textbar{}\textbackslash{} {[}é{[}U+4E2D{]}"
    )
    assert f"{{{escaped}}}" in latex


def test_a_row_that_could_not_be_measured_is_not_available(tmp_path: Path) -> None:
    tree = make_evaluation(CLASSES)
    kept = ("task", "model", "fusion", "variant", "seed", "alpha")
    for index, problem in ((1, "expert_2_best.pth: damaged"), (2, "no manifest <yet>")):
        row = tree["rows"][index]
        tree["rows"][index] = {key: row[key] for key in kept} | {"epoch": None, "problem": problem}
    write_report([write_study(tmp_path, tree)])
    page = Page(tmp_path / "report.html")
    assert "lies above zero in 2 of 2 rows" in page.text
    assert "2 rows could not be measured." in page.text
    assert (
        "improved_wide_resnet + TransformerBase: n/a, not measured: no manifest <yet>" in page.text
    )
    assert len(page.tables["Top-1 accuracy"]) == 3

    tree["rows"] = tree["rows"][1:3]
    write_report([write_study(tmp_path, {**tree, "over_seeds": []})])
    text = Page(tmp_path / "report.html").text
    assert "No row has a gain over averaging with an interval. 2 rows could not be" in text


def test_many_classes_are_shown_from_both_ends(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(100)]
    tree = make_evaluation(names)
    write_report([write_study(tmp_path, tree)])
    page = Page(tmp_path / "report.html")
    label = "densenet + multiplicative: by class"
    drawn = [tooltip.split(":")[0] for _, tooltip in page.chart(label, "rect", "bar")]
    gains = dict(zip(names, tree["rows"][0]["per_class"]["gain"], strict=True))
    ranked = sorted((name for name in names[:-1]), key=lambda name: -gains[name])
    assert drawn == ranked[:10] + ranked[-10:]
    assert "The 10 highest and lowest of 100 classes." in page.text
    assert len(page.tables["Accuracy by class"]) == 401


def test_what_beats_every_alternative_is_said_after_correction(tmp_path: Path) -> None:
    tree = make_evaluation(CLASSES)
    for row in tree["rows"]:
        row["gain_p_holm"] = 0.25
    for index, p in ((0, 0.049), (1, 0.05)):
        for contender in tree["rows"][index]["contenders"][1:]:
            contender["difference"] |= {"points": 2.0, "p_holm": p}
    tree["rows"][3]["contenders"][4]["difference"]["p_holm"] = 1.0
    write_report([write_study(tmp_path, tree)])
    text = Page(tmp_path / "report.html").text
    assert (
        "1 row of 4 beats every alternative and control compared with, after Holm's correction "
        f"over all {4 * (len(CONTENDERS) - 1)} comparisons: densenet + multiplicative."
    ) in text
    assert "over 4 rows (p below 0.05) it is ahead in 0 and behind in 0." in text
    assert "averaging, p = 0.003, corrected 0.250" in text


def test_an_evaluation_of_an_older_version_has_nothing_corrected(tmp_path: Path) -> None:
    tree = make_evaluation(CLASSES)
    for row in tree["rows"]:
        for contender in row["contenders"][1:]:
            del contender["difference"]["p_holm"]
    write_report([write_study(tmp_path, tree)])
    page = Page(tmp_path / "report.html")
    assert "After Holm" not in page.text and "beat every" not in page.text
    assert "averaging, p = 0.003" in page.text and "corrected 0" not in page.text
    assert page.tables["Every comparison"][1][-1] == "n/a"
    assert "Fusion types against each other" not in page.tables


def test_fusion_types_stand_against_each_other(tmp_path: Path) -> None:
    tree = make_evaluation(CLASSES)
    tree["fusion_types"] = [
        {
            "model": "resnet",
            "fusion": fusion,
            "alpha": 1.0,
            "seeds": 3,
            "varied": "fusion training",
            "validation": 61.0,
            "fused": {"mean": 60.5, "deviation": 0.25},
            "gain": {"mean": -1.5, "deviation": 0.5, "low": -2.25, "high": -0.75},
            "best_other": other,
            "difference": difference,
            "p_value": p,
            "p_holm": p,
        }
        for fusion, other, difference, p in (
            ("a", "b", {"mean": 1.5, "deviation": None, "low": 0.5, "high": 2.5}, 0.0004),
            ("b", "a", None, None),
        )
    ]
    write_report([write_study(tmp_path, tree)])
    header, first, second = Page(tmp_path / "report.html").tables["Fusion types against each other"]
    line = dict(zip(header, first, strict=True))
    assert line["fused"] == "60.50 ± 0.25"
    assert " ".join(line["gain over averaging"].split()) == "-1.50 ± 0.50 (-2.25 to -0.75)"
    assert " ".join(line["vs best other"].split()) == "+1.50 (+0.50 to +2.50)"
    assert (line["p (Holm)"], line["best other"]) == ("< 0.001", "b")
    assert second[-3:] == ["n/a"] * 3


def test_missing_curves_leave_out_their_section(tmp_path: Path) -> None:
    write_study(tmp_path, make_evaluation(CLASSES))
    for path in tmp_path.rglob("*_log.csv"):
        path.unlink()
    write_report([tmp_path])
    text = Page(tmp_path / "report.html").text
    assert "Learning curves" not in text and "Calibration" in text


def test_studies_side_by_side(tmp_path: Path) -> None:
    first = make_evaluation(CLASSES, seed=1)
    second = make_evaluation(CLASSES, seed=2)
    del second["rows"][0]
    folders = [
        write_study(tmp_path / "one" / "short", first, epochs=10),
        write_study(tmp_path / "two" / "long", second, epochs=20),
    ]
    written = write_report(folders, tmp_path / "both.html")
    assert written == [tmp_path / f"both.{suffix}" for suffix in ("html", "md", "csv", "tex")]
    page = Page(written[0])
    header, *lines = page.tables["Fused accuracy"]
    each = ("fused", "gain over averaging", "low", "high")
    assert header == ["row", *(f"{name}: {what}" for name in ("short", "long") for what in each)]
    assert lines[0][0] == "densenet + multiplicative"
    assert lines[0][1] == f"{first['rows'][0]['contenders'][0]['top1']:.2f}"
    assert lines[0][5:] == ["n/a"] * 4
    assert [line[1] for line in lines[1:]] == [
        f"{row['contenders'][0]['top1']:.2f}" for row in first["rows"][1:]
    ]
    assert [line[5] for line in lines[1:]] == [
        f"{row['contenders'][0]['top1']:.2f}" for row in second["rows"]
    ]
    assert page.tables["Fields that differ"] == [
        ["field", "short: value", "long: value"],
        ["fusion.epochs", "10", "20"],
    ]
    assert page.text.index("short: Gain over averaging") < page.text.index("Top-1 accuracy")
    assert "different test sets" not in page.text
    # the higher of the two, where there are two
    higher = {(i, 1 if float(lines[i - 1][1]) > float(lines[i - 1][5]) else 5) for i in (2, 3, 4)}
    assert page.strong["Fused accuracy"] == higher


def test_studies_of_different_tests_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "a" / "runs", tmp_path / "b" / "runs"]
    write_study(folders[0], make_evaluation(CLASSES))
    write_study(folders[1], make_evaluation([*CLASSES, "ship"]))
    page = Page(write_report(folders)[0])
    assert "different test sets" in page.text
    assert not page.strong["Fused accuracy"]
    assert "The recipes differ in nothing but their rows and output directories." in page.text
    assert f"{folders[1]}: fused" in page.tables["Fused accuracy"][0]  # names alike: whole paths


@pytest.mark.parametrize("inside", [True, False])
def test_a_comparison_leaves_the_studies_own_reports_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """Wherever it is made: beside the studies or in one of their folders."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        write_report([write_study(folder, make_evaluation(CLASSES, seed))])
    here = folders[0] if inside else tmp_path
    monkeypatch.chdir(here)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = [f"comparison.{suffix}" for suffix in ("html", "md", "csv", "tex")]
    assert write_report(folders) == [Path(name) for name in names]
    assert "Side by side" in Page(here / "comparison.html").text
    elsewhere = tmp_path / "shelf"
    assert write_report(folders, elsewhere) == [elsewhere / name for name in names]
    assert write_report(folders[:1], elsewhere)[0] == elsewhere / "report.html"
    assert (elsewhere / "report.html").read_text() == (folders[0] / "report.html").read_text()
    for folder in folders:
        with pytest.raises(ReportError, match="is the report of one of these studies"):
            write_report(folders, folder / ".." / folder.name / "report.html")
    assert all(path.read_bytes() == text for path, text in before.items())


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*arguments: str | Path) -> str:
        assert main(["report", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("fusionrun: ")
        return err

    path = tmp_path / "evaluation.json"
    assert f"run `python -m fusionrun evaluate {tmp_path}` first" in complaint(tmp_path)
    write_study(tmp_path, make_evaluation(CLASSES))
    assert "expected a folder or a name that ends in .html" in complaint(
        tmp_path, "--output", "page.md"
    )
    assert "found it twice" in complaint(tmp_path, tmp_path / ".." / tmp_path.name)
    assert "can't be written" in complaint(tmp_path, "--output", path / "page.html")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"report.{suffix}") for suffix in ("html", "md", "csv", "tex")
    ]
    (tmp_path / "recipe.yaml").unlink()
    assert "recipe.yaml: can't be read" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "rows"', "can't be read"),
        ("[]", "format: found 'no evaluation', expected 1"),
        ("{}", "format: found 'nothing', expected 1"),
        ('{"format": 2}', "format: found 2, expected 1"),
        ('{"format": 1}', "study: found nothing, expected a value"),
        ('{"format": 1, "rows": []}', "study: found nothing, expected a value"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ReportError) as error:
        write_report([tmp_path])
    assert str(error.value).startswith(f"{tmp_path / 'evaluation.json'}: {said}")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("contenders", 2, "top1"), "high", "rows.1.contenders.2.top1: found 'high'"),
        (("cost", "macs"), 2.5, "rows.1.cost.macs: found 2.5 (float), expected a whole number"),
        (("cost",), None, "rows.1.cost.parameters: found nothing, expected a value"),
        (("contenders", 0, "key"), "first", "rows.1.contenders: found ['first', 'best_expert'"),
        (
            ("best_alternative",),
            "fused",
            "rows.1.best_alternative: found 'fused', expected the key of",
        ),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, place: tuple[Any, ...], value: object, said: str
) -> None:
    tree = make_evaluation(CLASSES)
    *parents, last = place
    part = tree["rows"][1]
    for name in parents:
        part = part[name]
    part[last] = value
    with pytest.raises(ReportError, match=re.escape(said)):
        write_report([write_study(tmp_path, tree)])


def test_controls_are_not_asked_whether_fusion_helps(tmp_path: Path) -> None:
    evaluation = make_evaluation(CLASSES)
    for row in evaluation["rows"][1:]:
        row["control"] = "frozen"
    folder = write_study(tmp_path / "study", evaluation)
    write_report([folder], None)
    text = (folder / "report.md").read_text()
    assert "+1.23 (+0.41 to +2.04) points, above zero, in 1 row" in text
    assert "resnext + concatenation" in text  # it stands in the tables


def test_rows_stand_against_their_controls(tmp_path: Path) -> None:
    evaluation = make_evaluation(CLASSES)
    for row, (low, high) in zip(
        evaluation["rows"], ((1.0, 3.0), (-1.0, 3.0), (-3.0, -1.0), (-4.0, -2.0)), strict=True
    ):
        control = copy.deepcopy(row["contenders"][1])
        control |= {"key": "single", "label": "control: one network", "stage": "control"}
        control["difference"] |= {"points": (low + high) / 2, "low": low, "high": high}
        control["cost"] = {"parameters": 1_452, "macs": 350_240, "images_seen": 113}
        control["cost"] |= {"steps": 14, "image_passes": 22_600_000}
        row["contenders"].append(control)
        row["cost"] |= {"parameters": 3_180, "macs": 700_704}
    evaluation["rows"][0]["cost"] |= {"images_seen": 113, "steps": 29, "image_passes": 42_400_000}
    folder = write_study(tmp_path / "study", evaluation)
    write_report([folder], None)
    page = Page(folder / "report.html")
    assert "fused minus it lies above zero in 1 of 4 rows, below in 2." in page.text
    (_, *lines) = page.tables["Against its controls"]
    assert [line[2] for line in lines] == ["control: one network"] * 4
    assert [line[5:7] for line in lines][3] == ["-4.00", "-2.00"]
    inference = ["700,704 / 350,240", "3,180 / 1,452"]
    assert lines[0][-5:] == ["113 / 113", "29 / 14", "42.4M / 22.6M", *inference]
    assert lines[1][-5:] == ["n/a / 113", "n/a / 14", "n/a / 22.6M", *inference]
    plain = write_study(tmp_path / "plain", make_evaluation(CLASSES))
    write_report([plain], None)
    assert "Against its controls" not in Page(plain / "report.html").tables
