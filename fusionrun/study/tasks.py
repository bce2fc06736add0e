"""What ranks execute: the training of a study's experts and of its rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fusionrun.study.paths import label_of
from fusionrun.study.rows import Member, Row

TaskKind = Literal["expert", "row"]


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
    """One row's training: of its experts with a fusion module, or of a single network."""

    index: int  # position in the launch's list of tasks, the same on every rank
    row: Row
    cost: float  # expected work, in any unit that all tasks share
    epochs: int
    needs: tuple[str, ...] = ()  # names of tasks that must be done before

    kind: ClassVar[TaskKind] = "row"

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def model(self) -> str:
        return self.row.model

    @property
    def trains_alone(self) -> bool:
        """Whether it trains one network by itself, as an expert's task does."""
        return self.row.is_single


Task = ExpertTask | RowTask


def make_tasks(
    rows: Sequence[Row],
    *,
    expert_epochs: int,
    fusion_epochs: int,
    expert_cost: Callable[[str], float],
    row_cost: Callable[[Row], float],
) -> tuple[Task, ...]:
    """A task for each of `rows`, the i-th being rank i's own, then one for each expert."""
    members = dict.fromkeys(member for row in rows for member in row.experts)
    experts = {
        member: ExpertTask(
            index, member.model, member.k, expert_cost(member.model), expert_epochs, member.seed
        )
        for index, member in enumerate(members, start=len(rows))
    }
    tasks = []
    for index, row in enumerate(rows):
        if row.is_single:
            tasks.append(RowTask(index, row, row_cost(row), expert_epochs))
        else:
            needs = tuple(experts[member].name for member in row.experts)
            tasks.append(RowTask(index, row, row_cost(row), fusion_epochs, needs))
    return (*tasks, *experts.values())
