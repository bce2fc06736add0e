"""Settings of networks that nothing trains."""

from collections.abc import Iterator

from fusionrun.common.plugins import is_backbone
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.rows import rows_of
from fusionrun.study.study import Study


def check_models(study: Study) -> Iterator[Finding]:
    """Of other libraries' networks, whose names nobody else looks at: one may be written wrong."""
    used = {model for row in rows_of(study.recipe) for model in row.architectures}
    for model in study.recipe.models:
        if is_backbone(model) and model not in used:
            found = f"models.{model}: no row has this network, so nothing reads its settings"
            advice = f"if they are meant for another, write its name: {', '.join(sorted(used))}"
            yield Finding("settings", "warn", found, advice)
