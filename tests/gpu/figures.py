"""How fast it is: the benchmark's own measurements."""

from collections.abc import Sequence
from dataclasses import replace

from tests.bench import gpu_launches, gpu_steps, gpu_tasks
from tests.bench import ranks as ranks_bench
from tests.bench.measure import Bench, Row
from tests.gpu.part import State, Verdict

SAVED = "densenet"


def step(model: str, bench: Bench) -> Verdict:
    """The steps of a row and of experts of `model`."""
    return _verdict([*gpu_steps.row_steps(bench, model), *gpu_steps.expert_steps(bench, model)])


def compiled(model: str, bench: Bench) -> Verdict:
    """The same with kernels made for them, which nobody has set a goal for."""
    return _verdict(gpu_steps.compiled(bench, model))


def curve(bench: Bench) -> Verdict:
    return _verdict(gpu_tasks.curve(bench))


def ranks(bench: Bench) -> Verdict:
    return _verdict(ranks_bench.measure_speed(replace(bench, rounds=2)))


def save(bench: Bench) -> Verdict:
    return _verdict(gpu_tasks.save_pause(bench, SAVED))


def first_epoch(bench: Bench) -> Verdict:
    return _verdict(gpu_tasks.first_epoch(bench))


def whole_command(bench: Bench) -> Verdict:
    return _verdict(gpu_launches.row_command(bench))


def _verdict(rows: Sequence[Row]) -> Verdict:
    """Missed where any goal is, or where a row has no number; failed where it should have one."""
    failed = [row for row in rows if row.note.startswith(gpu_steps.FAILED)]
    missed = [row for row in rows if row.met is False or row.ratio is None]
    texts = [_text(row) for row in failed or missed or rows]
    figures = {"rows": [row.to_json() for row in rows]}
    state: State = "fail" if failed else "missed" if missed else "pass"
    return Verdict(state, "; ".join(texts), figures)


def _text(row: Row) -> str:
    goal = f" (goal {row.goal})" if row.goal else ""
    return f"{row.name}: {row.note if row.ratio is None else f'{row.ratio:.3g}'}{goal}"
