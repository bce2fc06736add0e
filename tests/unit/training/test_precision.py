"""What a model computes in: what each card gets, and what was asked for."""

from unittest import mock

import pytest
import torch

from fusionrun.training.precision import Amp, Precision
from tests.fake_cuda import CUDA, fake_cuda

CPU = torch.device("cpu")
V100, T4, A100, H100 = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.mark.parametrize(
    ("card", "amp", "tf32", "expected"),
    [
        (V100, "auto", True, "fp16"),
        (T4, "auto", True, "fp16"),
        (A100, "auto", True, "bf16"),
        (H100, "auto", False, "bf16"),
        (H100, "fp16", True, "fp16"),
        (V100, "bf16", True, "bf16"),
        (A100, "off", True, "tf32"),
        (A100, "off", False, "fp32"),
        (T4, "off", True, "fp32"),
    ],
)
def test_a_card_gets_what_it_computes_in(
    card: tuple[int, int], amp: Amp, tf32: bool, expected: str
) -> None:
    with fake_cuda(card):
        assert Precision.of(amp, tf32, CUDA).name == expected


@pytest.mark.parametrize(
    ("amp", "expected"), [("auto", "fp32"), ("off", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_a_cpu_computes_in_half_precision_only_when_asked(amp: Amp, expected: str) -> None:
    assert Precision.of(amp, True, CPU).name == expected


def test_a_card_of_another_maker_has_bf16_and_no_tf32() -> None:
    with fake_cuda(H100), mock.patch.object(torch.version, "hip", "6.4"):
        assert Precision.of("off", True, CUDA).name == "fp32"
        assert Precision.of("auto", True, CUDA).name == "bf16"


def test_each_card_of_a_machine_is_asked_itself() -> None:
    """The current one is the first until training begins on another."""
    cards = {0: A100, 1: T4}
    with (
        fake_cuda(A100),
        mock.patch.object(torch.cuda, "get_device_capability", lambda device: cards[device.index]),
    ):
        devices = [torch.device("cuda", index) for index in cards]
        assert [Precision.of("auto", True, each).name for each in devices] == ["bf16", "fp16"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ],
)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    precision = Precision(name)  # type: ignore[arg-type]
    weights = torch.ones(3, 3)
    with precision.autocast(CPU):
        assert (weights @ weights).dtype == dtype
    assert (weights @ weights).dtype == torch.float32
    assert precision.is_scaled == (name == "fp16")
