"""Every file of examples/ runs as its first lines say, on something tiny."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import fusionrun
from tests.tiny import ROOT, alone, copy_study, environment, write_recipe

EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: str, cwd: Path) -> str:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix} == {
        "compare_studies.py",
        "load_and_fuse.py",
        "plugin_parts.py",
        "plugin_recipe.yaml",
    }


def test_load_and_fuse(tmp_path: Path, trained_study: Path) -> None:
    copy_study(trained_study, tmp_path / "runs" / "demo")
    shown = run_example("load_and_fuse.py", cwd=tmp_path)
    assert shown == run_example("load_and_fuse.py", str(trained_study), cwd=tmp_path)
    results = fusionrun.open_study(trained_study).results
    for result in results:
        assert re.search(rf"{result.model} \+ {result.fusion} +{result.fused:.2f} %", shown)
    first = results[0]
    assert re.search(rf"fused +{first.fused:.2f} %", shown)
    assert re.search(rf"mean of probabilities +{first.top1['mean_probabilities']:.2f} %", shown)
    assert re.search(r"simpleAddition, by hand +\d+\.\d\d %", shown)


def test_compare_studies(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    text = recipe.read_text()
    rows = text[text.index("rows:") : text.index("data:")]
    recipe.write_text(text.replace(rows, "rows: [{model: resnet, fusion: concatenation}]\n"))
    shown = run_example("compare_studies.py", str(recipe), "fusion.alpha=0", cwd=tmp_path)
    numbers = [
        fusionrun.open_study(tmp_path / folder).results[0].fused
        for folder in ("out", "out_fusion.alpha=0")
    ]
    line = next(line for line in shown.splitlines() if line.startswith("resnet/concatenation"))
    found = [float(text) for text in line.split()[1:]]
    assert found[:2] == [round(number, 2) for number in numbers]
    assert 100 * (found[3] - found[2]) / 32 == numbers[1] - numbers[0]


def test_plug_ins(tmp_path: Path) -> None:
    for name in ("plugin_parts.py", "plugin_recipe.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    sizes = ("data.train_images=240", "data.test_images=40", "experts.epochs=1", "fusion.epochs=1")
    done = alone("train", "plugin_recipe.yaml", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/plugin/patches_fusions/gated/manifest.json").is_file()
    table = (tmp_path / "runs/plugin/results.md").read_text()
    assert all(name in table for name in ("| patches | gated |", "| resnet | gated |"))
