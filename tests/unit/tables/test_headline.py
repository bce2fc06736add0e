"""How many digits a percentage carries, and when validation is too small to choose by."""

import pytest

from fusionrun.tables.headline import ENOUGH, Margin, digits, too_few, types_note


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1, 0), (60, 0), (100, 0), (800, 1), (1_000, 1), (2_000, 1), (10_000, 2), (10**6, 2)],
)
def test_a_last_digit_is_worth_about_an_image(images: int, expected: int) -> None:
    assert digits(images) == expected


def test_a_margin_has_the_digits_of_its_images_and_no_negative_nothing() -> None:
    assert Margin(1.26, -0.04, 2.5).text(1) == "+1.3\n(+0.0 to +2.5)"
    assert Margin(-1.26).text(0) == "-1"


def test_where_their_number_is_not_known_there_are_two() -> None:
    assert digits(None) == 2


def test_few_images_are_warned_of_with_what_one_of_them_weighs() -> None:
    assert too_few(ENOUGH) == ""
    assert "40 images" in too_few(40) and "2.5 points" in too_few(40)
    assert too_few(0)


def test_types_that_are_compared_say_by_whose_recipe_they_were_trained() -> None:
    both = ["multiplicative", "concatenation", "multiplicative"]
    own, shared = types_note(both, "per_type"), types_note(both, "shared")
    assert "fusion.recipe: per_type" in own and "augmentation" in own
    assert "fusion.recipe: shared" in shared and "same batches" in shared
    for recipe in ("per_type", "shared"):
        assert types_note([], recipe) == types_note(both[::2], recipe) == ""
