"""How a launch begins: it belongs to its output directory, nobody else works on its rows."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.distributed import Store

from fusionrun.common.distributed import LaunchError, RankInfo, choose_device, exchange
from fusionrun.common.locks import Lock
from fusionrun.common.typed_fields import build, plain
from fusionrun.launch.crashes import crashes_before
from fusionrun.launch.opening import Opened, open_launch
from fusionrun.launch.preflight import require_startable
from fusionrun.launch.row_locks import join_claim, process_name, release
from fusionrun.study.planning import plan_study
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.study import Study
from fusionrun.training.identity import IdentityError
from fusionrun.training.precision import Precision


@dataclass
class Session:
    """A launch that may begin, as one rank sees it."""

    study: Study  # with all rows of the output directory; its tasks are this launch's
    device: torch.device
    locks: tuple[Lock, ...]  # others get them when the last rank's process has ended, however

    @property
    def precision(self) -> Precision:
        """What this rank's models compute in."""
        runtime = self.study.recipe.runtime
        return Precision.of(runtime.amp, runtime.tf32, self.device)

    def close(self, *, forget: bool) -> None:
        """Let others work on these rows; see `release`."""
        release(self.locks, forget=forget)


def open_session(
    study: Study,
    rank_info: RankInfo,
    store: Store,
    check_stop: Callable[[], None],
    *,
    only_failed: bool,
) -> Session:
    """Begin the launch of `study`'s tasks, or of those of its rows that failed in the last one.

    Nothing is written before it's sure that the launch can start and belongs to the output
    directory. Raises RecipeError when it doesn't, LaunchError when something else is in the way;
    on every rank when any rank can't start: all leave together. `check_stop` may raise while the
    ranks, which meet through `store`, wait for each other.
    """
    device, own = torch.device("cpu"), Opened()
    claim = None
    try:
        if rank_info.rank == 0:
            own, study, claim = open_launch(study, rank_info, only_failed, check_stop)
            for line in crashes_before(study) if rank_info.restarts else ():
                print(f"fusionrun: starts again: {line}", flush=True)
        elif rank_info.local_rank == 0 and rank_info.restarts == 0:  # of another machine
            require_startable(study, rank_info)
        device = choose_device(rank_info, study.recipe.runtime.device)
    except (RecipeError, IdentityError) as error:
        own = Opened(str(error), is_recipe=True)
    except LaunchError as error:
        own = Opened(str(error))
    except OSError as error:
        own = Opened(f"{error.filename or study.layout.output_dir}: {error.strerror or error}")
    own = replace(own, process=process_name(rank_info))
    words = exchange(store, rank_info, "session", json.dumps(plain(own)), check_stop)
    # messages may have several lines, and paths may be no text
    told = [build(Opened, json.loads(text), strict=False) for text in words]
    for rank, each in enumerate(told):
        if each.problem:
            if claim is not None:
                release(claim.locks, forget=True)
            text = each.problem if rank == 0 else f"rank {rank}: {each.problem}"
            raise RecipeError(text) if each.is_recipe else LaunchError(text)
    if claim is not None:
        claim.name_ranks([each.process for each in told])
        return Session(study, device, claim.locks)
    return Session(_as_told(study, told[0]), device, join_claim(told[0].locks))


def _as_told(study: Study, told: Opened) -> Study:
    """The study as rank 0 has it."""
    if told.recipe:
        study = plan_study(build(Recipe, json.loads(told.recipe)), study.name)
    layout = replace(study.layout, launch=told.launch)
    return replace(study.with_tasks(told.tasks), layout=layout)
