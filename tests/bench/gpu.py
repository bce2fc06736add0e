"""What only a GPU has: a peak to come near, a host that mustn't wait, bfloat16's learning curve."""

import itertools
import warnings
from statistics import fmean

import torch

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.experts import build_expert
from tests.bench import fusionrun_side
from tests.bench.measure import MODELS, Bench, Goal, Row, share, times_as_fast

BATCH, REPEAT = 128, 10
SHARES = {"resnet": 0.20, "densenet": 0.10, "improved_wide_resnet": 0.35, "resnext": 0.18}
SIZE = 8192  # of the matrices whose product shows the peak
CURVE_STEPS, CURVE_END = 200, 20  # steps, and how many of the last ones are averaged


ONLY_THERE = (
    ("step of each architecture against the conventional one", Goal(3.0)),
    ("share of the bfloat16 peak in a step", Goal(min(SHARES.values()))),
    ("four ranks on one GPU against one after another", Goal(0.9)),
    ("waits for the device in a step and the batch for it", Goal(0.0, at_most=True)),
    ("difference of bfloat16's loss to float32's", Goal(0.01, at_most=True)),
)


def measure(bench: Bench) -> list[Row]:
    """Without a GPU: rows that say so."""
    if not bench.on_gpu:
        return [Row("gpu", name, goal, note="there is no GPU here") for name, goal in ONLY_THERE]
    rows = []
    for model in MODELS:
        bench.say(f"gpu: {model}")
        rows.append(_share_of_peak(bench, model))
    return [*rows, _waits(bench), _curve(bench)]


def _share_of_peak(bench: Bench, model: str) -> Row:
    """The step against the same work at the speed of a large bfloat16 matrix product."""
    with torch.device("meta"):
        expert = build_expert(model, fusionrun_side.CLASSES)
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, model, batch_size=BATCH))
    batch, _ = fusionrun_side.batch_for_both(trainer)
    experts = len(trainer.optimisation.head_weights) - 1
    # two operations a multiply-accumulate; the backward pass costs two forward ones
    work = 6 * multiply_accumulates(expert, 32) * len(batch.labels) * experts
    a, b = (torch.randn(SIZE, SIZE, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    matmul, step = bench.interleave(
        bench.timed(lambda: a @ b, REPEAT), bench.timed(lambda: trainer.train_step(batch), REPEAT)
    )
    peak_seconds = [work / (2 * SIZE**3) * seconds for seconds in matmul]
    name = f"{model}: step at this GPU's bfloat16 peak against the real one, batch {BATCH}"
    note = f"peak {2e-12 * SIZE**3 / fmean(matmul):.0f} TFLOP/s, measured"
    return times_as_fast(
        "gpu", name, SHARES[model], theirs=peak_seconds, ours=step, unit="s", note=note
    )


def _waits(bench: Bench) -> Row:
    """How often the host waits for the device while it makes a batch and does a step."""
    trainer = fusionrun_side.row(fusionrun_side.run_context(bench, "resnet", batch_size=BATCH))
    batches = trainer.loaders.train.training_batches(seed=0)
    trainer.train_step(next(batches))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            trainer.train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    name = "waits for the device in a step and the batch for it"
    return share("gpu", name, 0.0, ours=[float(len(waits))], of=[1.0], unit="waits")


def _curve(bench: Bench) -> Row:
    """Loss after some training: bfloat16 against float32, from the same weights and batches."""
    half = _final_loss(bench, seed=0, amp="auto")
    single = _final_loss(bench, seed=0, amp="off")
    other = _final_loss(bench, seed=1, amp="off")
    name = f"resnet: relative difference of the loss after {CURVE_STEPS} steps, bfloat16 to float32"
    note = f"losses {half:.4f} and {single:.4f}; float32 with other batches {other:.4f}"
    return share("gpu", name, 0.01, ours=[abs(half - single)], of=[single], unit="loss", note=note)


def _final_loss(bench: Bench, *, seed: int, amp: str) -> float:
    context = fusionrun_side.run_context(
        bench, "resnet", batch_size=BATCH, images=8000, rate=None, amp=amp
    )
    trainer = fusionrun_side.row(context)
    epochs = (
        trainer.loaders.train.training_batches(seed + 2 * number) for number in itertools.count()
    )
    batches = itertools.islice(itertools.chain.from_iterable(epochs), CURVE_STEPS)
    losses = [trainer.train_step(batch) for batch in batches]
    return float(torch.stack(losses[-CURVE_END:])[:, 0].mean())
