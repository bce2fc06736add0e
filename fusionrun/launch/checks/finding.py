"""What a check finds, and how a list of them is run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    name: str  # of what was looked at
    state: State
    found: str
    advice: str = ""  # what to do about it

    @property
    def line(self) -> str:
        return f"{self.name}: {self.found}" + (f". {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Check:
    """One line of a list of checks."""

    name: str
    look: Callable[[], Iterable[Finding]]
    needs: tuple[str, ...] = ()  # names of checks before it without which it finds nothing out


def run_checks(checks: Sequence[Check], *, broken: State = "fail") -> list[Finding]:
    """The findings of all checks in order; a check that breaks is a finding of state `broken`.

    What needs a check that failed isn't looked at, which is said.
    """
    findings: list[Finding] = []
    failed: set[str] = set()
    for check in checks:
        missing = [need for need in check.needs if need in failed]
        own: list[Finding] = []
        if missing:
            failed.add(check.name)
            found = f"not looked at: {' and '.join(missing)} failed"
            findings.append(Finding(check.name, "skip", found))
            continue
        try:
            for finding in check.look():
                own.append(finding)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else "no message"
            found = f"this check broke: {type(error).__name__}: {reason}"
            own.append(Finding(check.name, broken, found, "what it covers is unknown"))
        if any(finding.state == "fail" for finding in own):
            failed.add(check.name)
        findings += own
    return findings


def split_message(message: str) -> tuple[str, str]:
    """(what was found, what to do): our errors say them in that order, a sentence each."""
    found, _, advice = message.partition(". ")
    return found.removesuffix("."), advice
