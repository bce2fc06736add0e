"""What is loaded and tried, and on which devices."""

import pytest
import torch

from fusionrun.doctor import devices
from fusionrun.training.precision import Precision
from tests.unit.doctor.one_row import examine, only, plan, see_gpus


def test_nothing_is_timed_on_a_device_that_computes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device, dtype: torch.dtype, precision: Precision) -> torch.Tensor:
        return torch.ones(4) if dtype == torch.float64 else torch.zeros(4)

    monkeypatch.setattr(devices, "compute", broken)
    findings = examine(plan())
    assert only(findings, "compute cpu").state == "fail"
    assert only(findings, "data").state == "pass"
    assert only(findings, "time").found == "not measured"


def test_nothing_is_tried_on_a_gpu_that_torch_has_no_kernels_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The data is looked at all the same."""
    see_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_120"])
    findings = examine(plan("runtime.device=auto"))
    assert only(findings, "device").state == "fail"
    assert only(findings, "data").found.startswith("synthetic: 160 training")
    assert only(findings, "time").found == "not measured"
    assert not any(finding.name.startswith(("GPU", "compute")) for finding in findings)
