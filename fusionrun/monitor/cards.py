"""The devices of a launch: what its ranks train on, and how busy, hot and full the GPUs are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fusionrun.common.gpus import Gpu, of_uuid
from fusionrun.monitor.record import Record


@dataclass(frozen=True)
class Card:
    """A GPU that ranks use, as its machine's nvidia-smi told of it some seconds ago."""

    host: str
    ranks: tuple[int, ...]
    gpu: Gpu


def devices_of(records: Sequence[Record | None]) -> str:
    """What the ranks train on, in words: 4 × NVIDIA H100, bf16."""
    known = dict.fromkeys(
        (record.device, record.host, record.gpu_uuid)
        for record in records
        if record is not None and record.device
    )
    gpus = Counter(device for device, _, uuid in known if uuid)
    others = dict.fromkeys(device for device, _, uuid in known if not uuid)
    return "; ".join([*(f"{count} × {device}" for device, count in gpus.items()), *others])


def cards_of(records: Sequence[Record | None]) -> tuple[Card, ...]:
    """The GPUs that the ranks with these records use, in the order of their ranks."""
    known = {rank: record for rank, record in enumerate(records) if record is not None}
    told: dict[str, tuple[Gpu, ...]] = {}
    for record in known.values():  # of containers several can have one name
        told[record.host] = (*told.get(record.host, ()), *record.gpus)
    ranks: dict[tuple[str, Gpu], list[int]] = {}
    for rank, record in known.items():
        if record.gpu_uuid:
            gpu = of_uuid(told.get(record.host, ()), record.gpu_uuid)
            if gpu is not None:
                ranks.setdefault((record.host, gpu), []).append(rank)
    return tuple(Card(host, tuple(each), gpu) for (host, gpu), each in ranks.items())
