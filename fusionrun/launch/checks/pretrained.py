"""Weights that the experts' own training begins with: there, fitting, or to be had."""

from collections.abc import Iterator
from pathlib import Path

import torch

from fusionrun.common.distributed import LaunchError
from fusionrun.common.text import problem_of
from fusionrun.components.pretrained import weights_for
from fusionrun.experts.base import IMAGENET
from fusionrun.experts.pretrained import Weights, library_weights
from fusionrun.launch.checks.finding import Finding
from fusionrun.launch.resume import is_reusable
from fusionrun.study.study import Study
from fusionrun.training.checkpoint import CheckpointError, load, peek

NAME = "pretrained weights"
ELSEWHERE = (
    "download them where there is a network, in the same cache (HF_HOME, TORCH_HOME), or name a "
    "file of them"
)


def check_pretrained(study: Study) -> Iterator[Finding]:
    """Those of models that are still to be trained; nothing is downloaded."""
    for model in _open_models(study):
        wanted = study.model_settings(model).pretrained
        place = f"models.{model}.pretrained"
        if isinstance(wanted, str):
            yield _look_at(study, model, place, Path(wanted))
        elif wanted:
            try:
                weights = library_weights(model)
                cached = weights.cached()
            except ValueError as error:
                yield Finding(NAME, "fail", f"{place}: {error}", "name a file, or leave it out")
                continue
            if cached is not None:
                yield _look_at(study, model, place, cached)
            elif problem := weights.problem():
                found = f"{place}: {weights.origin} isn't in the cache and can't be downloaded"
                yield Finding(NAME, "fail", f"{found} ({problem})", ELSEWHERE)
            else:
                found = f"{place}: {weights.origin}, to be downloaded when the launch begins"
                yield Finding(NAME, "pass", found)
            yield from _check_normalisation(study, model, weights)


def download_pretrained(study: Study) -> None:
    """Bring a library's weights into its cache, by one process of a machine for all.

    Raises LaunchError.
    """
    for model in _open_models(study):
        if study.model_settings(model).pretrained is True:
            weights = library_weights(model)
            if weights.cached() is None:
                print(f"fusionrun: downloads {weights.origin}", flush=True)
                try:
                    weights.download()
                except (OSError, ValueError) as error:
                    place = f"models.{model}.pretrained: {weights.origin}"
                    raise LaunchError(f"{place}: {problem_of(error)}. {ELSEWHERE}") from None


def _open_models(study: Study) -> list[str]:
    """Of networks that are still to be trained by themselves."""
    tasks = [task for task in study.tasks if task.trains_alone and not is_reusable(study, task)]
    return list(dict.fromkeys(task.model for task in tasks))


def _look_at(study: Study, model: str, place: str, path: Path) -> Finding:
    """Whether the file has what the trunk needs, by its names and shapes."""
    with torch.device("meta"):
        expert = study.build_expert(model, study.recipe.data.num_classes)
    try:
        payload = peek(path)
        if payload is None:
            payload = load(path)  # says what is wrong with it
        _, notes = weights_for(expert, payload, path)
    except CheckpointError as error:
        advice = "name a file of this network's weights"
        return Finding(NAME, "fail", f"{place}: {error}", advice)
    return Finding(NAME, "pass", "; ".join([f"{place}: {path}", *notes]))


def _check_normalisation(study: Study, model: str, weights: Weights) -> Iterator[Finding]:
    """Weights see other colours than they know if the recipe says nothing of them."""
    theirs = weights.normalisation
    ours = study.model_arguments(model).get("normalisation")
    if theirs is None or ours not in (None, "data"):
        return
    numbers = "imagenet" if theirs == IMAGENET else [list(part) for part in theirs]
    found = f"{weights.origin} learned from images normalised otherwise than the data's are here"
    advice = f"set models.{model}.normalisation={numbers}"
    yield Finding(NAME, "warn", found, advice)
