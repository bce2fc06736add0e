"""What of the data was left out, converted or guessed, and what a part of it lacks."""

from fusionrun.report.blocks import Block, Text
from fusionrun.report.load import StudyResults


def notes(study: StudyResults) -> list[Block]:
    """As the launch said it when it started."""
    return [Text(f"{note}.", warning=True) for note in study.evaluation.data.notes]
