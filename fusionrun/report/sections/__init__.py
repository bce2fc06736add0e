"""What a report says of one study: its sections, in order, a file a topic."""

from collections.abc import Callable, Sequence

from fusionrun.report.blocks import Block
from fusionrun.report.load import StudyResults
from fusionrun.report.sections.accuracy import accuracy, over_seeds
from fusionrun.report.sections.answer import answer
from fusionrun.report.sections.calibration import calibration
from fusionrun.report.sections.contributions import contributions
from fusionrun.report.sections.cost import cost
from fusionrun.report.sections.learning_curves import learning_curves
from fusionrun.report.sections.measured import measured, recipe
from fusionrun.report.sections.notes import notes
from fusionrun.report.sections.per_class import per_class
from fusionrun.report.sections.robustness import robustness

# one that returns nothing is left out
SECTIONS: tuple[tuple[str, Callable[[StudyResults], Sequence[Block]]], ...] = (
    ("The answer", answer),
    ("Notes", notes),
    ("Accuracy", accuracy),
    ("Over seeds", over_seeds),
    ("Learning curves", learning_curves),
    ("Calibration", calibration),
    ("Class by class", per_class),
    ("Accuracy against cost", cost),
    ("Contributions of the experts", contributions),
    ("Robustness", robustness),
    ("How it was measured", measured),
    ("Recipe", recipe),
)
