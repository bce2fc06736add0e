"""What the doctor's tables show."""

from dataclasses import replace

import pytest

from fusionrun.doctor.tables import estimates_table, findings_table, verdict
from fusionrun.launch.checks.finding import Finding
from fusionrun.study.context import RunContext
from fusionrun.study.rows import Member
from fusionrun.tables.terminal import terminal_table
from tests.unit.doctor.one_row import drawn, estimate_with, fixed_timing


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_and_can_be_read_as_plain_text(
    width: int, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding("data", "pass", "cifar100: [50000] images"),
        Finding("disk space", "warn", "little", "do something about that"),
        Finding("experts", "fail", "/a/very/long/path/" * 12, "look [there]"),
    ]
    text = drawn(terminal_table(findings_table("runs/[x].yaml", findings), width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "[50000]" in text and "-> look [there]" in text and "\x1b" not in text
    scaled = {"row": fixed_timing(1, batch=4), "expert": fixed_timing(900)}
    text = drawn(
        terminal_table(estimates_table(estimate_with(context, monkeypatch, scaled)), width), width
    )
    assert max(map(len, text.splitlines())) <= width
    assert "~29s" in text and "5 x 4/8" in text and "~: a smaller batch" in text
    assert verdict(findings).startswith("1 check failed")
    assert verdict(findings[:2]) == "Ready to train; 1 warning above."


def test_the_estimate_says_what_a_mixed_row_is(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = estimate_with(
        context, monkeypatch, {"row": fixed_timing(1), "expert": fixed_timing(900)}
    )
    experts = (Member("densenet", 0), Member("resnet", 1))
    row = replace(found.rows[0].row, model="mixed-a", experts=experts)
    mixed = replace(found, rows=[replace(found.rows[0], row=row), *found.rows])
    assert estimates_table(mixed).note.endswith("\nmixed-a: densenet 0, resnet 1")
    assert "mixed-" not in estimates_table(found).note
