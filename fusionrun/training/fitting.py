"""What's asked of a model in parts that fit its device's memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fusionrun.common.device_errors import is_out_of_memory
from fusionrun.common.memory import give_back
from fusionrun.data.loader import Batch
from fusionrun.training.errors import ShortOfMemoryError

T = TypeVar("T")


class Parts:
    """Batches, halved where memory runs out: what was too large once isn't tried again."""

    def __init__(self) -> None:
        self.most: int | None = None  # images at a time; None: whatever a batch has

    def of(self, batches: Iterable[Batch], work: Callable[[Batch], T]) -> Iterator[T]:
        """What `work` makes of each batch or, one after another, of its parts.

        For passes whose numbers don't depend on which images are together, as in evaluation mode.
        Raises ShortOfMemoryError where not even one image fits.
        """
        for batch in batches:
            todo = [batch]
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
