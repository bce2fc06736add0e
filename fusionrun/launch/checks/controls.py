"""The rows that the recipe's controls can't make."""

from collections.abc import Iterator

from fusionrun.launch.checks.finding import Finding
from fusionrun.study.recipe import WITHOUT_EXPERTS
from fusionrun.study.study import Study


def check_controls(study: Study) -> Iterator[Finding]:
    """Networks on all the images are the control of rows of one architecture alone."""
    mixed = dict.fromkeys(row.model for row in study.rows if row.is_mixed)
    for control in WITHOUT_EXPERTS if mixed else ():
        if control in study.recipe.controls:
            of = ", ".join(mixed)
            found = f"{control} is left out of {of}: its experts are of no one architecture"
            yield Finding("controls", "warn", found)
