import re
import sys

import pytest

from fusionrun.common.wheels import CPU, WHEELS, choose_wheel, has_kernels, pip_line
from tests.tiny import ROOT

K80, GTX, V100, T4, A100, H100, RTX_5090 = (3, 7), (6, 1), (7, 0), (7, 5), (8, 0), (9, 0), (12, 0)


@pytest.mark.parametrize(
    ("cards", "driver", "label"),
    [
        ([H100] * 8, "580.65.06", ""),
        ([H100] * 8, "535.183.01", "cu126"),  # CUDA 13 doesn't run on it
        ([A100], "579.99", "cu126"),
        ([V100] * 4, "580.65.06", "cu126"),  # PyPI's has no kernels for it
        ([V100] * 4, "", "cu126"),
        ([V100] * 4, "470.82", "cu126"),  # of no use before the driver is updated
        ([GTX], "550.54", "cu126"),
        ([T4], "580.65.06", ""),
        ([RTX_5090], "595.10", ""),
        ([RTX_5090], "570.86.10", "cu128"),  # cu126 has no kernels for it
        ([GTX, A100, A100], "580.65.06", "cu126"),  # runs on all of them
        ([K80, A100, A100], "580.65.06", ""),
        ([V100, RTX_5090, RTX_5090], "580.65.06", ""),  # none runs on all: on most
        ([None, None], "580.65.06", ""),
        ([(15, 0)], "700.1", ""),  # newer than what is known here
        ([K80], "470.82", "cpu"),
        ([], "", "cpu"),
    ],
)
def test_the_packages_for_a_machine(
    cards: list[tuple[int, int] | None], driver: str, label: str
) -> None:
    assert choose_wheel(cards, driver).label == label


def test_every_package_is_one_that_the_requirements_allow() -> None:
    (lowest,) = re.findall(r"^torch>=(\d+\.\d+),", (ROOT / "requirements.txt").read_text(), re.M)
    assert {wheel.torch.partition(",")[0] for wheel in (*WHEELS, CPU)} == {f"torch>={lowest}"}
    old = next(wheel for wheel in WHEELS if wheel.label == "cu126")
    allowed = [old.allows(each) for each in ((2, 10, 0), (2, 11, 0), (2, 14, 1), (2, 15, 0))]
    assert allowed == [False, True, True, False]


def test_pip_is_told_to_replace_what_it_takes_for_the_same() -> None:
    lines = [pip_line(wheel) for wheel in WHEELS]
    # without it, 2.14.1 on a V100 satisfies torch<2.15, and pip would do nothing
    assert all("--force-reinstall" in line and line.startswith(sys.executable) for line in lines)
    assert "--index-url" not in lines[0]
    assert "'torch>=2.11,<2.15' torchvision" in lines[1] and lines[1].endswith("/whl/cu126")


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),  # a V100 and PyPI's torch
        ((7, 0), ["sm_50", "sm_70", "sm_90"], True),
        ((8, 6), ["sm_75", "sm_80"], True),  # machine code of its generation, no newer
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),  # of another generation
        ((9, 0), ["sm_80", "compute_80"], True),  # the driver compiles that
        ((12, 0), ["sm_90", "compute_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["compute_90a", "sm_90a"], False),  # of that GPU alone
        ((10, 3), ["sm_100f"], True),  # of its family
        ((11, 0), ["compute_100f", "unknown"], False),
    ],
)
def test_which_gpus_a_torch_has_kernels_for(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert has_kernels(capability, built_for) == runs
