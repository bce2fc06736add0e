"""The machine: its devices compute and have room, its processes can meet, nobody else is busy."""

import os
import socket
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fusionrun.common.distributed import LaunchError, RankInfo, choose_device
from fusionrun.common.text import plural, size
from fusionrun.launch.checks.finding import Check, Finding
from fusionrun.study.study import Study

COMPUTE_TOLERANCE = 1e-3  # relative to the norm; TF32 convolutions stay below it
COMPUTE_REPEATS = 5


def machine_checks(devices: Sequence[torch.device]) -> list[Check]:
    """What only the doctor looks at: whether the machine's `devices` compute right, and now."""
    return [
        Check("port", check_port),
        Check("load", check_load),
        Check("GPU memory", lambda: check_gpu_memory(devices), needs=("device",)),
        Check("compute", lambda: check_compute(devices), needs=("device",)),
    ]


def launch_devices(study: Study, rank_info: RankInfo) -> list[torch.device]:
    """All that the launch may use; none when it asks for a GPU and there is none."""
    if study.recipe.runtime.deterministic:
        # torch looks once, at the first matrix product: the compute check must find it set
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        first = choose_device(rank_info, study.recipe.runtime.device)
    except LaunchError:  # check_device says it
        return []
    if first.type == "cpu":
        return [first]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def check_gpu_memory(devices: Sequence[torch.device]) -> Iterator[Finding]:
    """Nobody else holds much of a GPU that this launch would use."""
    for device in devices:
        if device.type != "cuda":
            continue
        free, total = torch.cuda.mem_get_info(device)
        found = f"{size(free)} of {size(total)} free"
        if free < 0.9 * total:
            advice = "another process uses this GPU (nvidia-smi shows which): end it or wait"
            yield Finding(f"memory {device}", "warn", found, advice)
        else:
            yield Finding(f"memory {device}", "pass", found)


def check_compute(devices: Sequence[torch.device]) -> Iterator[Finding]:
    """Products, convolutions and their gradients come out right, and the same every time."""
    reference = compute(torch.device("cpu"), torch.float64)
    for device in devices:
        name, advice = f"compute {device}", "don't train on it; CUDA_VISIBLE_DEVICES leaves it out"
        try:
            results = [compute(device, torch.float32) for _ in range(COMPUTE_REPEATS)]
        except RuntimeError as error:
            yield Finding(name, "fail", f"broke: {str(error).splitlines()[0]}", advice)
            continue
        difference = float((results[0] - reference).norm() / reference.norm())
        if not difference <= COMPUTE_TOLERANCE:  # nan, too
            found = f"wrong results (relative difference {difference:.2g} from float64)"
            yield Finding(name, "fail", found, advice)
        elif not all(torch.equal(result, results[0]) for result in results):
            yield Finding(name, "fail", "other results of the same computation again", advice)
        else:
            found = f"right to {difference:.1g}, the same {COMPUTE_REPEATS} times"
            yield Finding(name, "pass", found)


def compute(device: torch.device, dtype: torch.dtype) -> Tensor:
    """A matrix product, a convolution and its weights' gradient as one vector, float64 on the CPU.

    A fixed problem, large enough to occupy most of a GPU's processors.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        product = numbers(768, 768) @ numbers(768, 768)
        images, kernels = numbers(16, 16, 16, 16), numbers(16, 16, 3, 3).requires_grad_()
        maps = nn.functional.conv2d(images, kernels, padding=1)
        (gradient,) = torch.autograd.grad(maps.relu().sum(), kernels)
    # each part counts alike, however large its numbers
    parts = [part.detach().cpu().double().flatten() for part in (product, maps, gradient)]
    return torch.cat([part / part.norm() for part in parts])


def check_load() -> Iterator[Finding]:
    """Nobody else computes here while the steps are timed."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load > 0.5 * cores:
        found = f"{load:.1f} processes at work on {plural(cores, 'core')} before this one began"
        yield Finding("load", "warn", found, "the machine is busy: these times are too high")


def check_port() -> Iterator[Finding]:
    """torchrun picks a free port of this machine, on which its processes meet."""
    try:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("localhost", port), timeout=5).close()
    except OSError as error:
        found = f"processes can't meet on localhost ({error.strerror or error})"
        advice = "check that `localhost` is in /etc/hosts and that no firewall or sandbox closes it"
        yield Finding("port", "fail", found, advice)
    else:
        yield Finding("port", "pass", "processes can meet on localhost")
