"""Kernels made for a network: its trunks through torch.compile, while a GPU's step is recorded.

A batch norm with its ReLU, and DenseNet's concatenation, are one pass over the memory then. Once
the step is recorded the compiler has nothing more to say: a graph holds the kernels, not the code.
"""

import importlib.util
import os
import shutil
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from fusionrun.fusions import FusionModel

# Of a recorded step's time that such kernels save. An H100 saved 10 % of ResNet's, a third of
# what its batch norms took; of DenseNet's and ResNeXt's they take 38 %.
GAIN = 0.1
SECONDS_A_LAYER = 0.8  # 33 s for ResNet-18's 40 layers on that machine, with 16 cores
TIMED = 10  # replays of which the time is taken
SLOW = 0.5  # seconds that a recorded step hardly takes anywhere
# How much losses and gradients may differ from what they are without: such kernels round once what
# others round step by step. In bfloat16 it's up to 0.4 and 1.6 % (small networks, on a CPU).
FUSED_TOLERANCE = 0.1
# How many variants of a function dynamo keeps: all modules that are compiled as a whole share one
# function of torch's. Beyond its own 8 it would compile layer by layer, each width a variant.
VARIANTS = 256


def trunks(model: nn.Module) -> list[nn.Module]:
    """What of `model` is compiled: the trunks of its experts, or its own."""
    experts = model.experts if isinstance(model, FusionModel) else [model]
    found = (getattr(expert, "trunk", None) for expert in experts)
    return [trunk for trunk in found if isinstance(trunk, nn.Module)]


def repays(model: nn.Module, steps: int, seconds_a_step: float) -> bool:
    """Whether `steps` recorded steps of that length win more time than compiling is expected to

    take. Trunks that are built alike are compiled once; what an earlier task or launch of this
    machine compiled takes less.
    """
    kinds = {repr(trunk): trunk for trunk in trunks(model)}.values()
    modules = (module for trunk in kinds for module in trunk.modules())
    layers = sum(1 for module in modules if any(True for _ in module.parameters(recurse=False)))
    return 0 < SECONDS_A_LAYER * layers <= GAIN * steps * seconds_a_step


def seconds_of(replay: Callable[[int], object] | None, seed: int, device: torch.device) -> float:
    """How long one replay of a recorded step takes; it changes what lasts."""
    assert replay is not None
    started = 0.0
    for number in range(TIMED + 1):
        if number == 1:  # the first brings the graph there
            _settle(device)
            started = time.perf_counter()
        replay(seed)
    _settle(device)
    return (time.perf_counter() - started) / TIMED


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def obstacle() -> str:
    """What keeps torch.compile from making kernels for a GPU here, in words; "" if nothing does."""
    if importlib.util.find_spec("triton") is None:
        return "triton isn't installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler: install gcc, or name one in CC"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers aren't installed (package python3-dev)"
    return ""


@contextmanager
def compiled_trunks(model: nn.Module) -> Iterator[None]:
    """In here the model's trunks compute with kernels made for them, forward and backward.

    Each is compiled as a whole, or its first pass raises what torch._dynamo says. Random numbers
    are drawn as without it. Numbers differ in what half precision rounds: fused kernels round once.
    """
    from torch._dynamo import config  # takes a second

    options = {"fallback_random": True, "compile_threads": max(1, torch.get_num_threads())}
    limits = config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS)
    found = trunks(model)
    with limits, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what could be tuned; the terminal is the table's
        try:
            for trunk in found:
                trunk.compile(fullgraph=True, dynamic=False, options=options)
            yield
        finally:
            for trunk in found:
                trunk._compiled_call_impl = None
