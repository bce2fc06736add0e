"""What evaluation.json says of rows that differ in nothing but their seeds. Needs no torch."""

from dataclasses import dataclass

from fusionrun.tables.headline import Margin

TRAINING, EXPERTS = "fusion training", "experts"  # whose seeds differ between rows


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; a single value has none.

    `low` and `high` are another luck's: the mean's 95 % interval over test images, where known.
    """

    mean: float
    deviation: float | None
    low: float | None = None
    high: float | None = None

    def text(self, digits: int, *, points: bool = False) -> str:
        """As people read it, +1.2 ± 0.4 (-0.3 to +2.7); `points` have a sign."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        if not points:
            return f"{self.mean:.{digits}f}{deviation}"
        mean, *interval = Margin(self.mean, self.low, self.high).text(digits).split("\n")
        return "\n".join([f"{mean}{deviation}", *interval])


@dataclass(frozen=True)
class OverSeeds:
    """Rows that differ in nothing but their seeds, by column of numbers."""

    model: str
    fusion: str
    alpha: float
    seeds: int  # rows
    columns: dict[str, Spread]  # `numbers` of a RowResult
    expert_seed: int | None = None  # of the experts that all of them start from; None: the study's
    varied: str = TRAINING  # whose seeds differ

    @property
    def seeds_of(self) -> str:
        """As people read it: whose seeds differ, and whose experts they start from."""
        shared = "" if self.expert_seed is None else f", experts of seed {self.expert_seed}"
        return f"{self.varied}{shared}"


@dataclass(frozen=True)
class TypeComparison:
    """A fusion type against the others of the same architecture and alpha, means over seeds.

    Against the one of them with the highest mean validation accuracy: their difference in points
    over the seeds that both have, None without any.
    """

    model: str
    fusion: str
    alpha: float
    seeds: int
    varied: str  # as in OverSeeds
    validation: float  # percent
    fused: Spread
    gain: Spread  # over averaging, with the interval over test images
    best_other: str
    difference: Spread | None  # likewise
    p_value: float | None  # over test images, of the means over seeds
    p_holm: float | None = None  # over all comparisons of a study's types
