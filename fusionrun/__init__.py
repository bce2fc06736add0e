"""fusionrun: train many expert-fusion models side by side in one torchrun launch.

    study = fusionrun.train("demo")
    model = study.load_model("resnet/multiplicativeAddition")
    probabilities = model.predict(study.load_data().test_images)

Everything public is imported when it is first named: `import fusionrun` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusionrun.common.version import __version__

if TYPE_CHECKING:
    from fusionrun.api.open_study import OpenStudy, evaluate, open_study
    from fusionrun.api.train import train
    from fusionrun.common.distributed import LaunchError
    from fusionrun.components.store import load_expert, load_model
    from fusionrun.data.datasets import Arrays, DataError, Request, as_arrays, load_dataset
    from fusionrun.experts import Expert, build_expert
    from fusionrun.fusions import FusionModel, FusionModule, FusionOutput, build_fusion
    from fusionrun.study.recipe import RecipeError
    from fusionrun.training.checkpoint import CheckpointError
    from fusionrun.training.errors import TaskError

HOMES = {
    "fusionrun.api.open_study": ("OpenStudy", "evaluate", "open_study"),
    "fusionrun.api.train": ("train",),
    "fusionrun.common.distributed": ("LaunchError",),
    "fusionrun.components.store": ("load_expert", "load_model"),
    "fusionrun.data.datasets": ("Arrays", "DataError", "Request", "as_arrays", "load_dataset"),
    "fusionrun.experts": ("Expert", "build_expert"),
    "fusionrun.fusions": ("FusionModel", "FusionModule", "FusionOutput", "build_fusion"),
    "fusionrun.study.recipe": ("RecipeError",),
    "fusionrun.training.checkpoint": ("CheckpointError",),
    "fusionrun.training.errors": ("TaskError",),
}

__all__ = [
    "Arrays",
    "CheckpointError",
    "DataError",
    "Expert",
    "FusionModel",
    "FusionModule",
    "FusionOutput",
    "LaunchError",
    "OpenStudy",
    "RecipeError",
    "Request",
    "TaskError",
    "__version__",
    "as_arrays",
    "build_expert",
    "build_fusion",
    "evaluate",
    "load_dataset",
    "load_expert",
    "load_model",
    "open_study",
    "train",
]


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'fusionrun' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
