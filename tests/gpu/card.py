"""The GPU, its driver and the installed torch; then what a user would ask first."""

import subprocess
import sys
from xml.etree import ElementTree

import torch

from fusionrun.common.gpus import of_device, read_gpus
from fusionrun.common.text import size
from fusionrun.common.wheels import has_kernels
from tests.bench.measure import Bench
from tests.gpu.part import Verdict, judged
from tests.tiny import ROOT, environment, write_recipe

TESTS = "tests/unit"


def card(bench: Bench) -> Verdict:
    """Torch sees the GPU that is there, has kernels for it, and it computes.

    The figures have "cuda" where torch can use one.
    """
    found = read_gpus(timeout=20)
    if not torch.cuda.is_available():
        if not found:
            return Verdict("skipped", "there is no GPU here")
        seen = ", ".join(gpu.name for gpu in found)
        return Verdict("fail", f"nvidia-smi sees {seen}, torch {torch.__version__} doesn't use it")
    device = bench.device if bench.on_gpu else torch.device("cuda", 0)
    gpu = of_device(found, device)
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    built_for = torch.cuda.get_arch_list()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    figures = {
        "cuda": torch.version.cuda,
        "name": properties.name,
        "capability": list(capability),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": gpu.driver if gpu else None,
        "compute_mode": gpu.compute_mode if gpu else None,
        "power_limit_watts": gpu.power_limit if gpu else None,
        "uncorrected_errors": gpu.ecc_errors if gpu else None,
        "throttle": gpu.throttle if gpu else None,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "built_for": built_for,
        "half_precision": "bf16" if bf16 else "fp16",
    }
    wrong = []
    if not has_kernels(capability, built_for):
        wrong.append(f"torch {torch.__version__} is built for {' '.join(built_for)}, not for it")
    elif torch.ones(8, device=device).sum().item() != 8:
        wrong.append("it can't add")
    if gpu and gpu.throttle:
        wrong.append(gpu.throttle)
    text = (
        f"{properties.name}, {size(properties.total_memory)}, sm_{capability[0]}{capability[1]}, "
        f"driver {figures['driver']}, torch {torch.__version__}, cuDNN {figures['cudnn']}, "
        f"native {figures['half_precision']}"
    )
    return judged([f"{text}: {problem}" for problem in wrong], text, figures)


def doctor(bench: Bench) -> Verdict:
    """`fusionrun doctor` finds nothing that would make a launch fail."""
    recipe = write_recipe(bench.scratch)
    words = [str(recipe), f"runtime.device={bench.device.type}", "runtime.threads=null"]
    command = [sys.executable, "-m", "fusionrun", "doctor", *words, "--ranks=1", "--seconds=0.5"]
    done = subprocess.run(command, cwd=bench.scratch, env=environment(), stderr=subprocess.STDOUT)
    return judged([f"exit status {done.returncode}"] if done.returncode else [], "exit status 0")


def cuda_tests(bench: Bench) -> Verdict:
    """The suite's tests that need a GPU, none skipped."""
    results = bench.scratch / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda"]
    subprocess.run(
        [*command, f"--junit-xml={results}", TESTS],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.STDOUT,
    )
    (suite,) = ElementTree.parse(results).getroot().iter("testsuite")
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    wrong = [f"{counts[key]} {key}" for key in ("failures", "errors", "skipped") if counts[key]]
    if not counts["tests"]:
        wrong = ["no test was found"]
    return judged(wrong, f"{counts['tests']} passed, none skipped", counts)
