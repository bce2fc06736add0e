"""The benchmark's logic: pairing, agreement of both sides, schedules, the report; never a time."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from fusionrun.data.augmentation.policies import AUGMENTATIONS
from fusionrun.data.datasets import load_dataset
from fusionrun.study.schedule import lower_bound, simulate
from tests.bench import GROUPS, fusionrun_side, reference, report, scaling, steps
from tests.bench.__main__ import parser
from tests.bench.measure import Bench, Goal, Row, interleave, share, times_as_fast
from tests.bench.run import MEASURES
from tests.bench.startup import ROOT, SIZES, make_data_set
from tests.bench.steps import DisagreementError, check_losses
from tests.bench.worker_pool import WorkerPool

TINY = fusionrun_side.TINY_MODELS


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(torch.device("cpu"), 1, tmp_path, print, rounds=1)
    torch.set_num_threads(threads)


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], float]:
        def work() -> float:
            calls.append(name)
            return float(len(calls))

        return work

    costs = interleave([side("a"), side("b"), side("c")], rounds=3)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert costs == [[6.0, 8.0, 10.0], [4.0, 9.0, 11.0], [5.0, 7.0, 12.0]]


def test_a_figure_is_the_median_of_the_ratios_within_rounds() -> None:
    # a ratio of medians would be 4 / 2 = 2
    row = times_as_fast("g", "n", 3.0, theirs=[3.0, 4.0, 90.0], ours=[1.0, 2.0, 10.0])
    assert row.ratios == [3.0, 2.0, 9.0]
    assert (row.ratio, row.met, row.ours, row.theirs) == (3.0, True, 2.0, 4.0)
    small = share("g", "n", 0.05, ours=[1.0, 2.0, 3.0], of=[100.0, 20.0, 30.0])
    assert (small.ratio, small.met) == (0.1, False)


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [
        (Goal(2.0), 2.0, True),
        (Goal(2.0), 1.99, False),
        (Goal(0.01, at_most=True), 0.01, True),
        (Goal(0.01, at_most=True), 0.011, False),
    ],
)
def test_goals(goal: Goal, ratio: float, met: bool) -> None:
    assert Row("g", "n", goal, [ratio]).met is met


def test_what_was_not_measured_has_no_number(tmp_path: Path) -> None:
    rows = [
        Row("step", "resnet", Goal(1.05), [1.0, 1.25, 1.5], 2.0, 2.5, "s"),
        Row("gpu", "waits", Goal(0.0, at_most=True), note="there is no GPU here"),
    ]
    path = tmp_path / "figures.json"
    report.write(path, {"machine": {"cores": 2}, "versions": {"torch": "2"}}, rows)
    tree = json.loads(path.read_text())
    assert tree["machine"] == {"cores": 2} and tree["versions"] == {"torch": "2"}
    measured, unknown = tree["rows"]
    assert measured == {
        "group": "step",
        "name": "resnet",
        "ratio": 1.25,
        "low": 1.0,
        "high": 1.5,
        "goal": ">= 1.05",
        "met": True,
        "ours": 2.0,
        "theirs": 2.5,
        "unit": "s",
        "rounds": 3,
        "note": "",
    }
    assert all(unknown[key] is None for key in ("ratio", "low", "high", "met", "ours", "theirs"))
    assert unknown["note"] == "there is no GPU here" and unknown["goal"] == "<= 0"
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(report.table(rows))
    text = console.export_text()
    assert "1.25 (1 - 1.5)" in text and "there is no GPU here" in text


def test_every_group_has_its_measurement_and_its_line_of_help() -> None:
    assert list(MEASURES) == list(GROUPS)
    help_text = " ".join(parser().format_help().split())
    assert all(f"{name} {what}" in help_text for name, what in GROUPS.items())
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--only", "nonsense"])


@pytest.mark.parametrize("model", TINY)
def test_both_sides_compute_the_same(bench: Bench, model: str) -> None:
    """A step in float64, since float32 has gradients that are nothing but rounding; evaluation."""
    context = fusionrun_side.run_context(bench, model, TINY[model], batch_size=8, rate=1e-3)
    ours = fusionrun_side.row(context)
    fusionrun_side.compute_in_double(ours)
    theirs = fusionrun_side.reference_trainer(ours)
    batch, mixed = fusionrun_side.batch_for_both(ours)
    batch = replace(batch, images=batch.images.double(), targets=batch.targets.double())
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert mixed[0].is_contiguous()
    before = [p.detach().clone() for p in ours.model.parameters()]
    losses = ours.train_step(batch).tolist()
    assert theirs.step((mixed[0].double(), *mixed[1:])) == pytest.approx(losses, rel=1e-6)
    pairs = zip(before, ours.model.parameters(), theirs.model.parameters(), strict=True)
    for start, our, their in pairs:
        assert our.grad is not None and their.grad is not None
        assert relative_difference(our.grad, their.grad) < 1e-5  # our losses are float32
        assert relative_difference(our - start, their - start) < 1e-3

    data, indices = context.data, context.splits.fusion_val
    dataset = reference.Images(
        data.train_images.numpy()[indices],
        data.train_labels.numpy()[indices],
        reference.transform(None, data.mean, data.std),
    )
    batches = reference.loader(dataset, 8, workers=0, shuffle=False)
    ours.model.float()
    theirs.model.float()
    our_losses, our_accuracies, _ = ours.validate()
    their_losses, their_accuracies = theirs.evaluate(batches)
    assert our_losses == pytest.approx(their_losses, rel=1e-4)
    assert our_accuracies == their_accuracies
    assert len(our_losses) == 5  # the fused head and four experts


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def test_sides_that_disagree_are_not_compared() -> None:
    check_losses([[1.0, 2.0]], [[1.00009, 2.0]], 1e-4)
    with pytest.raises(DisagreementError, match="conventional"):
        check_losses([[1.0, 2.0]], [[1.0, 2.001]], 1e-4)
    with pytest.raises(DisagreementError):
        check_losses([[math.nan]], [[math.nan]], 1e-4)


def test_the_same_images_reach_both_networks(bench: Bench) -> None:
    context = fusionrun_side.run_context(bench, "resnet", fusionrun_side.TINY)
    data = context.data
    unchanged = reference.transform(None, data.mean, data.std)
    dataset = reference.Images(
        data.train_images[:16].numpy(), data.train_labels[:16].numpy(), unchanged
    )
    ours = next(context.loader(np.arange(16), 16).evaluation_batches())
    theirs, labels = next(iter(reference.loader(dataset, 16, workers=0, shuffle=False)))
    assert torch.allclose(ours.images, theirs, atol=1e-5)
    assert torch.equal(ours.labels, torch.as_tensor(labels))


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_the_pipeline_of_torchvision_stands_for_every_augmentation(
    bench: Bench, policy: str
) -> None:
    augmentation = replace(AUGMENTATIONS[policy], crop_padding=4, mixing="cutmix")
    images = np.full((8, 3, 32, 32), 200, dtype=np.uint8)
    pipeline = reference.transform(augmentation, (0.5,) * 3, (0.25,) * 3)
    dataset = reference.Images(images, np.arange(8), pipeline)
    batches = reference.loader(dataset, 4, workers=0, shuffle=True)
    mixed = list(reference.training_batches(batches, np.random.default_rng(0)))
    assert [tuple(batch[0].shape) for batch in mixed] == [(4, 3, 32, 32)] * 2
    assert sorted(torch.cat([batch[1] for batch in mixed]).tolist()) == list(range(8))
    names = str(getattr(pipeline, "transforms", ""))
    expected = {"randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}
    assert expected.get(augmentation.policy, "RandomCrop") in names
    assert ("RandomErasing" in names) is (augmentation.erasing > 0)


def test_conventional_cutmix_weighs_images_by_their_pixels() -> None:
    weights = []
    for seed in range(20):
        torch.manual_seed(seed)
        labels = torch.arange(6)
        images = labels.float().view(6, 1, 1, 1).expand(6, 3, 32, 32).clone()
        images, own, other, weight = reference.cutmix(images, labels, np.random.default_rng(seed))
        kept = (images == own.view(6, 1, 1, 1)).float().mean(dim=(1, 2, 3))
        moved = own != other
        assert torch.allclose(kept[moved], torch.full((int(moved.sum()),), weight))
        weights.append(weight)
    assert min(weights) < 0.3 and max(weights) > 0.7


def test_task_times_follow_from_images_epochs_and_the_measured_step(tmp_path: Path) -> None:
    """A full-size study: experts see 22,000 images for 250 epochs, rows 9,000 for 100."""
    seconds = {"resnet": 1e-3, "densenet": 2e-3, "improved_wide_resnet": 9e-3, "resnext": 13e-3}
    study = scaling.study_of(4, tmp_path)
    times = scaling.task_seconds(study.tasks, seconds)
    for task in study.tasks:
        trained = 250 * 22_000 if task.kind == "expert" else 100 * 9_000 * 4
        assert times[task.name] == pytest.approx(trained * seconds[task.model])


def test_makespans_by_hand(tmp_path: Path) -> None:
    """Sixteen experts of 1 s each and four rows of 3 s."""
    tasks = scaling.study_of(4, tmp_path).tasks
    seconds = {task.name: 1.0 if task.kind == "expert" else 3.0 for task in tasks}
    experts = [task for task in tasks if task.kind == "expert"]
    rows = [task for task in tasks if task.kind == "row"]
    for some, ranks, expected in ((tasks, 1, 28.0), (experts, 4, 4.0), (rows, 4, 3.0)):
        own = {task.name: seconds[task.name] for task in some}
        end = max(run.end for run in simulate(some, own, ranks))
        assert end == lower_bound(some, own, ranks) == expected
    # four ranks can't end before 7 s: 28 s of work, or a row after the last of its experts
    assert max(run.end for run in simulate(tasks, seconds, 4)) >= 7.0
    assert lower_bound(tasks, seconds, 4) == 7.0


def test_what_a_row_costs_the_launch_is_measured(bench: Bench) -> None:
    assert scaling._seconds_a_row(bench, 2) > 0


def test_a_step_is_set_beside_the_machines_peak(bench: Bench) -> None:
    """ResNet-18 takes 1.11 GFLOP an image forward, training three times that, four experts."""
    for flop, work in steps.works_at_the_peak(bench):
        assert flop > 1e10
        work()
    row = steps.share_of_peak("resnet", "resnet", 16, [1.0, 2.0, 4.0], [2e11] * 3)
    assert row.ours == pytest.approx(3 * 1.11 * 4 * 16 / 2, rel=0.01)
    assert row.theirs == pytest.approx(200)
    assert row.ratio == pytest.approx(row.ours / row.theirs) and row.met is None


def test_studies_of_any_size_have_rows_that_all_differ(tmp_path: Path) -> None:
    for count in (4, 16, 64):
        rows = scaling.study_of(count, tmp_path).rows
        assert len({(row.model, row.fusion, row.seed) for row in rows}) == count
        assert len({row.model for row in rows[:4]}) == 4


def test_the_made_data_set_is_read_as_cifar100(tmp_path: Path) -> None:
    make_data_set(tmp_path)
    data = load_dataset("cifar100", root=tmp_path / "nothing", cache_dir=tmp_path)
    assert (len(data.train_labels), len(data.test_labels)) == SIZES
    assert set(data.train_labels.tolist()) == set(range(100))


def test_a_crew_answers_in_order_and_a_lost_member_is_noticed() -> None:
    one, two = (partial(partial, abs, value) for value in (-1.0, -2.0))
    with WorkerPool([one, two]) as pool:
        assert pool() == [1.0, 2.0]
        assert pool() == [1.0, 2.0]
    with pytest.raises(EOFError), WorkerPool([one, partial(os._exit, 0)]):
        pass


IMPORTS = """
import sys, torch
from pathlib import Path
from tests.bench import fusionrun_side
from tests.bench.measure import Bench

bench = Bench(torch.device("cpu"), 1, Path("."), print)
context = fusionrun_side.run_context(bench, "resnet", fusionrun_side.TINY, batch_size=8)
for trainer in (fusionrun_side.expert(context), fusionrun_side.row(context)):
    trainer.train_step(next(trainer.loaders.train.training_batches(seed=0)))
    optimizer = trainer.optimisation.optimizer
    optimizer.load_state_dict(optimizer.state_dict())
print([name for name in HEAVY if name in sys.modules])
"""


def test_a_rank_imports_nothing_heavy_before_it_trains(tmp_path: Path) -> None:
    """Each of these takes a second or more; torch gets to its compiler by many ways."""
    heavy = ["torch._dynamo", "torch._inductor", "sympy", "torchvision", "tensorboard", "PIL"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.replace("HEAVY", repr(heavy))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
