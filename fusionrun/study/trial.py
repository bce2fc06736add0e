"""Every network of a study built once, weightless: what can't work is known before hours go by."""

import contextlib
from collections.abc import Iterator, Mapping

import torch

from fusionrun.common.complexity import multiply_accumulates
from fusionrun.common.image_classifier import TrainedOn
from fusionrun.common.plugins import failure_of
from fusionrun.experts import build_expert
from fusionrun.fusions import build_fusion
from fusionrun.study.models import arguments_of, settings_of
from fusionrun.study.recipe import Recipe, RecipeError
from fusionrun.study.rows import Row


def work_per_image(recipe: Recipe, rows: tuple[Row, ...], name: str) -> dict[str, float]:
    """Multiply-accumulates per image of each architecture; builds everything once.

    Raises RecipeError.
    """
    work: dict[str, float] = {}
    feature_dims: dict[str, int] = {}
    for model in dict.fromkeys(model for row in rows for model in row.architectures):
        with torch.device("meta"), errors_at(f"{name}: models.{model}"):
            arguments = arguments_of(recipe, model)
            source = recipe.plugins.get(model, model)
            expert = build_expert(source, recipe.data.num_classes, **arguments)
            expert.freeze(settings_of(recipe, model).frozen_stages)
            feature_dims[model] = expert.feature_dim
        size = recipe.data.image_size
        expert.know(TrainedOn((), (0.0,) * 3, (1.0,) * 3, size))
        place = f"data.image_size: {model} can't take {size}x{size} images"
        if (own := expert.input_size) is not None:
            place = f"models.{model}.image_size: it can't take {own}x{own} images"
        if model in recipe.plugins:  # whose code may be wrong for images of any size
            place = f"models.{model}: given {own or size}x{own or size} images"
        with errors_at(f"{name}: {place}"):
            work[model] = multiply_accumulates(expert, size)
    _try_fusions(recipe, rows, feature_dims, name)
    return work


def _try_fusions(
    recipe: Recipe, rows: tuple[Row, ...], feature_dims: Mapping[str, int], name: str
) -> None:
    """Build every fusion once, weightless, for as many features as its row's experts meet in."""
    built: set[tuple[str, int, int, str | None]] = set()
    for row in rows:
        place = f"rows.{row.index}" if row.index < len(recipe.rows) else f"grid: {row.name}"
        size = recipe.fusion.dim or max(feature_dims[model] for model in row.architectures)
        kind = (row.fusion, len(row.experts), size, row.control)
        if not row.experts or kind in built:
            continue
        source = recipe.plugins.get(row.fusion, row.fusion)
        with torch.device("meta"), errors_at(f"{name}: {place}.fusion"):
            try:
                fusion = build_fusion(source, len(row.experts), size)
            except ValueError as error:
                larger = max(8, 1 << (size - 1).bit_length())
                with contextlib.suppress(ValueError):  # where another size wouldn't help either
                    build_fusion(source, len(row.experts), larger)
                    raise RecipeError(
                        f"{name}: {place}.fusion: {error}; with fusion.dim={larger} the experts' "
                        f"features are adapted to that size"
                    ) from None
                raise
        if row.fusion in recipe.plugins:
            with errors_at(f"{name}: {place}.fusion"):
                _try_out(source, len(row.experts), size)
        learns = any(True for _ in fusion.parameters()) or not fusion.reads_logits
        if row.control == "frozen" and not learns:
            raise RecipeError(
                f"{name}: {place}.control: found frozen, expected null or detached: "
                f"{row.fusion} has no weights and no head, so nothing would learn"
            )
        built.add(kind)


def _try_out(source: str, num_experts: int, size: int) -> None:
    """Fuse two images with a plug-in, whose code may be wrong; ValueError for a wrong shape."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        fused = build_fusion(source, num_experts, size).eval()(torch.zeros(2, num_experts, size))
    found = tuple(fused.shape) if isinstance(fused, torch.Tensor) else type(fused).__name__
    if found != (2, size):
        raise ValueError(f"fuse gives {found} of 2 images, expected one vector each: (2, {size})")


@contextlib.contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Whatever a network can't be built with is the recipe's mistake at `place`: RecipeError.

    Our own checks raise ValueError; torch and networks that others wrote raise anything.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{place}: {failure_of(error)}") from None
