"""The words that messages and tables share."""

import pytest

from fusionrun.common.text import (
    duration,
    nearest,
    one_line,
    plural,
    printable_path,
    shown,
    size,
    utf8_name,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.03, "0.03s"),
        (8.06, "8.1s"),
        (59.6, "1m00s"),
        (3720, "1h02m"),
        (505, "8m25s"),
        (599.7, "10m"),
        (3599, "1h00m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
        (86399, "1d00h"),
        (148.4 * 86400, "148d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_and_sizes() -> None:
    assert [plural(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert [size(n) for n in (2**20, 12.5 * 2**20, 5 * 2**30)] == ["1 MiB", "12.5 MiB", "5.0 GiB"]


def test_what_a_person_may_have_meant() -> None:
    valid = ["concatenation", "simpleAddition"]
    assert nearest("SimpleAdition", valid).startswith("did you mean 'simpleAddition'? expected one")
    assert nearest("zzz", valid) == "expected one of: concatenation, simpleAddition"


def test_values_never_take_more_than_a_line() -> None:
    assert shown("a") == "'a'"
    assert len(shown("a" * 1000)) == 80 and shown("a" * 1000).endswith("...")
    assert one_line("two\n  lines") == "two lines"


def test_names_of_files_are_text_that_any_file_and_terminal_takes() -> None:
    latin1 = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert utf8_name(latin1) == printable_path(latin1) == r"caf\xe9"
    assert utf8_name("猫 'q'\n") == "猫 'q'\n"
    assert printable_path("猫\n\x1b[2J\u202eabc") == r"猫\n\x1b[2J\u202eabc"
