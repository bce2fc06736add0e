"""How fast it is: the benchmark's own measurements, some of them."""

from collections.abc import Sequence
from dataclasses import replace

from tests.bench import gpu, steps
from tests.bench import ranks as ranks_bench
from tests.bench.measure import Bench, Row, unless_out_of_memory
from tests.gpu.part import Verdict


def step(model: str, bench: Bench) -> Verdict:
    """The steps of a row and of one expert of `model`."""
    rows = unless_out_of_memory(lambda: steps.measure_step(bench, model), "step", model)
    return _verdict([*rows, *gpu.measure_model(bench, model)])


def curve(bench: Bench) -> Verdict:
    return _verdict([gpu.curve(bench)])


def ranks(bench: Bench) -> Verdict:
    return _verdict(ranks_bench.measure_speed(replace(bench, rounds=2)))


def save(bench: Bench) -> Verdict:
    return _verdict([gpu.save_pause(bench)])


def first_epoch(bench: Bench) -> Verdict:
    return _verdict([gpu.first_epoch(bench)])


def _verdict(rows: Sequence[Row]) -> Verdict:
    """Missed where any goal is; a row without a number misses, too, if it should have one."""
    missed = [row for row in rows if row.met is False or row.ratio is None]
    texts = [_text(row) for row in missed or rows]
    figures = {"rows": [row.to_json() for row in rows]}
    return Verdict("missed" if missed else "pass", "; ".join(texts), figures)


def _text(row: Row) -> str:
    goal = f" (goal {row.goal})" if row.goal else ""
    return f"{row.name}: {row.note if row.ratio is None else f'{row.ratio:.3g}'}{goal}"
