"""Training: a step, an epoch, evaluation, and the layout that each architecture likes best."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.data.augmentation.policies import Augmentation
from fusionrun.data.loader import STEPS_AHEAD
from fusionrun.experts import build_expert
from fusionrun.study.context import RunContext
from tests.bench import fusionrun_side, reference
from tests.bench.measure import MODELS, Bench, Row, share, times_as_fast, unless_out_of_memory

CPU_BATCH = {"resnet": 16, "densenet": 16, "improved_wide_resnet": 4, "resnext": 4}
CPU_GOALS = {"resnet": 1.05, "densenet": 1.15, "improved_wide_resnet": 1.0, "resnext": 1.02}
GPU_BATCH, GPU_REPEAT = 128, 5  # repeat: steps that are timed together
GPU_GOALS = {"resnet": 4.5, "densenet": 4.0, "improved_wide_resnet": 2.7, "resnext": 2.6}
LOADING_GOAL, GPU_LOADING_GOAL = 0.05, 0.03  # of a step and its batch
LAYOUT_BATCH = 32  # on a CPU; the fewer images, the less a layout matters
# what shows a CPU's peak: the side of matrices; a convolution's images, channels, pixels a side
PEAK_SIDE, PEAK_IMAGES, PEAK_CHANNELS, PEAK_PIXELS = 2048, 64, 256, 16
EXPERTS = 4  # of a row
CHECKED = 3  # first steps, whose losses must agree
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}  # relative; bfloat16 has 8 bits

SPLITS = (9000, 1000, 10000)  # training and validation part of the holdout, test set
# a CPU takes a part of them, and ResNet-18 in half width
EPOCH_SCALE = {"cpu": 1 / 150, "cuda": 1 / 4}
EPOCH_WIDTH = {"cpu": 32, "cuda": 64}
EPOCH_BATCH = {"cpu": 30, "cuda": 128}


class DisagreementError(Exception):
    """Both sides don't compute the same, so comparing their times would mean nothing."""


def measure_steps(bench: Bench) -> list[Row]:
    """Full-size rows of four experts, and the batches that their augmentation makes."""
    rows = []
    for model in MODELS:
        bench.say(f"step: {model}")
        rows += unless_out_of_memory(partial(measure_step, bench, model), "step", model)
    return rows


def measure_step(bench: Bench, model: str) -> list[Row]:
    """A full-size row of four experts against the conventional step, and the batch for it."""
    batch_size, repeat = (GPU_BATCH, GPU_REPEAT) if bench.on_gpu else (CPU_BATCH[model], 1)
    ours = fusionrun_side.row(fusionrun_side.run_context(bench, model, batch_size=batch_size))
    theirs = fusionrun_side.reference_trainer(ours)
    batch, mixed = fusionrun_side.batch_for_both(ours)
    our_losses: list[Tensor] = []
    their_losses: list[list[float]] = []
    batches = fusionrun_side.endless_batches(ours)
    at_peak = works_at_the_peak(bench)
    their_seconds, our_seconds, loading, *peak_seconds = bench.interleave(
        bench.timed(lambda: their_losses.append(theirs.step(mixed)), repeat),
        bench.timed(lambda: our_losses.append(ours.train_step(batch).clone()), repeat),
        bench.timed(lambda: next(batches), STEPS_AHEAD),
        *(bench.timed(work) for _, work in at_peak),
    )
    check_losses(
        [losses.tolist() for losses in our_losses[:CHECKED]],
        their_losses[:CHECKED],
        TOLERANCE[bench.device.type],
    )
    name, note = f"{model}, batch {batch_size}", f"losses of {CHECKED} steps agree"
    goal = (GPU_GOALS if bench.on_gpu else CPU_GOALS)[model]
    loading_goal = GPU_LOADING_GOAL if bench.on_gpu else LOADING_GOAL
    both = [step + load for step, load in zip(our_seconds, loading, strict=True)]
    peaks = [
        max(flop / seconds for (flop, _), seconds in zip(at_peak, each, strict=True))
        for each in zip(*peak_seconds, strict=True)
    ]
    return [
        times_as_fast("step", name, goal, theirs=their_seconds, ours=our_seconds, note=note),
        share("step", f"{name}: augmentation's part", loading_goal, ours=loading, of=both),
        *([] if bench.on_gpu else [share_of_peak(name, model, batch_size, our_seconds, peaks)]),
    ]


def works_at_the_peak(bench: Bench) -> list[tuple[float, Callable[[], object]]]:
    """(operations, work) of what comes near the machine's peak in float32.

    Which comes nearer, a product of matrices or a convolution, the libraries decide.
    """
    a, b = torch.rand(2, PEAK_SIDE, PEAK_SIDE, device=bench.device)
    images = torch.rand(PEAK_IMAGES, PEAK_CHANNELS, PEAK_PIXELS, PEAK_PIXELS, device=bench.device)
    weights = torch.rand(PEAK_CHANNELS, PEAK_CHANNELS, 3, 3, device=bench.device)
    images, weights = (each.to(memory_format=torch.channels_last) for each in (images, weights))
    convolved = 2 * 9 * PEAK_CHANNELS**2 * PEAK_IMAGES * PEAK_PIXELS**2
    return [
        (2 * PEAK_SIDE**3, lambda: a @ b),
        (convolved, lambda: F.conv2d(images, weights, padding=1)),
    ]


def share_of_peak(
    name: str, model: str, batch_size: int, steps: Sequence[float], peaks: Sequence[float]
) -> Row:
    """A row's step in operations a second, beside the machine's peak in the same round.

    Training takes three times the operations of the pass forward.
    """
    with torch.device("meta"):
        expert = build_expert(model, fusionrun_side.CLASSES)
    flop = 3 * 2 * multiply_accumulates(expert, 32) * EXPERTS * batch_size
    return share(
        "step",
        f"{name}: share of the machine's peak",
        None,
        ours=[flop / seconds / 1e9 for seconds in steps],
        of=[peak / 1e9 for peak in peaks],
        unit="GFLOP/s",
    )


def check_losses(ours: list[list[float]], theirs: list[list[float]], tolerance: float) -> None:
    """Raise DisagreementError unless all losses (step, head) agree within relative `tolerance`."""
    if not np.allclose(ours, theirs, rtol=tolerance, atol=0):
        raise DisagreementError(f"losses by step and head: ours {ours}, conventional {theirs}")


def measure_layouts(bench: Bench) -> list[Row]:
    """One expert's step in both: the measurement that runtime.channels_last rests on."""
    batch_size, repeat = (GPU_BATCH, GPU_REPEAT) if bench.on_gpu else (LAYOUT_BATCH, 1)
    rows = []
    for model in MODELS:
        bench.say(f"layout: {model}")
        steps = (expert_step(bench, model, batch_size, channels_last=on) for on in (False, True))
        contiguous, last = bench.interleave(*(bench.timed(step, repeat) for step in steps))
        name = f"{model}, batch {batch_size}: channels_last against contiguous"
        rows.append(times_as_fast("layout", name, 1.0, theirs=contiguous, ours=last))
    return rows


def expert_step(
    bench: Bench, model: str, batch_size: int, *, channels_last: bool = True
) -> Callable[[], object]:
    """The training step of one full-size expert, on a batch that stays the same."""
    context = fusionrun_side.run_context(
        bench, model, batch_size=batch_size, channels_last=channels_last
    )
    trainer = fusionrun_side.expert(context)
    batch = next(trainer.loaders.train.training_batches(seed=0))
    return lambda: trainer.train_step(batch)


def measure_epoch(bench: Bench) -> list[Row]:
    """An epoch as ours and as theirs, then evaluation alone, of both on the same images.

    Ours trains on the holdout's 9,000 images and validates on its other 1,000, in one pass; theirs
    trains on the same 9,000 and evaluates the 10,000 test images twice, fused and by expert.
    """
    kind = bench.device.type
    train, val, test = (round(EPOCH_SCALE[kind] * size) for size in SPLITS)
    parts = np.split(np.arange(train + val + test), [train, train + val])
    network = {"width": EPOCH_WIDTH[kind]}
    context = fusionrun_side.run_context(
        bench, "resnet", network, batch_size=EPOCH_BATCH[kind], images=max(1000, train + val + test)
    )
    splits = replace(context.splits, fusion_train=parts[0], fusion_val=parts[1])
    ours = fusionrun_side.row(replace(context, splits=splits))
    tested = fusionrun_side.row(replace(context, splits=replace(splits, fusion_val=parts[2])))
    theirs = fusionrun_side.reference_trainer(ours)
    training = _images(bench, context, parts[0], ours.loaders.train.augmentation)
    testing = _images(bench, context, parts[2], None)
    check_losses([tested.validate()[0]], [theirs.evaluate(testing)[0]], TOLERANCE[kind])
    rng = np.random.default_rng(0)

    def their_epoch() -> None:
        theirs.train_epoch(training, rng)
        theirs.evaluate(testing)

    their_epochs, our_epochs, their_passes, our_passes = bench.interleave(
        bench.timed(their_epoch),
        bench.timed(lambda: fusionrun_side.train_epoch(ours)),
        bench.timed(lambda: theirs.evaluate(testing)),
        bench.timed(tested.validate),
    )
    name = f"resnet of width {EPOCH_WIDTH[kind]}, {train} + {val} images against "
    name += f"{train} + 2 x {test}, batch {EPOCH_BATCH[kind]}"
    note = f"{EPOCH_SCALE[kind]:.2g} of the published split sizes"
    passes = f"the same network's evaluation, {test} images on both sides"
    agree = "losses of all heads agree"
    return [
        times_as_fast("epoch", name, 1.8, theirs=their_epochs, ours=our_epochs, note=note),
        times_as_fast("epoch", passes, 2.5, theirs=their_passes, ours=our_passes, note=agree),
    ]


def _images(
    bench: Bench, context: RunContext, indices: np.ndarray, augmentation: Augmentation | None
) -> reference.Batches:
    data = context.data
    dataset = reference.Images(
        data.train_images.numpy()[indices],
        data.train_labels.numpy()[indices],
        reference.transform(augmentation, data.mean, data.std),
    )
    is_training = augmentation is not None
    batch_size = context.study.recipe.fusion.batch_size if is_training else 128
    return reference.loader(dataset, batch_size, workers=bench.cores, shuffle=is_training)
