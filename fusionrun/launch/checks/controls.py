"""The rows that the recipe's controls can't make."""

from collections.abc import Iterator

from fusionrun.launch.checks.finding import Finding
from fusionrun.study.recipe import SINGLE
from fusionrun.study.study import Study


def check_controls(study: Study) -> Iterator[Finding]:
    """A single network is the control of rows of one architecture alone."""
    mixed = dict.fromkeys(row.model for row in study.rows if row.is_mixed)
    if SINGLE in study.recipe.controls and mixed:
        found = (
            f"{SINGLE} is left out of {', '.join(mixed)}: its experts are of no one architecture"
        )
        yield Finding("controls", "warn", found)
