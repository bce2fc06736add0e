"""Where a data set's images lie while a study is worked on: on the device, if they fit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fusionrun.common.device_errors import broken_by, is_out_of_memory
from fusionrun.common.text import one_line
from fusionrun.data.errors import DataError


@contextmanager
def room_for_data(device: torch.device) -> Iterator[None]:
    """In here data are loaded onto `device`.

    What it, or the host's memory, has against that is a DataError of one line.
    """
    try:
        yield
    except Exception as error:
        if broken := broken_by(error):
            raise DataError(f"{device} can't be used: {broken}") from error
        if is_out_of_memory(error):
            raise DataError(
                f"the data set finds no room on {device} or in memory: {one_line(error)}; free it "
                f"of what else uses it, or put fewer ranks on a GPU"
            ) from error
        raise
