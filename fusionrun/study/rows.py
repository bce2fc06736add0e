"""The assignment table: the study's experiments, a row each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fusionrun.study.paths import label_of
from fusionrun.study.recipe import FULL_ENSEMBLE, SINGLE, WITHOUT_EXPERTS, Recipe, RowConfig


class Member(NamedTuple):
    """One of a row's experts: the `k`-th that was trained of the architecture `model`."""

    model: str
    k: int
    seed: int | None = None  # of its training; None: the recipe's

    @property
    def words(self) -> str:
        """As people read it: densenet 0."""
        return f"{self.model} {self.k}"


@dataclass(frozen=True)
class Row:
    """One (model, fusion, seeds, alpha, control) of the assignment table."""

    index: int
    model: str  # the architecture; mixed-... where its experts are of different ones
    fusion: str  # or SINGLE, FULL_ENSEMBLE: networks on everything that experts and fusion see
    seed: int
    alpha: float
    # the method, with -seed<n>, -experts<n> or -alpha<x> where they depart from the recipe's
    variant: str
    control: str | None = None  # frozen, detached
    experts: tuple[Member, ...] = ()  # in the fusion's order; none of what has no fusion
    expert_seed: int | None = None  # of its experts' training; None: the recipe's
    networks: int = 0  # of a full ensemble
    # the how-manieth of those, which is no row of the table but trains as a single one
    network: int | None = None

    @property
    def name(self) -> str:
        if self.network is not None:
            _, seed, number = self.variant.partition("-seed")
            return f"network-{label_of(self.model)}-{self.network}{seed}{number}"
        return f"task-{self.index}-{label_of(self.model)}-{self.variant}"

    @property
    def is_single(self) -> bool:
        return self.fusion == SINGLE

    @property
    def is_full_ensemble(self) -> bool:
        return self.fusion == FULL_ENSEMBLE

    @property
    def is_mixed(self) -> bool:
        """Whether its experts are of different architectures."""
        return len(self.architectures) > 1

    @property
    def architectures(self) -> tuple[str, ...]:
        """Each once: those of its experts, or that of the networks in their place."""
        return tuple(dict.fromkeys(member.model for member in self.experts)) or (self.model,)

    @property
    def members(self) -> str:
        """Its experts in words: densenet 0, resnet 1."""
        return ", ".join(member.words for member in self.experts)

    @property
    def experiment(self) -> tuple[str, str]:
        """(whose experts, variant): the same wherever the row stands, and whatever it's called."""
        return self.members or self.model, self.variant

    @property
    def method(self) -> str:
        """The fusion type, with its control."""
        return f"{self.fusion}-{self.control}" if self.control else self.fusion


def rows_of(recipe: Recipe) -> tuple[Row, ...]:
    """All rows of a recipe, in order."""
    return make_rows(
        recipe.all_rows(),
        seed=recipe.seed,
        alpha=recipe.fusion.alpha,
        num_experts=recipe.experts.count,
    )


def make_rows(
    entries: Sequence[RowConfig], *, seed: int, alpha: float, num_experts: int
) -> tuple[Row, ...]:
    """Rows with the recipe's `seed` and `alpha` where they have none of their own.

    A mixed one has at position i expert i of its architecture: together they saw all the data.
    """
    rows = []
    for index, entry in enumerate(entries):
        variant = f"{entry.fusion}-{entry.control}" if entry.control else entry.fusion
        if entry.seed is not None and entry.seed != seed:
            variant += f"-seed{entry.seed}"
        expert_seed = None if entry.expert_seed == seed else entry.expert_seed
        if expert_seed is not None:
            variant += f"-experts{expert_seed}"
        if entry.alpha is not None and entry.alpha != alpha:
            # all its digits: two rows that differ in the ninth must not share their files
            variant += f"-alpha{entry.alpha!r}".removesuffix(".0")
        own_seed = seed if entry.seed is None else entry.seed
        own_alpha = alpha if entry.alpha is None else entry.alpha
        models = (entry.model,) * num_experts if isinstance(entry.model, str) else entry.model
        experts = tuple(Member(model, k, expert_seed) for k, model in enumerate(models))
        row = Row(index, entry.label, entry.fusion, own_seed, own_alpha, variant, entry.control)
        if entry.fusion not in WITHOUT_EXPERTS:
            row = replace(row, experts=experts, expert_seed=expert_seed)
        if row.is_full_ensemble:
            row = replace(row, networks=num_experts)
        rows.append(row)
    return tuple(rows)


def networks_of(row: Row, rows: Sequence[Row] = ()) -> tuple[Row, ...]:
    """The networks of a full ensemble, each as a single row with a seed of its own; else none.

    The first is what a single row of the same seed trains: that of `rows`, where it is there.
    """
    found = []
    for k in range(row.networks):
        called = f"{SINGLE}-network{k}" if k else SINGLE
        variant = row.variant.replace(FULL_ENSEMBLE, called, 1)
        network = replace(row, fusion=SINGLE, variant=variant, networks=0, network=k)
        same = (each for each in rows if each.experiment == network.experiment)
        found.append(next(same, network))
    return tuple(found)
