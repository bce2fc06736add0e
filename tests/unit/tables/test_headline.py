"""How many digits a percentage carries, and when validation is too small to choose by."""

import pytest

from fusionrun.tables.headline import ENOUGH, digits, too_few


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1, 0), (60, 0), (100, 0), (999, 0), (1_000, 1), (9_999, 1), (10_000, 2), (10**6, 2)],
)
def test_a_last_digit_is_worth_an_image_or_more(images: int, expected: int) -> None:
    assert digits(images) == expected
    assert 10.0**-expected >= min(100 / images, 1) * 0.999


def test_where_their_number_is_not_known_there_are_two() -> None:
    assert digits(None) == 2


def test_few_images_are_warned_of_with_what_one_of_them_weighs() -> None:
    assert too_few(ENOUGH) == ""
    assert "40 images" in too_few(40) and "2.5 points" in too_few(40)
    assert too_few(0)
