"""Tasks that a rank executes side by side, and what each has of its device."""

import math
from contextlib import AbstractContextManager, nullcontext

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
        """What each of `count` tasks takes its steps in: a stream, so that a GPU does all at once.

        A task that is alone, or on a CPU, needs nothing.
        """
        if count == 1 or self._device.type != "cuda":
            return [nullcontext() for _ in range(count)]
        streams = [torch.cuda.Stream(self._device) for _ in range(count)]  # type: ignore[no-untyped-call]
        for stream in streams:  # the images are there when this rank has asked for them
            stream.wait_stream(torch.cuda.current_stream(self._device))
        return [torch.cuda.stream(stream) for stream in streams]
