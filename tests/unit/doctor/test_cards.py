"""Which rows fit on which GPUs."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from fusionrun.doctor import cards
from fusionrun.doctor.cards import CARDS, GIB, Cards
from fusionrun.doctor.estimate import CONTEXT_BYTES
from fusionrun.doctor.step_timing import Timing, time_task
from fusionrun.doctor.tables import cards_table
from fusionrun.study.context import RunContext
from fusionrun.tables.terminal import terminal_table
from fusionrun.training.precision import Precision
from tests.unit.doctor.one_row import drawn, estimate_with, fixed_timing

# GiB of weights and their updates, and of what autograd keeps in float32 of 128 images, measured
# on a CPU; GiB that an H100 needed for it all in bf16
FULL_SIZE = {
    "densenet": (0.46, 19.17, 10.4),
    "resnet": (0.68, 2.25, 2.0),
    "improved_wide_resnet": (2.22, 13.22, 7.3),
    "resnext": (2.14, 36.31, 18.5),
}


def on_cards(
    context: RunContext,
    fixed: float,
    activations: float,
    amp: str = "auto",
    recompute: Literal["auto"] | bool = "auto",
    **more: object,
) -> Cards:
    runtime = context.study.recipe.runtime
    runtime = replace(runtime, amp=amp, recompute=recompute)  # type: ignore[arg-type]
    recipe = replace(context.study.recipe, runtime=runtime)
    context = replace(context, study=replace(context.study, recipe=recipe), **more)  # type: ignore[arg-type]
    timing = Timing(1.0, 5, 128, 128, None, fixed * GIB, activations * GIB)
    with pytest.MonkeyPatch.context() as patch:
        numbers = estimate_with(context, patch, {"row": timing, "expert": fixed_timing(1)})
    return cards.rows_on_cards(context, numbers, [context.device])


@pytest.mark.parametrize("model", FULL_SIZE)
def test_the_estimate_is_what_a_card_needed(context: RunContext, model: str) -> None:
    """Little less, which the 10 % for the allocator cover; a third more at most."""
    fixed, activations, seen = FULL_SIZE[model]
    (row,) = on_cards(context, fixed, activations).rows
    assert 0.9 * seen <= (row.need - CONTEXT_BYTES) / cards.RESERVED / GIB <= 4 / 3 * seen


@pytest.mark.parametrize(
    ("model", "amp", "whole"),  # the smallest card that holds the row; as an audit had it
    [
        ("densenet", "auto", "T4 16GB"),
        ("densenet", "off", "RTX 3090, 4090"),
        ("resnet", "off", "T4 16GB"),
        ("improved_wide_resnet", "auto", "T4 16GB"),
        ("resnext", "auto", "V100 32GB"),
        ("resnext", "off", "A100, H100 80GB"),
    ],
)
def test_which_card_a_full_size_row_needs(
    context: RunContext, model: str, amp: str, whole: str
) -> None:
    found = on_cards(context, *FULL_SIZE[model][:2], amp)
    (row,) = found.rows
    assert next(name for name in row.fits if name not in row.twice) == whole
    assert row.fits[whole] == 128
    assert len(set(row.fits.values())) <= 2
    assert found.all_fit == (whole == "T4 16GB")


def test_what_does_not_fit_at_once(context: RunContext) -> None:
    found = on_cards(context, 10.0, 300.0, "off", recompute=False)
    (row,) = found.rows
    assert row.fits["T4 16GB"] == 0  # weights alone and an image fit, two don't
    assert row.fits["A100 40GB"] == 8 and row.fits["A100, H100 80GB"] == 16
    text = drawn(terminal_table(cards_table(found), 80), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "by 8" in text and "no" in text and "in float32" in text
    (row,) = on_cards(context, 10.0, 300.0, "off").rows  # one of two experts' at a time
    assert row.fits["A100 40GB"] == 16 and "A100 40GB" in row.twice
    assert not on_cards(context, 10.0, 300.0, "off", recompute=True).rows  # wasn't measured


def test_what_a_card_measured_is_taken_as_it_is(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own precision and with what torch reserves; that card is in the table, too."""
    monkeypatch.setattr(Precision, "of", lambda *asked: Precision("bf16"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    monkeypatch.setattr(cards, "total_memory", lambda device: 22.0 * GIB)
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("fusionrun.doctor.estimate.free_memory", lambda device: None)
    (row,) = on_cards(context, 2.0, 18.0, device=device).rows
    images = context.data.train_images.nbytes + context.data.test_images.nbytes
    assert row.need == pytest.approx(20 * GIB + CONTEXT_BYTES + images)
    assert list(row.fits) == [*CARDS, "L4 here"] and row.fits["L4 here"] == 128
    assert row.fits["T4 16GB"] == 128 and row.twice == {"T4 16GB", "V100 16GB"}


def test_a_small_row_is_a_line(context: RunContext, tmp_path: Path) -> None:
    timing = time_task(context, context.study.tasks[0], 2**20, 0.01, tmp_path)
    assert timing.fixed == 2**20 and 0 < (timing.activations or 0) < 2**27
    found = on_cards(context, 0.1, 0.1)
    assert found.all_fit and "16 GB" in found.finding.found
