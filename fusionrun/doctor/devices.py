"""The devices, one by one: each computes right, is healthy, and nobody else is busy on it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fusionrun.common.gpus import Gpu, of_device, read_gpus
from fusionrun.common.text import one_line, plural, problem_of, size
from fusionrun.launch.checks.finding import Finding, State
from fusionrun.launch.checks.machine import LEAVE_OUT, PATIENCE
from fusionrun.study.runtime import RuntimeConfig
from fusionrun.training.precision import FP32, Precision

# Relative to the norm, from float64. Of an H100 that is well, 4e-6 at most after a whole step in
# fp32 (1.3e-4 after the deepest network's). One product of rounded factors differs by 3e-4 in TF32
# and fp16, by 3e-3 in bf16. What is wrong with a card is far from all of it.
TOLERANCES = {"fp32": 1e-4, "tf32": 3e-3, "fp16": 2e-2, "bf16": 2e-2}
REPEATS = 5


def check_gpus(devices: Sequence[torch.device]) -> Iterator[Finding]:
    """Each GPU has room, and nvidia-smi knows of no errors in its memory."""
    told = _told_of(devices)
    for device in devices:
        if device.type == "cuda":
            yield from _check_gpu(device, told)


def _check_gpu(device: torch.device, told: Sequence[Gpu]) -> Iterator[Finding]:
    name = f"GPU {device}"
    try:
        free, total = torch.cuda.mem_get_info(device)
        gpu = of_device(told, device) if told else None
    except RuntimeError as error:  # such as one that lets in a single process, and has one
        advice = f"nvidia-smi shows whether another process has it for itself; {LEAVE_OUT}"
        yield Finding(name, "fail", f"can't be used: {one_line(problem_of(error))}", advice)
        return
    facts = [f"{size(free)} of {size(total)} free"]
    if gpu is not None:
        facts.insert(0, f"{gpu.name}, {gpu.index} of nvidia-smi")
        facts += [] if gpu.temperature is None else [f"{gpu.temperature:.0f} °C"]
        facts += ["no memory errors"] if gpu.ecc_errors == 0 else []
    elif free < 0.9 * total:  # where nvidia-smi tells it, the device's check has said so
        advice = f"another process uses this GPU: end it or wait; {LEAVE_OUT}"
        yield Finding(name, "warn", facts[0], advice)
        return
    yield Finding(name, "pass", "; ".join(facts))
    if gpu is not None and gpu.ecc_errors:
        found = f"{plural(gpu.ecc_errors, 'uncorrected memory error')} since its driver was loaded"
        advice = (
            f"`nvidia-smi -q -d ECC,ROW_REMAPPER -i {gpu.index}` tells more; a reset or a restart "
            f"of the machine takes bad memory out of use; {LEAVE_OUT}"
        )
        yield Finding(name, "warn", found, advice)
    yield from _throttled(name, gpu)


def check_throttling(devices: Sequence[torch.device]) -> Iterator[Finding]:
    """None of them is slowed down, now that they have worked."""
    told = _told_of(devices)
    for device in devices if told else ():
        yield from _throttled(f"GPU {device}", of_device(told, device))


def _told_of(devices: Sequence[torch.device]) -> tuple[Gpu, ...]:
    return read_gpus(PATIENCE) if any(device.type == "cuda" for device in devices) else ()


def _throttled(name: str, gpu: Gpu | None) -> Iterator[Finding]:
    if gpu is not None and gpu.throttle:
        warm = "" if gpu.temperature is None else f" ({gpu.temperature:.0f} °C)"
        found = f"it runs below its speed: {gpu.throttle}{warm}"
        yield Finding(name, "warn", found, "look after its cooling and power; times will be longer")


def check_compute(devices: Sequence[torch.device], runtime: RuntimeConfig) -> Iterator[Finding]:
    """Products, convolutions and their gradients come out right, and the same every time.

    In true fp32, which shows most, and as the study computes on each of them.
    """
    reference = compute(torch.device("cpu"), torch.float64, FP32)
    for device in devices:
        try:
            own = Precision.of(runtime.amp, runtime.tf32, device)
            looks = [_look(device, each, reference) for each in dict.fromkeys((FP32, own))]
        except RuntimeError as error:
            looks = [_computes(device, "fail", f"broke: {one_line(problem_of(error))}")]
        others = [look for look in looks if look.state != "pass"]
        told = ", ".join(look.found for look in looks)
        yield from others or [_computes(device, "pass", f"{told}, the same {REPEATS} times")]


def _look(device: torch.device, precision: Precision, reference: Tensor) -> Finding:
    results = [compute(device, torch.float32, precision) for _ in range(REPEATS)]
    difference = float((results[0] - reference).norm() / reference.norm())
    name, rounded = precision.name, TOLERANCES["tf32"]
    if not difference <= max(TOLERANCES[name], rounded):  # nan, too
        found = f"wrong results in {name} (relative difference {difference:.2g} from float64)"
        return _computes(device, "fail", found)
    if not all(torch.equal(result, results[0]) for result in results):
        return _computes(device, "fail", f"other results of the same computation again, in {name}")
    if difference > TOLERANCES[name]:
        found = f"right to {difference:.1g} in {name}: TF32's, which was turned off"
        advice = "enough to train with, and NVIDIA_TF32_OVERRIDE=1 does that; doctor can't see more"
        return replace(_computes(device, "warn", found), advice=advice)
    return _computes(device, "pass", f"right to {difference:.1g} in {name}")


def _computes(device: torch.device, state: State, found: str) -> Finding:
    advice = f"don't train on it; {LEAVE_OUT}" if state == "fail" else ""
    return Finding(f"compute {device}", state, found, advice)


def compute(device: torch.device, dtype: torch.dtype, precision: Precision) -> Tensor:
    """A matrix product, a convolution and its weights' gradient as one vector, float64 on the CPU.

    A fixed problem, large enough to occupy most of a GPU's processors, in shapes that its tensor
    cores take. It's smooth: where a ReLU's kink lies, a healthy card may come out on another side.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    images, kernels = numbers(16, 64, 16, 16), numbers(64, 64, 3, 3).requires_grad_()
    with _exactly(tf32=precision.name == "tf32"):
        with precision.autocast(device):
            product = numbers(768, 768) @ numbers(768, 768)
            maps = nn.functional.conv2d(images, kernels, padding=1)
        (gradient,) = torch.autograd.grad(maps.to(dtype).square().mean(), kernels)
    # each part counts alike, however large its numbers
    parts = [part.detach().cpu().double().flatten() for part in (product, maps, gradient)]
    return torch.cat([part / part.norm() for part in parts])


@contextlib.contextmanager
def _exactly(*, tf32: bool) -> Iterator[None]:
    """The same way every time; TF32's short factors in place of float32's only if asked for."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
        ):
            yield
    finally:
        matmul.allow_tf32 = before
