"""What is said of a row's confidence, where there is no fusion."""

import pytest
import torch
from torch import nn

from fusionrun.robustness.conditions import CLEAN
from fusionrun.robustness.row_under_test import RowUnderTest
from fusionrun.study.recipe import RowConfig
from fusionrun.study.rows import make_rows


@pytest.mark.parametrize(("fusion", "has_energy"), [("single", True), ("full_ensemble", False)])
def test_averaged_probabilities_have_no_energy(fusion: str, has_energy: bool) -> None:
    (row,) = make_rows([RowConfig("resnet", fusion)], seed=1, alpha=1.0, num_experts=3)
    under_test = RowUnderTest(row, nn.Identity(), 1, None)
    logits = torch.randn(20, 1, 5, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    under_test.measure(CLEAN, logits, torch.zeros(20, dtype=torch.int64))
    under_test.measure_ood("clouds", logits)
    found = {each.score: each.auroc for each in under_test.ood}
    assert found["max_probability"] == pytest.approx(50.0)
    assert (found["energy"] is not None) == has_energy
