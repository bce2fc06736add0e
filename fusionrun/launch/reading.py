"""How a rank reads the data of a launch, long as that may take: seen at work, and stoppable."""

from dataclasses import replace
from typing import Any

import torch

from fusionrun.common.distributed import RankInfo
from fusionrun.common.hardware import hardware
from fusionrun.components.starting_experts import with_origin_notes
from fusionrun.data.room import room_for_data
from fusionrun.launch.shutdown import StopSignals
from fusionrun.launch.spare_cores import SpareCores
from fusionrun.monitor.record import Record
from fusionrun.study.context import RunContext, open_context
from fusionrun.study.queue import Queue
from fusionrun.study.study import Study
from fusionrun.training.precision import Precision


def read_context(
    study: Study,
    rank_info: RankInfo,
    device: torch.device,
    threads: int,
    record: Record,
    stop: StopSignals,
    queue: Queue,
) -> RunContext:
    """What the rank's tasks share, on `device`; `record` tells how far it is.

    Raises StopRequested when a stop signal comes meanwhile, and all that reading data raises.
    """
    runtime = study.recipe.runtime
    precision = Precision.of(runtime.amp, runtime.tf32, device).name
    launch: dict[str, Any] = {
        "job_id": rank_info.job_id,
        "nodes": rank_info.nodes,
        "restarts": rank_info.restarts,
        "rank": rank_info.rank,
        "host": rank_info.host,
        **hardware(device, precision, tf32=runtime.tf32),
        "graphs": runtime.graphs,
        "compile": runtime.compile,
    }

    def note(text: str) -> None:
        record.note = text
        record.progress_count += 1
        stop.check()

    with room_for_data(device):
        context = open_context(
            study,
            device,
            threads,
            progress=note,
            launch=launch,
            stop_requested=stop.requested,
        )
    cores = SpareCores(queue, rank_info, threads)
    return with_origin_notes(replace(context, side_by_side=cores.side_by_side))
