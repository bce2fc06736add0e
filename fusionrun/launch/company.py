"""Tasks that a rank executes side by side, and what each has of its device."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fusionrun.common.distributed import RankInfo
from fusionrun.study.study import Study


class Company:
    """A rank's tasks at work on its device, a step of each in turn; fewer where memory runs out.

    It's entered around the work of each.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self.most = most
        self.at_work = 0
        self._device = device

    @classmethod
    def of_rank(cls, study: Study, device: torch.device, rank_info: RankInfo) -> "Company":
        """With as many experts at a time as the recipe wants.

        auto: one on a CPU, which one keeps busy; of those on a GPU the share of each of its ranks.
        """
        experts = study.recipe.experts
        if experts.together != "auto":
            return cls(experts.together, device)
        if device.type != "cuda":
            return cls(1, device)
        ranks = math.ceil(rank_info.local_world_size / torch.cuda.device_count())
        return cls(max(1, experts.most_together // ranks), device)

    def __enter__(self) -> None:
        self.at_work += 1

    def __exit__(self, *exception: object) -> None:
        self.at_work -= 1

    @property
    def is_full(self) -> bool:
        return self.at_work >= self.most

    def has_others(self) -> bool:
        """Whether the task that asks isn't alone."""
        return self.at_work > 1

    def lanes(self, count: int) -> list[AbstractContextManager[None]]:
        """What each of `count` tasks takes its steps in, so that a GPU works on all at once.

        A task that is alone, or on a CPU, needs nothing.
        """
        is_shared = count > 1 and self._device.type == "cuda"
        return [Lane(self._device) if is_shared else nullcontext() for _ in range(count)]


class Lane(AbstractContextManager[None]):
    """A stream of a GPU and a state of its generator, for one of several tasks.

    Random numbers come from seeds that every step sets, so they are the same in any state. But a
    graph that is replayed finds its seed on the device, where its generator's state has it: in one
    state for all, another task's replay would have changed it meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # which has made the images
        self._stream = torch.cuda.stream(stream)
        self._generator = torch.cuda.default_generators[torch.cuda.current_device()]
        self._own = self._generator.clone_state()

    def __enter__(self) -> None:
        self._others = self._generator.graphsafe_get_state()
        self._generator.graphsafe_set_state(self._own)
        self._stream.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        self._stream.__exit__(*exception)
        self._generator.graphsafe_set_state(self._others)
