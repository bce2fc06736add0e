"""Words for people."""

import pytest

from fusionrun.common.text import duration, nearest, one_line, plural, shown, size

MIB = 2**20


@pytest.mark.parametrize(
    ("seconds", "text", "ticking"),
    [
        *(
            (0.25, "0.25s", "0s"),
            (8.14, "8.1s", "8s"),
            (9.96, "10s", "10s"),
            (59.6, "1m00s", "1m00s"),
        ),
        *((510, "8m30s", "8m30s"), (1234, "21m", "20m34s"), (3599.7, "1h00m", "1h00m")),
        *((3720, "1h02m", "1h02m"), (3779, "1h03m", "1h02m"), (86399, "1d00h", "23h59m")),
        *((273600, "3d04h", "3d04h"), (1e7, "116d", "115d")),
    ],
)
def test_durations(seconds: float, text: str, ticking: str) -> None:
    assert duration(seconds) == text
    assert duration(seconds, ticking=True) == ticking
    assert max(len(text), len(ticking)) <= 6


def test_a_clock_that_was_set_back_shows_nothing_below_zero() -> None:
    assert duration(-3.0, ticking=True) == "0s"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 MiB"), (12.5 * MIB, "12.5 MiB"), (333 * MIB, "333 MiB"), (999.7 * MIB, "1.0 GiB")),
        *((1.25 * 1024 * MIB, "1.2 GiB"), (2000 * 1024 * MIB, "2,000.0 GiB")),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_words() -> None:
    assert [plural(count, "row") for count in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert one_line("a\n  b\tc\n") == "a b c"
    assert shown("x" * 200) == "'" + "x" * 76 + "..."
    assert nearest("Densnet", ["resnet", "densenet"]).startswith("did you mean 'densenet'? ")
    assert nearest("zzz", ["b", "a"]) == "expected one of: a, b"
