"""What a launch shows of itself, from its first second to its last and in the next launch."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.tiny import alone, environment, write_recipe

ORDER = ["waiting", "queued", "running", "testing", "saving", "done"]
WORDS = (
    "rows=[{model: resnet, fusion: concatenation}]",
    "data.test_images=20000",
    "data.val_fraction=0.5",
    "experts.epochs=30",  # of which the file shows some on their way
    "fusion.epochs=12",
    "status.every_seconds=0.05",
    "logs.tensorboard=false",
)


def read_status(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / "out/status.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def test_a_launch_on_its_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fusionrun", "train", str(write_recipe(tmp_path)), *WORDS]
    launch = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    seen: list[dict[str, Any]] = []
    while launch.poll() is None:
        shown = read_status(tmp_path)
        if shown is not None and (not seen or shown["updated"] != seen[-1]["updated"]):
            seen.append(shown)
        time.sleep(0.02)
    assert launch.returncode == 0
    final = read_status(tmp_path)
    assert final is not None
    seen.append(final)
    row = [shown["tasks"][0] for shown in seen]
    states = [task["state"] for task in row]
    assert states == sorted(states, key=ORDER.index)
    assert {"waiting", "running", "testing", "done"} <= set(states)
    # while the test set is read it isn't over, and there's a time to the end
    testing = [shown for shown in seen if shown["tasks"][0]["state"] == "testing"]
    assert all(shown["progress"] < 1 and shown["eta_seconds"] is not None for shown in testing)
    assert testing[0]["eta_seconds"] > 0 and final["progress"] == 1
    # experts at work say where, how fast and how well
    experts = [task for shown in seen for task in shown["tasks"][1:] if task["state"] == "running"]
    assert any(
        None not in (task["rank"], task["train_loss"], task["images_per_second"])
        for task in experts
    )
    # done: every number is the saved epoch's, and the next launch knows them, too
    manifest = json.loads((tmp_path / "out/resnet_fusions/concatenation/manifest.json").read_text())
    done = final["tasks"][0]
    assert done["val_accuracy"] == done["best"] == manifest["validation"]["fused"]
    assert done["experts"] == manifest["validation"]["experts"]
    gain = done["best"] - manifest["validation"]["mean_probabilities"]
    assert done["gain_over_averaging"] == gain
    (tmp_path / "out/.fusionrun/outcomes/expert-resnet-0.json").unlink()
    again = alone("train", tmp_path / "tiny.yaml", *WORDS, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    later = read_status(tmp_path)
    assert later is not None and later["tasks"][0] == done and later["progress"] == 1
    for before, after in zip(final["tasks"][1:], later["tasks"][1:], strict=True):
        numbers = ("state", "epoch", "best", "best_epoch", "val_accuracy")
        assert [before[name] for name in numbers] == [after[name] for name in numbers]
