"""Whose an entry is, in every file that measures rows: by what names people know it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fusionrun.study.recipe import WITHOUT_EXPERTS
from fusionrun.study.rows import Row


@dataclass(frozen=True, kw_only=True)
class RowName:
    """Whose an entry is, in every file that measures rows."""

    task: str
    model: str
    fusion: str
    variant: str
    control: str | None = None  # frozen, detached: the row is there to be compared with
    seed: int
    expert_seed: int | None = None  # of its experts' training; None: the study's seed
    alpha: float
    members: tuple[str, ...] = ()  # of a mixed row: "densenet 0", "resnet 1", ...
    best_expert: int | None = None  # by validation; None: not measured

    @property
    def name(self) -> str:
        return f"{self.model} + {self.variant}"

    def expert_name(self, k: int) -> str:
        """What its expert `k` is called: "resnet expert 1"."""
        name = self.members[k] if k < len(self.members) else f"{self.model} {k}"
        return " expert ".join(name.rsplit(" ", 1))

    @property
    def best_expert_name(self) -> str | None:
        """Of the expert that is best on validation."""
        return None if self.best_expert is None else self.expert_name(self.best_expert)

    def is_control_of(self, row: "RowName") -> bool:
        """Whether this row differs from `row` in nothing but what it controls."""
        if row.control or row.fusion in WITHOUT_EXPERTS:
            return False
        if (self.model, self.seed) != (row.model, row.seed):
            return False
        if self.fusion in WITHOUT_EXPERTS:
            return True
        alike = (self.alpha, self.expert_seed) == (row.alpha, row.expert_seed)
        return self.fusion == f"{row.fusion}-{self.control}" and alike


def row_name(row: Row) -> RowName:
    """Whose entry is that of `row`."""
    return RowName(**name_row(row))


def name_row(row: Row) -> dict[str, Any]:
    """The fields of a RowName."""
    return {
        "task": row.name,
        "model": row.model,
        "fusion": row.method,
        "variant": row.variant,
        "control": row.control,
        "seed": row.seed,
        "expert_seed": row.expert_seed,
        "alpha": row.alpha,
        "members": tuple(member.words for member in row.experts) if row.is_mixed else (),
    }


def members_of(rows: Iterable[RowName]) -> dict[str, str]:
    """What stands behind the names of mixed rows, as people read it, by name."""
    return {row.model: ", ".join(row.members) for row in rows if row.members}


def mixed_notes(rows: Sequence[RowName]) -> list[str]:
    """A line for each kind of mixed row: its members, and the best of them in each row.

    Controls aside.
    """
    notes = []
    for model, members in members_of(rows).items():
        best: dict[str, list[str]] = {}
        for row in rows:
            if row.model == model and row.best_expert_name and not row.control:
                best.setdefault(row.best_expert_name, []).append(row.variant)
        found = ", ".join(f"{name} ({', '.join(variants)})" for name, variants in best.items())
        notes.append(f"{model}: {members}{found and f'; best on validation: {found}'}")
    return notes
