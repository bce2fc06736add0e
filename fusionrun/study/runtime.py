"""What a recipe can say of the hardware: none of it decides what an experiment is."""

import signal
from dataclasses import dataclass
from typing import Literal

from fusionrun.common.typed_fields import require, require_positive


@dataclass(frozen=True)
class RuntimeConfig:
    """How the hardware is used."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPUs, if there are any
    threads: int | None = None  # CPU threads of a rank; null: the cores divided by the ranks
    # autocast; auto: bf16 on a GPU that computes in it, fp16 on another, off on a CPU
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    tf32: bool = True  # what is computed in float32 may round to TF32 on a GPU that has it; faster
    # compute a row's experts twice instead of keeping what the backward pass needs: the same
    # numbers, a third slower, the memory of one expert. auto: once memory has run out
    recompute: Literal["auto"] | bool = "auto"
    channels_last: bool = True  # memory layout of images and convolutions; faster
    # a GPU's whole update as one CUDA graph, which asks much less of its host. auto: as soon as the
    # graph has shown that it does what single kernels do; off: single kernels
    graphs: Literal["auto", "off"] = "auto"
    # fused kernels made for that graph by torch.compile. auto: where a task repays the time that
    # takes, and the graph is faster with them; never in deterministic mode
    compile: Literal["auto", "off"] = "auto"
    deterministic: bool = False  # GPU: bit-identical reruns, slower (a CPU always is)
    # a rank that gets one of these saves at its next step and leaves (one that was ignored when
    # it began, as by nohup, stays so); Slurm's warning and a lost terminal are among them
    stop_signals: tuple[str, ...] = (
        "SIGTERM",
        "SIGINT",
        "SIGHUP",
        "SIGQUIT",
        "SIGUSR1",
        "SIGUSR2",
    )
    # stop the launch when a rank made no progress for so long; auto: 30 on a GPU, null on a CPU
    hang_minutes: float | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "threads")
        hang = self.hang_minutes
        positive = hang is None or hang == "auto" or hang > 0
        require(positive, "hang_minutes", hang, "a number above 0, auto or null")
        for index, name in enumerate(self.stop_signals):
            known = name in signal.Signals.__members__ and name not in ("SIGKILL", "SIGSTOP")
            require(known, f"stop_signals.{index}", name, "a signal's name, such as SIGUSR1")
