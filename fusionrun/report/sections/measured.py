"""How it was measured, and the recipe."""

from fusionrun.report.blocks import Block, Listing, Text
from fusionrun.report.load import StudyResults
from fusionrun.tables.table import Column, Table


def measured(study: StudyResults) -> list[Block]:
    """On what, and what decided what."""
    of = study.evaluation
    facts = {
        "study": of.study,
        "output directory": of.output_dir,
        "evaluated": of.evaluated,
        "data": of.data.name,
        "classes": f"{len(of.data.classes):,}",
        "test images": f"{of.data.test_images:,}",
        "validation images": f"{of.data.val_images:,}",
        "image size": f"{of.data.image_size} × {of.data.image_size}",
        "device": of.device,
        "threads": of.threads,
        **of.versions,
    }
    text = (
        "Validation, a part of the training set that neither experts nor fusion learn from, "
        "selected the epoch, the best experts, the weights, the temperatures and the best "
        "alternative. What fused is compared with is declared beforehand: the mean of the experts' "
        "probabilities. The test set was read afterwards and decided nothing. What was not "
        "measured is n/a."
    )
    columns = [Column("what", "text", lambda fact: fact[0])]
    columns.append(Column("value", "text", lambda fact: fact[1]))
    return [Text(text), Table("Measured with", columns, list(facts.items()))]


def recipe(study: StudyResults) -> list[Block]:
    """The file, word for word."""
    return [Listing("recipe.yaml", study.recipe)]
