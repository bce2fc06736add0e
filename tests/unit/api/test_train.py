"""`fusionrun.train`: the launch of the command, in the process that calls it."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fusionrun
from fusionrun.components.manifest import read_manifest
from tests.tiny import TINY, alone, write_recipe

ROW = ("rows=[{model: resnet, fusion: concatenation}]", "logs.tensorboard=false")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which the recipe's `out` lies."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_thread(call: Callable[[], Any]) -> Any:
    """The result of a call in a thread of its own."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(100)
    assert results, "the call has failed"
    return results[0]


def state_of_process() -> dict[str, Any]:
    return {
        "signals": [signal.getsignal(each) for each in SIGNALS],
        "threads": torch.get_num_threads(),
        "seed": torch.get_rng_state().tolist(),
        "benchmark": torch.backends.cudnn.benchmark,
        "alive": [thread.name for thread in threading.enumerate()],
        "folder": Path.cwd(),
    }


@pytest.mark.parametrize("threaded", [False, True])
def test_it_trains_as_the_command_does_and_leaves_no_trace(folder: Path, threaded: bool) -> None:
    path = write_recipe(folder)
    before = state_of_process()

    def call() -> fusionrun.OpenStudy:
        return fusionrun.train(path, *ROW, "output_dir=mine")

    study = in_thread(call) if threaded else call()
    assert state_of_process() == before
    assert study.results[0].fused is not None
    assert study.paths.output_dir == Path("mine")
    if not threaded:
        done = alone("train", path, *ROW, cwd=folder)
        assert done.returncode == 0, done.stderr
        manifest = "resnet_fusions/concatenation/manifest.json"
        ours, theirs = (read_manifest(folder / out / manifest) for out in ("mine", "out"))
        assert (ours.weights, ours.test) == (theirs.weights, theirs.test)


def test_a_recipe_can_be_a_mapping(folder: Path) -> None:
    tree = yaml.safe_load(TINY)
    tree["output_dir"] = folder / "mine"  # a Path, as people have it at hand
    tree["rows"] = [{"model": "resnet", "fusion": "simpleAddition"}]
    before = yaml.safe_dump({**tree, "output_dir": ""})
    study = fusionrun.train(tree, "fusion.epochs=1", "logs.tensorboard=false")
    assert yaml.safe_dump({**tree, "output_dir": ""}) == before
    assert (study.recipe.fusion.epochs, study.results[0].epoch) == (1, 1)
    with pytest.raises(fusionrun.RecipeError, match=r"^recipe: rows.0.model: found 'resnett'"):
        fusionrun.train({**tree, "rows": [{"model": "resnett", "fusion": "concatenation"}]})
    with pytest.raises(fusionrun.RecipeError, match=r"^recipe: fusion.epocs: unknown"):
        fusionrun.train({**tree, "fusion": {"epocs": 3}})


def test_shipped_recipes_have_names(folder: Path) -> None:
    with pytest.raises(fusionrun.RecipeError, match=r"fusion\.epochs"):
        fusionrun.train("demo", "fusion.epochs=never")
    with pytest.raises(fusionrun.RecipeError, match="did you mean 'demo'"):
        fusionrun.train("dmo")


def test_a_study_that_cannot_start(folder: Path) -> None:
    words = ("data.name=image_folder", f"data.root={folder / 'no'}")
    with pytest.raises(fusionrun.LaunchError, match=str(folder / "no")):
        fusionrun.train(write_recipe(folder), *ROW, *words)


def test_a_row_that_fails(folder: Path) -> None:
    """The experts are found and fit, but only their checksums show what is wrong."""
    path = write_recipe(folder)
    checkpoints = folder / "experts" / "resnet"
    checkpoints.mkdir(parents=True)
    weights = fusionrun.build_expert("resnet", 4, width=8, blocks=[1]).state_dict()
    for k in range(2):
        file = checkpoints / f"expert_{k}_best.pth"
        torch.save(weights, file)
        content = bytearray(file.read_bytes())
        content[content.find(weights["classifier.weight"].numpy().tobytes())] ^= 1
        file.write_bytes(content)
    rows = "rows=[{model: resnet, fusion: concatenation}, {model: resnext, fusion: concatenation}]"
    for k in range(2):
        (folder / "experts" / "resnext").mkdir(exist_ok=True)
        expert = fusionrun.build_expert("resnext", 4, depth=11, cardinality=2, base_width=4, stem=4)
        torch.save(expert.state_dict(), folder / "experts" / "resnext" / f"expert_{k}_best.pth")
    words = (rows, "logs.tensorboard=false", f"experts.checkpoint_dir={folder / 'experts'}")
    with pytest.raises(
        fusionrun.TaskError, match=r"task-0-resnet-concatenation: .*is damaged"
    ) as found:
        fusionrun.train(path, *words)
    assert "1 failed" in str(found.value) and "resnext" not in str(found.value)
    study = fusionrun.open_study("out")
    assert [result.fused is None for result in study.results] == [True, False]
    # another call's rows stand after those that are there, under names of their own
    with pytest.raises(fusionrun.TaskError, match=r"1 failed\. task-2-resnet-simpleAddition"):
        fusionrun.train(path, "rows=[{model: resnet, fusion: simpleAddition}]", *words[1:])


def test_a_stop_signal_raises_and_the_same_call_resumes(folder: Path) -> None:
    path = write_recipe(folder)
    words = (*ROW, "fusion.epochs=40")
    # the first epoch's checkpoint stands: now
    watched = folder / "out/resnet_fusions/concatenation/checkpoint.pth"
    ended = threading.Event()

    def interrupt() -> None:
        while not watched.exists() and not ended.wait(0.05):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt, match="the same call resumes"):
            fusionrun.train(path, *words)
    finally:
        ended.set()
        thread.join()
    assert fusionrun.open_study("out").results[0].fused is None
    assert fusionrun.train(path, *words).results[0].fused is not None
