"""What's asked of a model in parts that fit its device's memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.common.memory import give_back
from fusionrun.data.loader import Batch
from fusionrun.fusions import FusionModel
from fusionrun.training.errors import ShortOfMemoryError

T = TypeVar("T")


@contextmanager
def short_of_memory(device: torch.device, where: str) -> Iterator[None]:
    """A lack of memory in here, which nothing here can do with less of, is said as such."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ShortOfMemoryError(
            f"out of memory on {device} {where}; see what else uses it, or put fewer ranks on a GPU"
        ) from None


# Images that pass through a CPU's core at a time: what a layer makes of them is still in its caches
# for the next one, so that a pass takes 10 (ResNet) to 30 % (DenseNet) less than with 64 of them.
# Of fewer, sums would be made in another order
IN_CACHES = 16


class Parts:
    """Batches, halved where memory runs out: what was too large once isn't tried again."""

    def __init__(self) -> None:
        self.most: int | None = None  # images at a time; None: whatever a batch has

    def of(
        self, batches: Iterable[Batch], work: Callable[[Batch], T], *, in_caches: bool = False
    ) -> Iterator[T]:
        """What `work` makes of each batch or, one after another, of its parts.

        For passes whose numbers don't depend on which images are together, as in evaluation mode.
        With `in_caches` a CPU gets as many at a time as it's fastest with. Raises
        ShortOfMemoryError where not even one image fits.
        """
        for batch in batches:
            todo = _in_caches(batch) if in_caches else [batch]
            while todo:
                todo[:1] = todo[0].split(self.most, least=1)
                found = self._attempt(todo[0], work)
                if found is not None:
                    del todo[0]
                    yield found[0]

    def _attempt(self, part: Batch, work: Callable[[Batch], T]) -> tuple[T] | None:
        try:
            return (work(part),)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # not before the traceback is gone, which holds the activations
        images, device = len(part.labels), part.images.device
        give_back(device)
        if images == 1:
            raise ShortOfMemoryError(
                f"out of memory on {device}: not even one image fits; see what else uses it, or "
                f"put fewer ranks on a GPU"
            )
        self.most = images // 2
        return None


def _in_caches(batch: Batch) -> list[Batch]:
    """The parts of a batch that a CPU is fastest with; the last is larger, not another small one.

    Their numbers are the whole's, bit for bit.
    """
    size = IN_CACHES * torch.get_num_threads()
    starts = list(range(0, len(batch.labels), size))
    if batch.images.device.type != "cpu" or len(starts) == 1:
        return [batch]
    if len(batch.labels) - starts[-1] < size:
        starts.pop()
    columns = (batch.images, batch.targets, batch.labels)
    cut = (column.tensor_split(starts[1:]) for column in columns)
    return [Batch(*part) for part in zip(*cut, strict=True)]


class Fitting:
    """What training does with less memory: one measure after another, each time it runs out.

    First what can leave the device does: `spare`. Then a row's experts are computed twice, which
    changes no number either. Then `micro_batch`, the images that pass through the model at a time
    (None: all), is halved, and so on; batch statistics are its own. But while it `has_company`,
    whose memory would decide that, it gives way as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batch: int | Literal["auto"] | None,
        recompute: bool | Literal["auto"],
        has_company: Callable[[], bool] = lambda: False,
    ) -> None:
        self.micro_batch = None if micro_batch == "auto" else micro_batch
        self.parts = Parts()  # of what validates
        # what isn't needed on the device: makes it leave, if there is any, and says so to people
        self.spare: list[tuple[Callable[[], bool], str]] = []
        self._may_shrink = micro_batch == "auto"
        self._may_recompute = recompute == "auto"
        self.has_company = has_company
        self._model = model
        if recompute is True:
            self._recompute()
        # what a failed attempt has moved already; copies are made type by type, in few kernels
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._moving = [(of, [each.clone() for each in of]) for of in by_type.values()]

    @staticmethod
    def is_short(error: Exception) -> bool:
        """Whether an attempt failed for a lack of memory."""
        return is_out_of_memory(error)

    def remember(self) -> None:
        """Keep the running statistics as they are before an attempt."""
        for buffers, kept in self._moving:
            torch._foreach_copy_(kept, buffers)

    def give_way(self, device: torch.device) -> None:
        """Raises ShortOfMemoryError while this isn't the only task at work."""
        if self.has_company():
            raise ShortOfMemoryError(f"out of memory on {device} beside this rank's other tasks")

    def shrink(self, images: int, device: torch.device, advice: str) -> str:
        """Undo what an attempt has moved, and do with less from now on; returns how, for people.

        Raises ShortOfMemoryError with `advice` where that isn't wanted or possible.
        """
        for buffers, kept in self._moving:
            torch._foreach_copy_(buffers, kept)
        self.give_way(device)
        gone = next((said for leaves, said in self.spare if leaves()), "")
        give_back(device)
        if gone:
            return f"out of memory: {gone}; the numbers stay the same"
        if self._may_recompute and self._recompute():
            return (
                "out of memory: experts are computed twice from now on, instead of keeping what "
                "the backward pass needs; the numbers stay the same, a step takes a third longer"
            )
        at_a_time = self.micro_batch or images
        if not self._may_shrink or at_a_time < 4:
            raise ShortOfMemoryError(
                f"out of memory on {device} with {at_a_time} images at a time; {advice}"
            )
        self.micro_batch = at_a_time // 2
        return (
            f"out of memory: continues with micro-batches of {self.micro_batch} images, whose own "
            f"the batch statistics are; the optimizer sees the same batch of {images}"
        )

    def _recompute(self) -> bool:
        return isinstance(self._model, FusionModel) and self._model.recompute_experts()

    @property
    def is_recomputing(self) -> bool:
        return isinstance(self._model, FusionModel) and bool(self._model.recomputes)

    def state(self) -> dict[str, Any]:
        """For a resume state."""
        return {"micro_batch": self.micro_batch, "recompute": self.is_recomputing}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What fitted then fits now; what the recipe decides stands."""
        if self._may_shrink:
            self.micro_batch = state["micro_batch"]
        if self._may_recompute and state.get("recompute"):  # older versions never did
            self._recompute()
