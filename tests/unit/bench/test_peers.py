"""Whole commands beside others: the same images reach both, failures are told; never a time."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusionrun.study.context import load_data
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe_yaml import load_recipe
from tests.bench.measure import Bench
from tests.bench.peers import job, measure, predecessor, studies
from tests.bench.peers.job import Answer, Job
from tests.bench.peers.measure import FailedError, Peer, run_at_once
from tests.bench.peers.studies import Size

SIZE = Size(width=4, epochs=1, holdout=40, test=20)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(torch.device("cpu"), 1, tmp_path, lambda message: None, rounds=2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "POOL", 80)
    monkeypatch.setattr(studies, "BATCH", 11)


@pytest.mark.usefixtures("small")
def test_peers_get_the_images_that_our_launch_trains_on(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    recipe, made = studies.make(tmp_path / "study", SIZE, "cpu")
    words = [f"output_dir={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'cache'}"]
    data, splits = load_data(plan_study(load_recipe(recipe, words), "t"), lambda message: None)
    for part, folder in (
        *zip(splits.expert_train, made.experts, strict=True),
        (splits.fusion_train, made.holdout),
        (splits.fusion_val, made.validation),
    ):
        ours = {
            (data.train_images[i].numpy().tobytes(), data.classes[data.train_labels[i]])
            for i in part
        }
        theirs = {(pixels(path), path.parent.name) for path in Path(folder).rglob("*.png")}
        assert ours == theirs and len(theirs) == len(part)
    assert len(made.experts) == 4 and len(splits.expert_train[0]) % made.batch_size == 0
    assert (list(data.mean), list(data.std)) == (made.mean, made.std)
    assert Job(**json.loads((recipe.parent / job.JOB).read_text())) == made


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image).transpose(2, 0, 1).tobytes()


@pytest.mark.usefixtures("small")
def test_the_predecessor_trains_experts_and_then_their_row(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    _, made = studies.make(tmp_path / "study", SIZE, "cpu")
    made = replace(made, experts=made.experts[:2])
    for number in (0, 1, job.ROW):
        folder = tmp_path / str(number)
        folder.mkdir()
        answer = predecessor.train(made, number, folder)
        assert 0 <= answer.accuracy <= 100 and answer.loss is not None and answer.loss > 0
    row = torch.load(tmp_path / str(job.ROW) / predecessor.BEST, weights_only=True)
    expert = torch.load(tmp_path / "0" / predecessor.BEST, weights_only=True)
    start, end = expert["expert.trunk.stem.weight"], row["experts.0.trunk.stem.weight"]
    assert not torch.equal(start, end) and torch.allclose(start, end, atol=0.01)


def test_what_is_not_installed_has_no_number_but_the_line_to_install_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer("another program", "nothing", "no_such_package")
    monkeypatch.setattr(measure, "STUDIES", {"a study": (SIZE, (peer,))})
    (row,) = measure.measure(bench)
    assert (row.name, row.ratio) == ("a study: another program", None)
    assert "no_such_package" in row.note and "pip install -r tests/bench/peers/req" in row.note


@pytest.mark.usefixtures("small")
def test_a_peer_that_fails_costs_the_others_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = Peer("good", "good"), Peer("bad", "bad")
    calls = []

    def train_ours(*of: Any) -> list[Answer]:
        calls.append("ours")
        return [Answer(50.0, 1.5)]

    def train_theirs(*of: Any) -> list[Answer]:
        peer = of[4]
        calls.append(peer.words)
        if peer is bad:
            raise FailedError("exit status 1: no memory")
        return [Answer(70.0), Answer(40.0)]

    monkeypatch.setattr(measure, "STUDIES", {"a study": (SIZE, (bad, good))})
    monkeypatch.setattr(measure, "train_ours", train_ours)
    monkeypatch.setattr(measure, "train_theirs", train_theirs)
    failed, fine = measure.measure(bench)
    assert failed.ratio is None and "exit status 1: no memory" in failed.note
    assert fine.ratio is not None and len(fine.ratios) == 2
    assert "accuracy 50 %, validation loss 1.50" in fine.note and "accuracy 55 %" in fine.note
    assert sorted(calls) == ["bad", "good", "good", "ours", "ours"]  # a failure isn't repeated
    assert not [path for path in bench.scratch.iterdir() if path.name.startswith("peers")]


def test_commands_run_at_once_and_none_is_left(tmp_path: Path) -> None:
    there = tmp_path / "there"
    waits = f"until [ -e {there} ]; do sleep 0.01; done"
    run_at_once([["bash", "-c", waits], ["touch", str(there)]], tmp_path, {"PATH": "/usr/bin:/bin"})
    with pytest.raises(FailedError, match="exit status 3: bad luck"):
        run_at_once(
            [["bash", "-c", "echo bad luck; exit 3"], ["sleep", "51.5"]],
            tmp_path,
            {"PATH": "/usr/bin:/bin"},
        )
    assert "sleep 51.5" not in subprocess.run(["ps", "aux"], capture_output=True, text=True).stdout
