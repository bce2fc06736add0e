"""What a record says of the hardware, on machines with and without a GPU."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from fusionrun.common import hardware as hardwares
from fusionrun.common.gpus import Gpu
from fusionrun.common.hardware import computes_on, hardware

CUDA = torch.device("cuda", 0)
UUID = "5f2a0000-0000-0000-0000-000000000000"


def told(driver: str) -> Gpu:
    """What nvidia-smi says of the card."""
    unknown = dict.fromkeys(Gpu.__dataclass_fields__)
    return Gpu(**{**unknown, "uuid": f"GPU-{UUID}", "driver": driver, "mig": False})  # type: ignore[arg-type]


@pytest.mark.parametrize(("gpus", "driver"), [((told("535.104"),), "535.104"), ((), None)])
def test_of_a_gpu(
    gpus: tuple[Gpu, ...], driver: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver isn't known where nvidia-smi is missing, or hangs."""
    properties = SimpleNamespace(uuid=UUID)
    monkeypatch.setattr(hardwares, "read_gpus", lambda timeout: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    with mock.patch.object(torch.backends.cudnn, "version", lambda: 91900):
        about = hardware(CUDA, "fp16", tf32=True)
    assert about == {
        "gpu": "Tesla V100-SXM2-32GB",
        "precision": "fp16",
        "torch": torch.__version__,
        "tf32": True,
        "driver": driver,
        "cuda": "12.6",
        "cudnn": 91900,
    }
    assert computes_on(about) == "Tesla V100-SXM2-32GB in fp16"


def test_of_a_cpu() -> None:
    about = hardware(torch.device("cpu"), "fp32", tf32=True)
    assert about == {"gpu": None, "precision": "fp32", "torch": torch.__version__}
    assert computes_on(about) == "a CPU in fp32"
    assert type(about["torch"]) is str  # it's in files that anybody reads with weights_only=True


def test_of_an_older_record() -> None:
    assert computes_on({"job_id": None, "rank": 0}) == ""
