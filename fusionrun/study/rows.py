"""The assignment table: the study's experiments, a row each."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusionrun.study.paths import label_of
from fusionrun.study.recipe import SINGLE, Recipe, RowConfig


@dataclass(frozen=True)
class Row:
    """One (model, fusion, seed, alpha, control) of the assignment table."""

    index: int
    model: str
    fusion: str  # or SINGLE: one network on everything that experts and fusion see
    seed: int
    alpha: float
    variant: str  # the method, with -seed<n> or -alpha<x> where they depart from the recipe's
    control: str | None = None  # frozen, detached

    @property
    def name(self) -> str:
        return f"task-{self.index}-{label_of(self.model)}-{self.variant}"

    @property
    def is_single(self) -> bool:
        return self.fusion == SINGLE

    @property
    def method(self) -> str:
        """The fusion type, with its control."""
        return f"{self.fusion}-{self.control}" if self.control else self.fusion


def rows_of(recipe: Recipe) -> tuple[Row, ...]:
    """All rows of a recipe, in order."""
    return make_rows(recipe.all_rows(), seed=recipe.seed, alpha=recipe.fusion.alpha)


def make_rows(entries: Sequence[RowConfig], *, seed: int, alpha: float) -> tuple[Row, ...]:
    """Rows with the recipe's `seed` and `alpha` where they have none of their own."""
    rows = []
    for index, entry in enumerate(entries):
        variant = f"{entry.fusion}-{entry.control}" if entry.control else entry.fusion
        if entry.seed is not None and entry.seed != seed:
            variant += f"-seed{entry.seed}"
        if entry.alpha is not None and entry.alpha != alpha:
            # all its digits: two rows that differ in the ninth must not share their files
            variant += f"-alpha{entry.alpha!r}".removesuffix(".0")
        own_seed = seed if entry.seed is None else entry.seed
        own_alpha = alpha if entry.alpha is None else entry.alpha
        names = entry.model, entry.fusion
        rows.append(Row(index, *names, own_seed, own_alpha, variant, entry.control))
    return tuple(rows)
