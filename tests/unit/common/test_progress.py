"""Lines about long work."""

import pytest

from fusionrun.common import progress
from fusionrun.common.progress import Progress, told


class Clock:
    """A clock that stands still but for what a test lets pass."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_a_step_with_what_is_left(clock: Clock) -> None:
    said: list[str] = []
    steps = Progress(3, said.append)
    for name in ("a", "b", "c"):
        clock.now += 60
        steps.done_with(name)
    assert said == ["[1/3] a; about 2m00s left", "[2/3] b; about 1m00s left", "[3/3] c"]


def test_quick_work_says_nothing_and_slow_work_a_line_every_five_seconds(clock: Clock) -> None:
    said: list[str] = []
    assert list(told([1, 2, 3], "3 images", said.append)) == [1, 2, 3]
    assert said == []
    for _ in told(range(100), "100 images", said.append):
        clock.now += 1
    assert said[0] == "5 % of 100 images; about 1m35s left" and len(said) == 19
