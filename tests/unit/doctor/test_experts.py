"""Experts, asked on validation images."""

import re
import shutil
from pathlib import Path

import torch

from fusionrun.doctor.experts import examine_experts
from fusionrun.study.context import open_context
from fusionrun.study.paths import expert_file
from fusionrun.training import checkpoint
from tests.unit.doctor.one_row import CPU, plan, states


def test_an_expert_that_answers_by_chance_is_a_warning(trained: Path) -> None:
    study = plan("data.train_images=1000", "data.holdout_fraction=0.5", "data.val_fraction=0.5")
    paths = [expert_file(study.checkpoint_dir, "resnet", k) for k in range(2)]
    paths[0].parent.mkdir(parents=True)
    shutil.copy(trained / "expert_checkpoints/resnet/expert_0_best.pth", paths[0])
    torch.manual_seed(0)
    weights = study.build_expert("resnet", 4).state_dict()
    checkpoint.save(paths[1], {**weights, "classifier.bias": torch.tensor([9.0, 0, 0, 0])})
    findings = list(examine_experts(open_context(study, CPU, 1, progress=lambda text: None)))
    warned = [finding for finding in findings if str(paths[1]) in finding.found]
    right = re.fullmatch(
        r"resnet: 2 fit, right on \d+, 25 % of 250 validation images; not saved .*",
        findings[-1].found,
    )
    assert right is not None, findings[-1].found
    assert states(warned) == ["warn"] and "no better than chance" in warned[0].found
    assert "class order" in warned[0].found and "order of its classes" in warned[0].advice
