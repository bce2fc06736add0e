"""The house in numbers: short ways, functions that fit a screen, few rooms. `-s` shows them all."""

import pytest

from tests.contract import house
from tests.contract.house import House


@pytest.fixture(scope="module")
def measured() -> House:
    return house.measure()


@pytest.fixture(scope="module")
def frames(measured: House) -> int:
    frames = house.frames()
    print("\n" + house.table(measured, frames))
    return frames


def test_helpers_are_used_twice_or_hide_something_hard(measured: House) -> None:
    assert measured.private_used_once <= 0.14 * measured.functions
    assert measured.private <= 0.30 * measured.functions


def test_functions_fit_a_screen_and_files_are_read_in_one_sitting(measured: House) -> None:
    assert measured.longest_function <= (60, "~")
    assert measured.longest_file <= (400, "~")


def test_no_file_needs_half_of_the_house(measured: House) -> None:
    assert measured.most_own_names <= (25, "~")


def test_rooms_are_few(measured: House) -> None:
    """That no arrow between them runs back is test_layers' business."""
    assert measured.rooms <= 20


def test_a_model_is_near_the_command_line(frames: int) -> None:
    assert frames <= 12
