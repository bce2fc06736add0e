"""A part of the acceptance, and what it found."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tests.bench.measure import Bench

State = Literal["pass", "missed", "fail", "skipped"]  # missed: right, but short of a goal


@dataclass(frozen=True)
class Verdict:
    """What a part found, in one line and in figures for the file."""

    state: State
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""  # the end of what a part wrote that failed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(wrong: list[str], text: str, figures: Mapping[str, Any] | None = None) -> Verdict:
    """Failed with what is `wrong`, if anything is; else passed with `text`."""
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Verdict("fail", "; ".join(wrong[:3]) + more, figures or {})
    return Verdict("pass", text, figures or {})


@dataclass(frozen=True)
class Part:
    """One line of the report; it gets a process of its own."""

    name: str
    seconds: int  # that it takes at most on an H100; with less left it isn't begun
    check: Callable[[Bench], Verdict]
    needs_gpu: bool = True
    alone: bool = False  # nothing else may run meanwhile: it times
