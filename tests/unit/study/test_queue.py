"""Rows, tasks and claims: everything once, in an order that keeps every rank busy."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore, Store

from fusionrun.study import queue as assignment
from fusionrun.study.queue import Queue
from fusionrun.study.recipe import RowConfig
from fusionrun.study.rows import Member, Row, make_rows
from fusionrun.study.schedule import lower_bound, simulate
from fusionrun.study.tasks import ExpertTask, RowTask, Task, make_tasks

MODELS = ("densenet", "resnet", "improved_wide_resnet", "resnext")
FUSIONS = ("multiplicative", "multiplicativeAddition", "TransformerBase", "concatenation")


def rows_of(*models: str) -> tuple[Row, ...]:
    """A row per model; rows of the same model differ in their seed."""
    entries = [(model, "concatenation", 42 + models[:i].count(model), None)
               for i, model in enumerate(models)]  # fmt: skip
    return make_rows([RowConfig(*entry) for entry in entries], seed=42, alpha=1.0, num_experts=2)


def tasks_of(rows: Sequence[Row], experts: int = 2, **costs: float) -> tuple[Task, ...]:
    """Costs by model: of one expert's training; a row costs ten times that."""
    return make_tasks(
        [replace(row, experts=tuple(Member(row.model, k) for k in range(experts))) for row in rows],
        expert_epochs=7,
        fusion_epochs=5,
        expert_cost=lambda model: costs.get(model, 1.0),
        row_cost=lambda row: 10 * costs.get(row.model, 1.0),
    )


def queues_of(
    tasks: Sequence[Task], ranks: int, clock: Callable[[], float] = time.monotonic
) -> list[Queue]:
    store = HashStore()
    return [Queue(tasks, store, rank, ranks, clock) for rank in range(ranks)]


def names(*tasks: Task | None) -> list[str | None]:
    return [task.name if task else None for task in tasks]


def take(queue: Queue) -> Task:
    task = queue.next()
    assert task is not None
    return task


def finish_experts(queue: Queue, outcome: str = "done") -> None:
    for task in queue.tasks:
        if isinstance(task, ExpertTask):
            queue.close(task, outcome)


@pytest.fixture
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "OWNER_SECONDS", 0.0)


# ------------------------------------------------------------------ rows and tasks


def test_rows_take_what_they_leave_open_from_the_recipe() -> None:
    first, second = make_rows(
        [RowConfig("resnet", "concatenation"), RowConfig("densenet", "multiplicative", 42, 1.0)],
        seed=42,
        alpha=1.0,
        num_experts=2,
    )
    ours = [tuple(Member(model, k) for k in range(2)) for model in ("resnet", "densenet")]
    assert first == Row(0, "resnet", "concatenation", 42, 1.0, "concatenation", None, ours[0])
    assert second == Row(1, "densenet", "multiplicative", 42, 1.0, "multiplicative", None, ours[1])
    assert [first.name, second.name] == [
        "task-0-resnet-concatenation",
        "task-1-densenet-multiplicative",
    ]


@pytest.mark.parametrize(
    ("seed", "alpha", "variant"),
    [
        (None, None, "concatenation"),
        (42, 1.0, "concatenation"),
        (7, None, "concatenation-seed7"),
        (0, None, "concatenation-seed0"),
        (None, 15.0, "concatenation-alpha15"),
        (None, 0.0, "concatenation-alpha0"),
        (None, 0.5, "concatenation-alpha0.5"),
        (7, 0.25, "concatenation-seed7-alpha0.25"),
    ],
)
def test_a_variant_names_what_departs_from_the_recipe(
    seed: int | None, alpha: float | None, variant: str
) -> None:
    (row,) = make_rows(
        [RowConfig("resnet", "concatenation", seed, alpha)], seed=42, alpha=1.0, num_experts=2
    )
    assert row.variant == variant
    assert row.name == f"task-0-resnet-{variant}"
    assert (row.seed, row.alpha) == (
        42 if seed is None else seed,
        1.0 if alpha is None else alpha,
    )


@pytest.mark.parametrize(("seed", "of_its_own"), [(None, None), (42, None), (43, 43), (0, 0)])
def test_experts_of_another_seed_are_other_experts(
    seed: int | None, of_its_own: int | None
) -> None:
    """Those of the recipe's seed are what they were before there were any others."""
    entry = RowConfig("resnet", "concatenation", 7, 0.5, "frozen", expert_seed=seed)
    rows = make_rows([entry, RowConfig("resnet", "single")], seed=42, alpha=1.0, num_experts=2)
    row = rows[0]
    tasks = make_tasks(
        rows, expert_epochs=7, fusion_epochs=5, expert_cost=lambda _: 1.0, row_cost=lambda _: 1.0
    )
    assert row.expert_seed == of_its_own and rows[1].experts == ()
    assert row.experts == tuple(Member("resnet", k, of_its_own) for k in range(2))
    more = "" if of_its_own is None else f"-experts{of_its_own}"
    assert row.variant == f"concatenation-frozen-seed7{more}-alpha0.5"
    assert row.members == "resnet 0, resnet 1"
    own = "" if of_its_own is None else f"-seed{of_its_own}"
    assert tasks[0].needs == (f"expert-resnet-0{own}", f"expert-resnet-1{own}")
    assert [task.name for task in tasks[2:]] == [*tasks[0].needs]
    experts = [task for task in tasks if isinstance(task, ExpertTask)]
    assert tuple(task.member for task in experts) == row.experts


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(MODELS),
        st.sampled_from(FUSIONS),
        st.none() | st.integers(0, 2**40),
        st.none() | st.floats(0, 1e6) | st.sampled_from([0.1, 0.1 + 2**-50, 0.123456789]),
        st.sampled_from([None, "frozen", "detached"]),
        st.none(),  # no name
        st.sampled_from([None, 0, 42, 43]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(entries=ENTRIES)
def test_different_experiments_have_different_names_and_folders(
    entries: list[
        tuple[
            str,
            str,
            int | None,
            float | None,
            Literal["frozen", "detached"] | None,
            None,
            int | None,
        ]
    ],
) -> None:
    rows = make_rows([RowConfig(*entry) for entry in entries], seed=42, alpha=1.0, num_experts=2)
    experiments = {
        (row.model, row.fusion, row.seed, row.alpha, row.control, row.expert_seed) for row in rows
    }
    assert len({(row.model, row.variant) for row in rows}) == len(experiments)
    assert len({row.name for row in rows}) == len(rows)
    # they become names of files
    assert all(set("/\\ :*?\"'<>|").isdisjoint(row.name) for row in rows)


def test_tasks_are_the_rows_then_each_expert_once() -> None:
    rows = rows_of("resnet", "densenet", "resnet")
    tasks = tasks_of(rows, experts=2, densenet=3.0)
    experts = [f"expert-{model}-{k}" for model in ("resnet", "densenet") for k in range(2)]
    assert names(*tasks) == [row.name for row in rows] + experts
    assert [task.index for task in tasks] == list(range(len(tasks)))
    assert [task.kind for task in tasks] == 3 * ["row"] + 4 * ["expert"]
    assert [task.row for task in tasks if isinstance(task, RowTask)] == list(rows)
    assert [task.expert for task in tasks if isinstance(task, ExpertTask)] == [0, 1, 0, 1]
    assert [task.model for task in tasks[:3]] == ["resnet", "densenet", "resnet"]
    assert [task.epochs for task in tasks] == 3 * [5] + 4 * [7]
    assert [task.cost for task in tasks] == [10, 30, 10, 1, 1, 3, 3]


def test_a_row_needs_all_experts_of_its_model_and_an_expert_needs_nothing() -> None:
    tasks = tasks_of(rows_of("resnet", "densenet", "resnet"), experts=3)
    for task in tasks:
        experts = (t.name for t in tasks if isinstance(t, ExpertTask) and t.model == task.model)
        assert sorted(task.needs) == (sorted(experts) if isinstance(task, RowTask) else [])
    assert len(tasks[0].needs) == 3


# ------------------------------------------------------------------ what is claimed first


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_takes_its_own_row_first(rank: int) -> None:
    tasks = tasks_of(rows_of(*MODELS), densenet=9.0)
    queues = queues_of(tasks, 4)
    finish_experts(queues[0])
    assert take(queues[rank]) == tasks[rank]


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_begins_with_an_expert_of_its_own_row(rank: int) -> None:
    queues = queues_of(tasks_of(rows_of(*MODELS), densenet=9.0), 4)
    assert take(queues[rank]).name == f"expert-{MODELS[rank]}-0"


def test_an_expert_of_a_slow_row_comes_before_a_quick_row() -> None:
    tasks = tasks_of(rows_of("resnet", "densenet", "resnet"), experts=2, densenet=3.0)
    (queue,) = queues_of(tasks, 1)
    order = []
    while not queue.exhausted:
        task = take(queue)
        queue.close(task, "done")
        order.append(task.name.split("-concatenation")[0])
    assert order == [
        "expert-resnet-0",  # of its own row
        "expert-densenet-0",
        "expert-densenet-1",
        "task-1-densenet",
        "expert-resnet-1",
        "task-0-resnet",
        "task-2-resnet",
    ]


def test_what_tasks_really_took_decides_what_is_longest() -> None:
    """By its cost densenet is the quickest; its expert shows that it's the slowest."""
    rows = rows_of("resnet", "resnet", "densenet", "resnext")
    tasks = tasks_of(rows, experts=1, resnet=2.0, resnext=3.0)
    (queue,) = queues_of(tasks, 1)
    for task, seconds in zip(tasks[4:], (3.0, 9.0, 5.0), strict=True):
        queue.close(task, "done", seconds)
    assert [take(queue).model for _ in range(4)] == ["resnet", "densenet", "resnext", "resnet"]


def test_a_model_that_nobody_timed_is_taken_for_usual() -> None:
    tasks = tasks_of(rows_of("resnet", "resnet", "densenet", "resnext"), experts=1, densenet=0.9)
    (queue,) = queues_of(tasks, 1)
    queue.close(tasks[4], "done", seconds=100.0)
    for task in tasks[5:]:
        queue.close(task, "done")
    order = [take(queue).model for _ in range(4)]
    assert order == ["resnet", "resnet", "resnext", "densenet"]


def test_idle_ranks_help_with_the_longest_expert() -> None:
    tasks = tasks_of(rows_of("resnet", "resnext", "densenet"), experts=1, resnext=5.0, densenet=2.0)
    helper = queues_of(tasks, 4)[3]  # has no row of its own
    assert [take(helper).cost for _ in range(3)] == [5, 2, 1]
    assert helper.next() is None


def test_rows_that_no_rank_owns_go_by_length_at_once() -> None:
    rows = rows_of("resnet", "resnet", "densenet", "resnext")
    queues = queues_of(tasks_of(rows, densenet=2.0, resnext=3.0), 1)
    finish_experts(queues[0])
    order = [take(queues[0]).model for _ in range(4)]
    assert order == ["resnet", "resnext", "densenet", "resnet"]  # its own, then the longest


def test_a_row_waits_for_the_last_of_its_experts() -> None:
    tasks = tasks_of(rows_of("resnet"), experts=3)
    queue, other = queues_of(tasks, 2)
    experts = [take(queue) for _ in range(3)]
    assert {task.kind for task in experts} == {"expert"}
    for task in experts:
        assert queue.next() is None
        other.close(task, "done")  # whoever trained it
    assert take(queue) == tasks[0]


def test_a_row_whose_expert_failed_is_claimed_so_that_it_can_say_so() -> None:
    tasks = tasks_of(rows_of("resnet"))
    (queue,) = queues_of(tasks, 1)
    take(queue), take(queue)
    queue.close(tasks[1], "done")
    assert queue.next() is None
    queue.close(tasks[2], "disk full – §")
    assert take(queue) == tasks[0]
    assert queue.outcome(tasks[2].name) == "disk full – §"


def test_what_is_done_before_the_launch_is_claimed_by_nobody() -> None:
    tasks = tasks_of(rows_of("resnet"))
    queues = queues_of(tasks, 2)
    finish_experts(queues[1])
    queues[1].close(tasks[0], "done")
    assert names(queues[0].next(), queues[1].next()) == [None, None]
    assert queues[0].exhausted and queues[1].exhausted


# ------------------------------------------------------------------ whose row it is


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_anothers_row_is_left_to_it_for_a_moment(clock: Clock) -> None:
    tasks = tasks_of(rows_of("resnet", "densenet"))
    first, second = queues_of(tasks, 2, clock)
    finish_experts(first)
    assert take(first) == tasks[0]
    assert first.next() is None  # row 1 can start, and is rank 1's
    clock.now += 1.9
    assert first.next() is None and not first.exhausted
    assert take(second) == tasks[1]  # its owner needn't wait
    clock.now += 10
    assert first.next() is None and first.exhausted


def test_a_row_whose_owner_is_busy_goes_to_who_is_free(clock: Clock) -> None:
    tasks = tasks_of(rows_of("resnet", "densenet"))
    first, second = queues_of(tasks, 2, clock)
    finish_experts(first)
    assert take(first) == tasks[0]
    assert first.next() is None
    clock.now += 2.0
    assert take(first) == tasks[1]
    assert second.next() is None and second.exhausted


def test_the_moment_begins_when_the_row_can_start(clock: Clock) -> None:
    tasks = tasks_of(rows_of("resnet", "densenet"))
    first, second = queues_of(tasks, 2, clock)
    for task in tasks[2:4]:
        first.close(task, "done")
    assert take(first) == tasks[0]
    experts = [take(second), take(second)]
    for _ in range(5):
        assert first.next() is None
        clock.now += 60  # densenet's experts take their time
    for task in experts:
        second.close(task, "done")
    assert first.next() is None
    assert take(second) == tasks[1]


def test_experts_are_not_reserved(clock: Clock) -> None:
    tasks = tasks_of(rows_of("resnet", "densenet"))
    first, _ = queues_of(tasks, 2, clock)
    assert {take(first).name for _ in range(4)} == {task.name for task in tasks[2:]}


# ------------------------------------------------------------------ nothing left


@pytest.mark.usefixtures("no_reserve")
def test_exhausted_means_that_nothing_can_be_claimed_any_more() -> None:
    tasks = tasks_of(rows_of("resnet"))
    first, second = queues_of(tasks, 2)
    assert not first.exhausted
    experts = [take(first), take(second)]
    assert second.next() is None
    assert not second.exhausted  # the row is still to come, and first may be the slower one
    for task in experts:
        first.close(task, "done")
    assert take(second) == tasks[0]
    assert first.exhausted and second.exhausted  # although the row still runs
    assert first.outcome(tasks[0].name) is None
    second.close(tasks[0], "done")
    assert first.outcome(tasks[0].name) == "done"


def test_an_outcome_is_known_to_every_rank() -> None:
    tasks = tasks_of(rows_of("resnet"))
    queues = queues_of(tasks, 3)
    assert [queue.outcome(tasks[1].name) for queue in queues] == [None, None, None]
    queues[1].close(tasks[1], "why it failed")
    assert [queue.outcome(tasks[1].name) for queue in queues] == 3 * ["why it failed"]


# ------------------------------------------------------------------ everything once


def play(queues: Sequence[Queue], failing: set[str], rng: random.Random) -> list[tuple[int, Task]]:
    """Let ranks claim and finish in a random order; returns (rank, task) in order of claims."""
    claims: list[tuple[int, Task]] = []
    running: dict[int, Task] = {}
    open_ranks = set(range(len(queues)))
    for _ in range(100 * len(queues[0].tasks) * len(queues)):
        if not open_ranks and not running:
            return claims
        rank = rng.choice(sorted(open_ranks | running.keys()))
        if rank in running:
            task = running.pop(rank)
            queues[rank].close(task, "failed" if task.name in failing else "done")
            continue
        claimed = queues[rank].next()
        if claimed is not None:
            for need in claimed.needs:
                assert queues[rank].outcome(need) is not None
            claims.append((rank, claimed))
            running[rank] = claimed
        elif queues[rank].exhausted:
            open_ranks.discard(rank)
    raise AssertionError("the ranks never came to an end")


def together(queue: Queue, most: int = 4) -> list[str | None]:
    """What a rank that comes claims to train side by side."""
    first = take(queue)
    return names(first, *queue.beside(first, most - 1))


@pytest.mark.parametrize(
    ("models", "ranks", "sizes"),
    [
        (4, 4, [4, 4, 4, 4]),
        (1, 1, [4]),
        (1, 2, [2, 2]),
        (1, 3, [1, 1, 2]),
        (1, 4, [1, 1, 1, 1]),
        (2, 3, [2, 3, 2]),  # the third leaves one of another model
        (4, 3, [4, 4, 4]),
    ],
)
def test_no_rank_takes_so_many_that_another_goes_without(
    models: int, ranks: int, sizes: list[int]
) -> None:
    tasks = tasks_of(rows_of(*MODELS[:models]), experts=4)
    taken = [together(queue) for queue in queues_of(tasks, ranks)]
    assert [len(each) for each in taken] == sizes
    assert all(len({str(name).rpartition("-")[0] for name in each}) == 1 for each in taken)
    assert len({name for each in taken for name in each}) == sum(sizes)  # each once


def test_what_is_left_is_shared_out_again(clock: Clock) -> None:
    """Ten experts of one model: four for each of two ranks, then one for each."""
    tasks = tasks_of(rows_of("resnet"), experts=10)
    queues = queues_of(tasks, 2, clock)
    assert [len(together(queue)) for queue in queues * 2] == [4, 4, 1, 1]


def test_a_row_has_nothing_beside_it_and_not_every_expert_may_be() -> None:
    tasks = tasks_of(rows_of("resnet"), experts=3)
    (queue,) = queues_of(tasks, 1)
    first = take(queue)
    assert names(*queue.beside(first, 3, lambda task: task.name != "expert-resnet-1")) == [
        "expert-resnet-2"
    ]
    (last,) = [take(queue)]
    assert (last.name, queue.beside(last, 0)) == ("expert-resnet-1", [])
    for task in tasks[1:]:
        queue.close(task, "done")
    assert queue.beside(take(queue), 3) == []


class CountingStore:
    """A store that counts what is asked of it, as each question is a trip to rank 0."""

    def __init__(self) -> None:
        self.store = HashStore()
        self.questions = 0

    def __getattr__(self, name: str) -> Any:
        self.questions += 1
        return getattr(self.store, name)


def test_a_waiting_rank_asks_little(clock: Clock) -> None:
    """However many rows there are, a rank for which nothing has changed asks a question or two."""
    tasks = tasks_of(rows_of(*64 * ["resnet"]), experts=4)
    store = CountingStore()
    busy, waiting = (Queue(tasks, cast(Store, store), rank, 2, clock) for rank in range(2))
    experts = [take(busy) for _ in range(4)]
    assert waiting.next() is None
    store.questions = 0
    for _ in range(100):
        assert waiting.next() is None and not waiting.exhausted
    assert store.questions <= 300
    for task in experts:
        busy.close(task, "done")
    assert take(waiting) == tasks[1]


# ------------------------------------------------------------------ how long it takes


def sixteen(*, noise: float, seed: int, **paces: float) -> tuple[Sequence[Task], dict[str, float]]:
    """All combinations with the work of the full-size networks, and what they take."""
    work = {"densenet": 1.78, "resnet": 1.11, "improved_wide_resnet": 10.5, "resnext": 10.8}
    entries = [RowConfig(model, fusion) for fusion in FUSIONS for model in MODELS]
    tasks = make_tasks(
        make_rows(entries, seed=42, alpha=1.0, num_experts=4),
        expert_epochs=250,
        fusion_epochs=100,
        expert_cost=lambda model: 90 * work[model],
        row_cost=lambda row: 72 * work[row.model],
    )
    rng = random.Random(seed)
    return tasks, {
        task.name: task.cost * paces.get(task.model, 1.0) * rng.uniform(1 - noise, 1 + noise)
        for task in tasks
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("densenet", [1.0, 3.0, 10.0])
def test_the_claim_order_is_within_a_tenth_of_the_bound(densenet: float, seed: int) -> None:
    """Also where a network is far slower than its work says, which only running it shows."""
    tasks, seconds = sixteen(noise=0.1, seed=seed, densenet=densenet, resnext=1.5)
    runs = simulate(tasks, seconds, 4)
    assert sorted(run.task.index for run in runs) == list(range(32))
    assert max(run.end for run in runs) <= 1.1 * lower_bound(tasks, seconds, 4)


@settings(max_examples=50, deadline=None)
@given(
    models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=12),
    ranks=st.integers(1, 6),
    rng=st.randoms(use_true_random=False),
)
def test_a_schedule_is_possible_and_no_better_than_the_bound(
    models: list[str], ranks: int, rng: random.Random
) -> None:
    tasks = tasks_of(rows_of(*models))
    seconds = {task.name: rng.uniform(10, 100) for task in tasks}
    runs = {run.task.name: run for run in simulate(tasks, seconds, ranks)}
    assert runs.keys() == seconds.keys()
    for run in runs.values():
        assert run.end == run.start + seconds[run.task.name]
        assert all(runs[need].end <= run.start for need in run.task.needs)
        others = [other for other in runs.values() if other.rank == run.rank and other != run]
        assert all(other.end <= run.start or run.end <= other.start for other in others)
    assert max(run.end for run in runs.values()) >= lower_bound(tasks, seconds, ranks) - 1e-6


def test_the_bound_is_the_work_shared_or_the_longest_chain() -> None:
    tasks = tasks_of(rows_of("resnet", "densenet"), experts=2)
    seconds = {task.name: 1.0 for task in tasks} | {"expert-densenet-1": 5.0, tasks[1].name: 4.0}
    assert lower_bound(tasks, seconds, 1) == 13
    assert lower_bound(tasks, seconds, 4) == 9
    assert lower_bound([], {}, 4) == 0


def test_a_schedule_of_what_is_left(clock: Clock) -> None:
    """Experts that aren't among the tasks are done."""
    tasks = [task for task in tasks_of(rows_of("resnet", "densenet")) if task.kind == "row"]
    runs = simulate(tasks, {task.name: 3.0 for task in tasks}, 2)
    assert [(run.rank, run.start, run.end) for run in runs] == [(0, 0, 3), (1, 0, 3)]
    assert simulate([], {}, 2) == []


@pytest.mark.parametrize(("ranks", "expected"), [(1, 28), (4, 7)])
def test_ranks_share_the_tasks(ranks: int, expected: float) -> None:
    """Four rows of 3 s, each after four experts of 1 s."""
    tasks = tasks_of(rows_of(*MODELS), experts=4)
    seconds = {task.name: 3.0 if task.kind == "row" else 1.0 for task in tasks}
    assert max(run.end for run in simulate(tasks, seconds, ranks)) == expected


# ------------------------------------------------------------------ everything once, again


@settings(max_examples=100, deadline=None)
@given(
    models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=16),
    ranks=st.integers(1, 6),
    experts=st.integers(1, 4),
    failing=st.sets(st.integers(0, 31)),
    rng=st.randoms(use_true_random=False),
)
def test_every_task_is_claimed_exactly_once_whatever_the_order(
    models: list[str], ranks: int, experts: int, failing: set[int], rng: random.Random
) -> None:
    tasks = tasks_of(rows_of(*models), experts=experts)
    queues = queues_of(tasks, ranks)
    fails = {task.name for task in tasks if task.index in failing}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "OWNER_SECONDS", 0.0)
        claims = play(queues, fails, rng)
    assert sorted(task.index for _, task in claims) == list(range(len(tasks)))
    for queue in queues:
        outcomes = {task.name: queue.outcome(task.name) for task in tasks}
        assert outcomes == {task.name: "failed" if task.name in fails else "done" for task in tasks}


def run_threads(queues: Sequence[Queue]) -> list[tuple[int, str]]:
    """Every rank in a thread of its own, as the runner works; (rank, name) of every claim."""
    claims: list[tuple[int, str]] = []
    start = threading.Barrier(len(queues))

    def work(rank: int, queue: Queue) -> None:
        start.wait()
        while not queue.exhausted:
            task = queue.next()
            if task is not None:
                claims.append((rank, task.name))
                queue.close(task, "done")

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(queues)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return claims


def test_sixteen_rows_and_their_experts_on_four_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "OWNER_SECONDS", 0.05)
    entries = [RowConfig(model, fusion) for fusion in FUSIONS for model in MODELS]
    tasks = tasks_of(make_rows(entries, seed=42, alpha=1.0, num_experts=2), experts=4)
    assert len(tasks) == 16 + 16
    claims = run_threads(queues_of(tasks, 4))
    assert Counter(name for _, name in claims) == Counter(task.name for task in tasks)


def test_ranks_that_grab_the_same_task_at_once(no_reserve: None) -> None:
    for _ in range(5):
        tasks = tasks_of(rows_of(*8 * ["resnet"]), experts=4)
        claims = run_threads(queues_of(tasks, 8))
        assert Counter(name for _, name in claims) == Counter(task.name for task in tasks)


def test_one_claim_wins_where_all_saw_the_task_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank looks before another's claim is there: alone, and for what to do beside it."""
    monkeypatch.setattr(Queue, "_is_claimed", lambda queue, task: task.name in queue._claimed)
    tasks = tasks_of(rows_of("resnet"), experts=6)
    queues = queues_of(tasks, 2)
    claimed = [take(queue) for queue in queues]
    beside = [queue.beside(task, 2) for queue, task in zip(queues, claimed, strict=True)]
    found = names(*claimed, *beside[0], *beside[1])
    assert sorted(map(str, found)) == [f"expert-resnet-{k}" for k in range(6)]


def test_four_free_ranks_each_run_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "OWNER_SECONDS", 60.0)
    tasks = tasks_of(rows_of(*MODELS), densenet=9.0, resnext=4.0)
    rng = random.Random(1)
    for _ in range(20):
        claims = play(queues_of(tasks, 4), set(), rng)
        assert all(rank == task.row.index for rank, task in claims if isinstance(task, RowTask))


def test_everybody_can_know_what_a_rank_does() -> None:
    (single,) = rows_of("resnet")
    tasks = (
        *tasks_of(rows_of("densenet")),
        RowTask(9, replace(single, fusion="single", experts=()), 1, 1),
    )
    first, second = queues_of(tasks, ranks=2)
    assert second.work_of(0) == ""
    seen = []
    while not first.exhausted or first.work_of(0) != "idle":
        task = first.next()
        seen.append((second.work_of(0), task.name if task else None))
        if task:
            first.close(task, "done")
    assert seen == [
        ("other", "expert-densenet-0"),
        ("other", "expert-densenet-1"),
        ("row", tasks[0].name),
        ("other", tasks[-1].name),
        ("idle", None),
    ]
    assert second.next() is None and first.work_of(1) == "idle"
