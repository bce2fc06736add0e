"""What ranks execute: the training of a study's experts and of its rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fusionrun.study.paths import label_of
from fusionrun.study.rows import Member, Row, networks_of

TaskKind = Literal["expert", "network", "row"]


@dataclass(frozen=True)
class ExpertTask:
    """One expert's training."""

    index: int  # position in the launch's list of tasks, the same on every rank
    model: str
    expert: int
    cost: float  # expected work, in any unit that all tasks share
    epochs: int
    seed: int | None = None  # of its training; None: the recipe's

    kind: ClassVar[TaskKind] = "expert"
    needs: ClassVar[tuple[str, ...]] = ()
    trains_alone: ClassVar[bool] = True

    @property
    def name(self) -> str:
        name = f"expert-{label_of(self.model)}-{self.expert}"
        return name if self.seed is None else f"{name}-seed{self.seed}"

    @property
    def member(self) -> Member:
        """What it is in rows."""
        return Member(self.model, self.expert, self.seed)


@dataclass(frozen=True)
class RowTask:
    """One row's training: of its experts with a fusion module, or of a single network.

    A full ensemble trains nothing: it needs the tasks of its networks.
    """

    index: int  # position in the launch's list of tasks, the same on every rank
    row: Row
    cost: float  # expected work, in any unit that all tasks share
    epochs: int
    needs: tuple[str, ...] = ()  # names of tasks that must be done before

    @property
    def kind(self) -> TaskKind:
        return "row" if self.row.network is None else "network"

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def model(self) -> str:
        return self.row.model

    @property
    def trains_alone(self) -> bool:
        """Whether its networks train by themselves, as an expert does."""
        return not self.row.experts


Task = ExpertTask | RowTask


def make_tasks(
    rows: Sequence[Row],
    *,
    expert_epochs: int,
    fusion_epochs: int,
    expert_cost: Callable[[str], float],
    row_cost: Callable[[Row], float],
) -> tuple[Task, ...]:
    """A task for each of `rows`, the i-th being rank i's own, then one for each expert.

    Between them one for each network of a full ensemble that is no row.
    """
    networks = {row: networks_of(row, rows) for row in rows}
    more = [each for found in networks.values() for each in found if each not in rows]
    members = dict.fromkeys(member for row in rows for member in row.experts)
    experts = {
        member: ExpertTask(
            index, member.model, member.k, expert_cost(member.model), expert_epochs, member.seed
        )
        for index, member in enumerate(members, start=len(rows) + len(more))
    }
    tasks = []
    for index, row in enumerate([*rows, *more]):
        needs = tuple(experts[member].name for member in row.experts)
        needs += tuple(network.name for network in networks.get(row, ()))
        epochs = fusion_epochs if row.experts else expert_epochs
        tasks.append(RowTask(index, row, row_cost(row), epochs, needs))
    return (*tasks, *experts.values())
