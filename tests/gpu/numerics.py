"""The numbers: against float64, without waits, when memory runs out."""

import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fusionrun
from fusionrun.common.text import one_line, size
from fusionrun.data.augmentation.policies import AUGMENTATIONS, MIXINGS
from fusionrun.data.loader import Batch
from fusionrun.training.trainer import Trainer
from tests.bench import fusionrun_side, gpu_steps
from tests.bench.measure import MODELS, Bench
from tests.gpu.part import Verdict, judged

# what the recipe says, and how far losses and gradients may be from float64's, relative; in less
# than float32 gradients are rounding in good part, and judged by their size and direction alone
PRECISIONS: dict[str, tuple[dict[str, Any], float, float]] = {
    "fp32": ({"amp": "off", "tf32": False}, 1e-5, 1e-3),
    "tf32": ({"amp": "off", "tf32": True}, 3e-3, 0.3),
    "bf16": ({"amp": "bf16"}, 2e-2, 0.3),
    "fp16": ({"amp": "fp16"}, 2e-2, 0.3),
}
FULL_BATCH = 128
STEPS = 3
# losses and updates of a graph against those of its kernels: the same ones, some of which add up
# in whatever order they finish
GRAPH_TOLERANCES = 1e-2, 0.1
GIB = 2**30
SLACK = GIB // 16  # libraries keep their workspaces


def precisions(bench: Bench) -> Iterator[str]:
    """Those that the device has."""
    for name in PRECISIONS:
        native = name != "bf16" or not bench.on_gpu
        if native or torch.cuda.is_bf16_supported(including_emulation=False):
            yield name


def float64(bench: Bench) -> Verdict:
    """A step of each architecture and precision against the same one in float64 on the CPU.

    With SiLU for ReLU: on which side of 0 a number lies that is nothing but rounding would decide
    over a hundredth of some gradients.
    """
    with mock.patch.object(nn.functional, "relu", lambda x, inplace=False: nn.functional.silu(x)):
        return _float64(bench)


def _float64(bench: Bench) -> Verdict:
    wrong, figures = [], dict[str, dict[str, float]]()
    for model, kind in [*((model, "expert") for model in MODELS), ("resnet", "row")]:
        on_cpu = replace(bench, device=torch.device("cpu"))
        reference = _trainer(on_cpu, bench.on_gpu, model, kind, "fp32")
        batch = next(reference.loaders.train.training_batches(seed=0))
        fusionrun_side.compute_in_double(reference)
        in_double = Batch(batch.images.double(), batch.targets.double(), batch.labels)
        right = reference.train_step(in_double), _gradients(reference)
        for name in precisions(bench):
            ours = _trainer(bench, bench.on_gpu, model, kind, name)
            columns = (batch.images, batch.targets, batch.labels)
            there = Batch(*(each.to(bench.device) for each in columns))
            for _ in range(gpu_steps.OVERFLOWS):
                found = ours.train_step(there), _gradients(ours)
                if name != "fp16" or found[1].isfinite().all():
                    break  # else its update was skipped, and the loss is scaled by half as much
            pairs = zip(found, right, strict=True)
            apart = [_difference(ours, theirs) for ours, theirs in pairs]
            what = f"{model} {kind} {name}"
            figures[what] = dict(zip(("losses", "gradients"), apart, strict=True))
            print(what, figures[what], flush=True)
            _, *tolerances = PRECISIONS[name]
            for part, difference, most in zip(figures[what], apart, tolerances, strict=True):
                if not difference <= most:  # nan, too
                    wrong.append(f"{what}: {part} differ by {difference:.1e}, expected {most:.0e}")
    worst = {
        name: max(apart["losses"] for what, apart in figures.items() if what.endswith(name))
        for name in precisions(bench)
    }
    text = ", ".join(f"{name} {apart:.0e}" for name, apart in worst.items())
    return judged(wrong, f"losses differ from float64's by {text}", figures)


def _trainer(bench: Bench, full: bool, model: str, kind: str, precision: str) -> Trainer:
    """Of the published size, or of a tiny one."""
    arguments = None if full else fusionrun_side.TINY_MODELS[model]
    runtime, *_ = PRECISIONS[precision]
    context = fusionrun_side.run_context(
        bench, model, arguments, batch_size=8, images=300, **runtime
    )
    return gpu_steps.KINDS[kind](context)


def _gradients(trainer: Trainer) -> Tensor:
    gradients = (each.grad for each in trainer.model.parameters())
    return torch.cat(
        [each.detach().double().cpu().flatten() for each in gradients if each is not None]
    )


def _difference(found: Tensor, right: Tensor) -> float:
    right = right.double().cpu()
    return float((found.double().cpu() - right).norm() / right.norm())


def waits(bench: Bench) -> Verdict:
    """No step, nor the batch for it, waits for the GPU, whatever it's made of."""
    wrong, steps = [], 0
    for (model, arguments), name in itertools.product(
        fusionrun_side.TINY_MODELS.items(), precisions(bench)
    ):
        runtime, *_ = PRECISIONS[name]
        context = fusionrun_side.run_context(
            bench, model, arguments, batch_size=16, images=800, **runtime
        )
        for kind, make in gpu_steps.KINDS.items():
            trainer = make(context)
            for batch in itertools.islice(
                fusionrun_side.endless_batches(trainer), gpu_steps.warm_up(trainer)
            ):  # from now on it replays
                trainer.train_step(batch)
            for policy, mixing in itertools.product(AUGMENTATIONS, MIXINGS):
                augmentation = replace(AUGMENTATIONS[policy], mixing=mixing)
                loader = context.loader(context.splits.fusion_train, 16, augmentation)
                # allocates, and loads kernels
                trainer.train_step(next(loader.training_batches(seed=0)))
                try:
                    with _no_waits():  # an epoch's first batch is made with those that follow
                        for batch in itertools.islice(loader.training_batches(seed=1), STEPS):
                            trainer.train_step(batch)
                            steps += 1
                except RuntimeError as error:
                    what = f"{model} {kind} {name} {policy} {mixing}: {one_line(error)}"
                    print(what, flush=True)
                    wrong.append(what)
    return judged(wrong, f"none in {steps:,} steps of every architecture, precision, augmentation")


def graph_steps(bench: Bench) -> Verdict:
    """A step that is replayed as a graph does what the same step does kernel by kernel.

    Of every architecture, alone and in a row, there also with its experts side by side; with
    dropout, from the same weights and batches.
    """
    wrong, figures = [], dict[str, dict[str, float]]()
    ways = (("expert", "launched"), ("row", "graph"), ("row", "launched"))
    for model, (kind, way) in itertools.product(MODELS, ways):
        what = f"{model} {kind}, {way}"
        try:
            ours, theirs = (_trained(bench, model, kind, each) for each in (way, "eager"))
        except gpu_steps.OtherWayError as error:
            wrong.append(f"{what}: {one_line(error)}")
            continue
        pairs = zip(ours, theirs, strict=True)
        apart = [_difference(found, right) for found, right in pairs]
        figures[what] = dict(zip(("losses", "updates"), apart, strict=True))
        print(what, figures[what], flush=True)
        for part, difference, most in zip(figures[what], apart, GRAPH_TOLERANCES, strict=True):
            if not difference <= most:  # nan, too
                wrong.append(f"{what}: {part} differ by {difference:.1e}, expected {most:.0e}")
    worst = max((apart["losses"] for apart in figures.values()), default=0.0)
    return judged(wrong, f"losses of {len(figures)} differ by {worst:.0e} at most", figures)


def _trained(bench: Bench, model: str, kind: str, way: str) -> tuple[Tensor, Tensor]:
    """The losses of some steps, and what they changed."""
    arguments = None if bench.on_gpu else fusionrun_side.TINY_MODELS[model]
    graphs = "off" if way == "eager" else "auto"
    context = fusionrun_side.run_context(
        bench, model, arguments, batch_size=32, images=1000, rate=None, graphs=graphs
    )
    trainer = gpu_steps.KINDS[kind](context)
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    before = _weights(trainer.model)
    steps = gpu_steps.warm_up(trainer) + STEPS
    batches = itertools.islice(fusionrun_side.endless_batches(trainer), steps)
    losses = []
    with gpu_steps.done_by(way, trainer):
        for batch in batches:
            losses.append(trainer.train_step(batch).clone())
            trainer.after_step()  # the next has other random numbers
    return torch.stack(losses), _weights(trainer.model) - before


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().double().cpu().flatten() for each in model.parameters()])


@contextmanager
def _no_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def short_of_memory(bench: Bench) -> Verdict:
    """A batch that doesn't fit trains in smaller parts, as if they had been asked for.

    Batch statistics and losses are those of that micro-batch, validation works, and all memory
    comes back. Experts that are computed twice give the same numbers, too.
    """
    torch.ones(8, device=bench.device).sum()  # the context
    before = _give_back(bench)
    whole = _resnet_row(bench)
    batch = next(whole.loaders.train.training_batches(seed=0))
    started = _give_back(bench)
    found = {"whole": _one_step(whole, batch)}
    peak = torch.cuda.max_memory_reserved(bench.device)
    del whole
    _give_back(bench)
    found["twice"] = _one_step(_resnet_row(bench, recompute=True), batch)
    twice = torch.cuda.max_memory_reserved(bench.device)
    _give_back(bench)
    allowed = started + (peak - started) // 2
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total, bench.device)
    try:
        short = _resnet_row(bench, micro_batch="auto")
        found["short"] = _one_step(short, batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    fitted = short.fitting.micro_batch
    found["asked"] = _one_step(_resnet_row(bench, micro_batch=fitted), batch)
    wrong, figures = [], dict[str, Any]()
    if fitted is None:
        wrong.append(f"batch {FULL_BATCH} fits in {size(allowed)} although it took {size(peak)}")
    for ours, theirs in (("short", "asked"), ("twice", "whole")):
        for what, number in found[ours].items():
            apart = _difference(number, found[theirs][what])
            figures[f"{what}, {ours} and {theirs}"] = apart
            if not apart <= 1e-4:  # nan, too
                wrong.append(f"{what} {ours} and {theirs} differ by {apart:.1e}")
    del short, batch, found
    kept = _give_back(bench) - before
    if kept > SLACK:
        wrong.append(f"{size(kept)} weren't given back")
    figures |= {"peak": peak, "peak_twice": twice, "allowed": allowed, "micro_batch": fitted}
    text = f"{size(allowed)} instead of {size(peak)}: micro-batches of {fitted}, the same numbers"
    return judged(wrong, text, figures)


def _resnet_row(bench: Bench, **how: Any) -> Trainer:
    return fusionrun_side.row(
        fusionrun_side.run_context(
            bench, "resnet", batch_size=FULL_BATCH, amp="off", tf32=False, **how
        )
    )


def _one_step(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Its losses, running statistics and validation, on the CPU."""
    losses = trainer.train_step(batch).cpu()
    statistics = _statistics(trainer.model).cpu()
    return {
        "losses": losses,
        "batch statistics": statistics,
        "validation": torch.tensor(trainer.validate()[0]),
    }


def _statistics(model: nn.Module) -> Tensor:
    """All running means and variances, as one vector."""
    buffers = (value for key, value in model.named_buffers() if "running" in key)
    return torch.cat([value.double().flatten() for value in buffers])


def _give_back(bench: Bench) -> int:
    """Bytes that are left in use."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    return torch.cuda.memory_allocated(bench.device)


def given_back(bench: Bench) -> Verdict:
    """A rank that has trained a large row holds less than 1 GiB when it has nothing to do."""
    fusionrun.train(
        {
            "output_dir": str(bench.scratch / "out"),
            "rows": [{"model": "improved_wide_resnet", "fusion": "concatenation"}],
            "data": {"name": "synthetic", "train_images": 800, "test_images": 200},
            "experts": {"count": 2, "epochs": 1},
            "fusion": {"epochs": 1},
            "logs": {"tensorboard": False},
        },
        f"runtime.device={bench.device.type}",
    )
    held, ever = (
        torch.cuda.memory_stats(bench.device)[f"reserved_bytes.all.{which}"]
        for which in ("current", "allocated")
    )
    wrong = [f"{size(held)} held by an idle rank, expected below 1 GiB"] if held >= GIB else []
    if ever < GIB:
        wrong.append(f"the row took {size(ever)} in all, too little to tell")
    return judged(wrong, f"{size(held)} held by an idle rank", {"held": held, "ever": ever})
