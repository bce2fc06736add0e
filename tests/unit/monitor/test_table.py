"""The live table: what it must show, at every width, for launches in every state."""

import io
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from fusionrun.common.atomic_files import write_json
from fusionrun.common.gpus import MIB
from fusionrun.common.typed_fields import plain, read_json
from fusionrun.monitor.cards import Card
from fusionrun.monitor.log_lines import closing_lines, milestone, summary_lines
from fusionrun.monitor.record import RankState, Record, known
from fusionrun.monitor.snapshot import RankStatus, Snapshot, TaskStatus
from fusionrun.monitor.table import table
from tests.cards import H100

MODELS = ("densenet", "resnet", "improved_wide_resnet", "resnext")
FUSIONS = ("multiplicative", "multiplicativeAddition", "TransformerBase", "concatenation")
MEMBERS = "densenet 0, resnet 1, improved_wide_resnet 2, resnext 3"
NEEDS = "for expert-densenet-0, expert-resnet-1"
WIDTHS = (60, 79, 80, 100, 119, 120, 160, 200)
HOT = "it is too hot"
SHORT = "ValueError: images.npy holds 3 classes, expected 10; see data.num_classes"
REASON = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity "
    "of 79.11 GiB of which 512.00 MiB is free; lower fusion.batch_size, now 128, or free the GPU: "
    "/scratch/users/somebody/a-path-that-has-no-place-to-break/and-goes-on/and-on/for-ever/more"
    + "/and-more"
    * 30
)


def row(index: int, state: str = "running", **changes: Any) -> TaskStatus:
    model, fusion = MODELS[index // 4 % 4], FUSIONS[index % 4]
    if index >= 16:
        fusion += f"-seed{index // 16}"
    fields: dict[str, Any] = {
        "name": f"task-{index}-{model}-{fusion}",
        "kind": "row",
        "model": model,
        "fusion": fusion,
        "state": state,
        "epochs": 100,
    }
    if state not in ("waiting", "queued"):
        fields |= {
            "rank": index,
            "epoch": 41,
            "step": 120,
            "steps": 391,
            "train_loss": 1.2345,
            "val_accuracy": 70 + index / 4,
            "best": 81.5,
            "best_epoch": 38,
            "gain": 1.2 if index % 2 else -0.45,
            "experts": (79.13, 80.02, 78.5, None),
            "images_per_second": 12345.6,
            "eta_seconds": 3720.0,
        }
    if state == "done":
        fields |= {"epoch": 100, "step": 0, "eta_seconds": None, "val_accuracy": 81.5}
    return TaskStatus(**(fields | changes))


def expert(model: str, k: int, state: str, **changes: Any) -> TaskStatus:
    fields: dict[str, Any] = {
        "name": f"expert-{model}-{k}",
        "kind": "expert",
        "model": model,
        "fusion": "",
        "state": state,
        "epochs": 60,
    }
    if state == "running":
        fields |= {"epoch": 30, "val_accuracy": 61.5, "eta_seconds": 95.0, "rank": k}
        fields |= {"train_loss": 1.5678, "images_per_second": 23456.7, "best": 62.0}
        fields |= {"best_epoch": 28, "val_images": 1600}
    if state == "done":
        fields |= {"epoch": 60, "val_accuracy": 77.0 + k}
    return TaskStatus(**(fields | changes))


def experts(*states: str) -> list[TaskStatus]:
    """Sixteen expert tasks, `states` repeating."""
    each = itertools.cycle(states)
    return [expert(model, k, next(each)) for model in MODELS for k in range(4)]


def card(index: int, *ranks: int, host: str = "node7", **changes: Any) -> Card:
    """A busy H100."""
    gpu = replace(
        H100,
        index=index,
        uuid=f"GPU-{index}",
        memory_used=18800 * MIB,
        utilisation=98.0 - index,
        temperature=61.0 + index,
        power=512.34,
    )
    return Card(host, ranks or (index,), replace(gpu, **changes))


def on_gpus(tasks: list[TaskStatus], *cards: Card, **changes: Any) -> Snapshot:
    """A launch whose ranks each have a GPU of 79.6 GiB."""
    shown = snapshot(tasks, device=f"{len(cards)} × NVIDIA H100 80GB HBM3, bf16")
    ranks = tuple(replace(rank, memory_total=81559.0 * MIB) for rank in shown.ranks)
    return replace(shown, ranks=ranks, cards=cards, **changes)


def snapshot(tasks: list[TaskStatus], **changes: Any) -> Snapshot:
    by_rank = {task.rank: task.name for task in tasks if task.state == "running"}
    ranks = tuple(
        RankStatus(
            rank, "working" if rank in by_rank else "idle", by_rank.get(rank), 0.4, 12 * 2**30
        )
        for rank in range(4)
    )
    fields: dict[str, Any] = {
        "study": "demo",
        "output_dir": "runs/demo",
        "state": "running",
        "started": 1e9,
        "updated": 1e9 + 3720,
        "elapsed": 3720.0,
        "eta_seconds": 5400.0,
        "progress": 0.523,
        "world_size": 4,
        "threads": 8,
        "device": "cuda",
        "nodes": 1,
        "restarts": 0,
        "job_id": None,
        "channel": "",
        "ranks": ranks,
    }
    return Snapshot(tasks=tuple(tasks), **(fields | changes))


def launches() -> dict[str, Snapshot]:
    sixteen = ["done"] * 5 + ["running"] * 6 + ["failed"] + ["queued"] * 4
    sixty_four = ["done"] * 20 + ["running"] * 16 + ["waiting"] * 28
    return {
        "starting": snapshot(
            [row(i, "waiting") for i in range(4)] + experts("queued"),
            eta_seconds=None,
            progress=0.0,
            ranks=tuple(RankStatus(rank, "starting", None, None, None) for rank in range(4)),
        ),
        "training experts": snapshot(
            [row(i, "waiting") for i in range(4)] + experts("done", "running", "queued", "done")
        ),
        "the end is near": snapshot(
            [
                row(0, "done", seconds=7830.0),
                row(1, "testing", epoch=100, step=0, eta_seconds=12.0),
                row(2, "saving", epoch=100, step=0, eta_seconds=None),
                row(3),
                *experts("done"),
            ]
        ),
        "first epoch": snapshot(
            [
                row(
                    i, epoch=0, val_accuracy=None, gain=None, best=None, best_epoch=None, experts=()
                )
                for i in range(4)
            ]
        ),
        "failed": snapshot(
            [row(0, "done"), row(1, "failed", note=REASON), row(2, "stopped")],
            state="failed",
        ),
        "stopped": snapshot([row(i, "stopped") for i in range(4)], state="stopped"),
        "done": snapshot([row(i, "done") for i in range(4)] + experts("done"), state="done"),
        "16 rows": snapshot(
            [row(i, state, note="broke" * (state == "failed")) for i, state in enumerate(sixteen)]
            + experts("done", "running")
        ),
        "64 rows": snapshot(
            [row(i, state) for i, state in enumerate(sixty_four)] + experts("done")
        ),
        "one row": snapshot([row(0)]),
        "different experts": snapshot(
            [
                row(0, "done"),
                row(1, model="mixed-1a2b3c4d", members=MEMBERS),
                row(2, "waiting", model="mixed-1a2b3c4d", members=MEMBERS, note=NEEDS),
                *(expert(model, k, "queued") for k, model in enumerate(MODELS)),
            ]
        ),
        "on GPUs": on_gpus(
            [row(i) for i in range(4)], *(card(i) for i in range(3)), card(3, throttle=HOT)
        ),
        "on shared GPUs of two kinds": on_gpus(
            [*(row(i, "waiting") for i in range(4)), *experts("running", "queued")],
            card(0, 0, 2),
            card(
                *(5, 1, 3),
                name="Tesla V100-SXM2-32GB",
                utilisation=None,
                power_limit=None,
                memory_total=None,
                ecc_errors=2,
            ),
            device="1 × NVIDIA H100 80GB HBM3, bf16; 1 × Tesla V100-SXM2-32GB, fp16",
        ),
        "experts only": snapshot(experts("running", "failed")),
        "in trouble": snapshot(
            [row(i) for i in range(4)],
            channel="Connection closed by peer [10.0.0.3]:4432",
            output_dir="/scratch/" + "very-long-name/" * 12,
            job_id="4711",
            restarts=2,
        ),
    }


def drawn(shown: Snapshot, width: int, **options: Any) -> list[str]:
    """The lines as a console much wider than `width` gets them, so that nothing is hidden."""
    console = Console(file=io.StringIO(), width=400, color_system=None, force_terminal=True)
    console.print(Group(*table(shown, width, **options)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def squeezed(lines: list[str]) -> str:
    return re.sub(r"\s", "", "".join(lines))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", launches())
def test_no_line_is_wider_than_the_console(name: str, width: int) -> None:
    lines = drawn(launches()[name], width)
    assert len(lines) > 5
    assert max(map(cell_len, lines)) < width  # with a margin, for the terminals that need one


@pytest.mark.parametrize("width", (80, 100, 120, 160, 200))
@pytest.mark.parametrize("name", launches())
def test_every_row_shows_its_name_state_and_fused_accuracy_on_one_line(
    name: str, width: int
) -> None:
    shown = launches()[name]
    lines = drawn(shown, width)
    for index, task in enumerate(task for task in shown.tasks if task.kind == "row"):
        words = [str(index), task.model, task.fusion, task.state]
        if task.val_accuracy is not None:
            words.append(f"{task.val_accuracy:.2f}")
        if width == 80 and "-seed" in task.fusion:  # 54 columns of names: the model is cut
            words[1] = task.model[:8] if len(task.model) > 12 else task.model
        pattern = r".*\s".join(re.escape(word) for word in words)
        assert any(re.match(rf"\s*{pattern}", line) for line in lines), (words, lines)


@pytest.mark.parametrize("width", (60, 80, 120))
def test_a_failures_reason_is_below_it_the_rest_of_a_long_one_in_its_log(width: int) -> None:
    lines = drawn(snapshot([row(0, "done"), row(1, "failed", note=SHORT)], state="failed"), width)
    assert squeezed([SHORT]) in squeezed(lines)
    assert "its log" not in squeezed(lines)
    lines = drawn(launches()["failed"], width)
    assert squeezed([REASON[:160]]) in squeezed(lines)
    assert squeezed(["or free the GPU: … (the rest is in its log)"]) in squeezed(lines)
    failed = next(i for i, line in enumerate(lines) if "densenet" in line and "✗ failed" in line)
    assert "OutOfMemoryError" in lines[failed + 1]


def test_a_failed_experts_reason_is_there() -> None:
    shown = snapshot([row(0, "waiting"), expert("densenet", 2, "failed", note=SHORT)])
    assert squeezed(["expert-densenet-2: " + SHORT]) in squeezed(drawn(shown, 80))


def test_what_several_failed_for_is_said_once() -> None:
    rows = [row(i, "failed", note=SHORT if i != 2 else "another") for i in range(4)]
    each = [expert("resnet", k, "failed", note="no such file") for k in range(4)]
    each.append(expert("densenet", 0, "failed", note=SHORT))
    shown = snapshot([*rows, *each], state="failed")
    text = "\n".join(drawn(shown, 120))
    assert text.count(SHORT) == 1 and f"└ rows 0, 1, 3: {SHORT}" in text
    assert "└ another" in text
    assert text.count("no such file") == 1 and "expert-resnet-0 and 3 more: no such file" in text
    assert "expert-densenet-0: for the same reason" in text
    lines = summary_lines(shown)
    assert "\n".join(lines).count(SHORT) == 1 and "\n".join(lines).count("no such file") == 1
    assert lines[2].endswith(f"as {rows[0].name}")
    ranks = tuple(RankStatus(i, "failed", None, 0.1, None, note="disk") for i in range(3))
    assert "! ranks 0, 1, 2: disk" in "\n".join(drawn(snapshot([row(0)], ranks=ranks), 80))


def test_starting_ranks_say_what_they_do() -> None:
    ranks = tuple(RankStatus(i, "starting", None, 0.1, None, note="reads data") for i in range(2))
    text = "\n".join(drawn(snapshot([row(0, "waiting")], ranks=ranks, world_size=2), 80))
    assert "2 of 2 ranks starting" in text and " ranks 0, 1: reads data" in text and "!" not in text


def test_a_wide_terminal_shows_every_number() -> None:
    line = next(line for line in drawn(snapshot([row(1)]), 170) if "41.3/100" in line)
    for text in (
        *(
            "1.2345",
            "70.25",
            "+1.20",
            "79.1 80.0 78.5    –",
            "81.50 @38",
            "12,346",
            "12.0 GiB",
            "1h02m",
        ),
        *("● running", "━━", "–"),
    ):
        assert text in line, text


def test_columns_go_by_priority_and_numbers_are_never_cut() -> None:
    seen = []
    for width in range(60, 200):
        title = next(line for line in drawn(launches()["failed"], width) if "fused" in line)
        seen.append({word for word in title.split() if word not in ("%", "@epoch")})
        assert "…" not in "".join(
            line for line in drawn(launches()["failed"], width) if "/100" in line
        )
    at = dict(zip(range(60, 200), seen, strict=True))
    assert {"row", "state", "epoch", "fused", "averaging"} <= at[80]
    assert {"progress", "ETA", "took"} & at[100] >= {"progress", "ETA"}
    assert {"loss", "experts", "rank", "best", "img/s"} <= at[160]
    assert "img/s" not in at[80]


def test_gain_is_coloured_by_its_sign() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    shown = snapshot([row(0, gain=-0.45), row(1, gain=1.2), row(2, gain=-0.001)])
    console.print(Group(*table(shown, 120)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b[31m-0.45" in text
    assert "\x1b[32m+1.20" in text
    assert "+0.00" in text
    assert "m+0.00" not in text  # neither good nor bad


def test_what_was_not_measured_is_a_dash() -> None:
    record = Record(val_accuracy=float("nan"))
    shown = snapshot([row(0, val_accuracy=known(record.val_accuracy), gain=None, eta_seconds=None)])
    text = "\n".join(drawn(shown, 160))
    line = next(line for line in text.splitlines() if "41.3/100" in line)
    assert line.count("–") >= 3
    assert "nan" not in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("age", "state", "warned"),
    [(9.9, "working", False), (10.4, "working", True), (None, "starting", False)]
    + [(500.0, state, False) for state in ("finished", "stopped", "failed")],
)
def test_silence_is_shown_for_a_living_rank_only(
    age: float | None, state: Any, warned: bool
) -> None:
    ranks = (RankStatus(0, state, row(0).name, age, None), RankStatus(1, state, None, age, None))
    shown = snapshot([row(0)], ranks=ranks)
    text = "\n".join(drawn(shown, 80) + summary_lines(shown))
    assert text.count("no heartbeat 10 s") == (4 if warned else 0)  # two ranks, two pictures
    assert ("no heartbeat" in text) == warned


def test_what_a_rank_notes_is_said_once() -> None:
    task = row(0, "failed", note="disk full")
    ranks = (
        RankStatus(0, "idle", None, 0.1, None, note="disk full"),
        RankStatus(1, "idle", None, 0.1, None, note="disk slow"),
    )
    shown = snapshot([task], ranks=ranks)
    for lines in (drawn(shown, 80), summary_lines(shown)):
        text = "\n".join(lines)
        assert text.count("disk full") == 1
        assert text.count("! rank 1: disk slow") == 1


@pytest.mark.parametrize("width", (80, 120, 160))
def test_experts_at_work_show_rank_loss_speed_and_epoch(width: int) -> None:
    tasks = [row(0, "waiting"), *(expert("resnet", k, "running", rank=3 - k) for k in range(3))]
    lines = drawn(snapshot([*tasks, expert("resnet", 3, "queued")]), width)
    for k in range(3):
        pattern = rf" resnet +{k} +{3 - k} +● running .* 30.0/60 +1.5678 +61.5 .*23,457.* 1m35s$"
        assert any(re.match(pattern, line) for line in lines), lines
    text = "\n".join(summary_lines(snapshot(tasks)))
    assert re.search(
        r"expert-resnet-0 +running +rank +3 .* 30.0/60 +loss  1.5678 .* 23,457 ima", text
    )


def test_accuracies_have_the_digits_of_their_images() -> None:
    line = next(line for line in drawn(snapshot([row(1, val_images=60)]), 160) if "/100" in line)
    assert all(f" {text} " in line for text in ("70", "+1", "79", "80", "78", "82"))
    assert "70.2" not in line and "81.5" not in line
    assert "val accuracy 81.5 %" in milestone(row(1, "done", val_images=2000), {})


def test_waiting_rows_say_how_many_experts_they_wait_for() -> None:
    tasks = [row(0, "waiting"), row(1, "queued")]
    tasks += [expert("densenet", k, state) for k, state in enumerate(("done", "running", "queued"))]
    text = "\n".join(drawn(snapshot(tasks), 80))
    assert "waiting for 2 experts" in text
    assert "queued  for a free rank" in text


def test_networks_of_a_full_ensemble_are_counted_beside_the_rows() -> None:
    waits = row(1, "waiting", fusion="full_ensemble", note="for task-3-x, network-densenet-1")
    network = row(2, "running", kind="network", name="network-densenet-1", fusion="single-network1")
    found = snapshot([row(0, "done"), waits, network, expert("densenet", 0, "done")])
    assert "single-network1" in "\n".join(drawn(found, 100))
    text = "\n".join(summary_lines(found))
    assert "rows: 1 done, 1 waiting" in text and "networks: 0 of 1 done" in text
    assert "for 1 network" in text


def test_rows_of_different_experts_say_once_whose_they_are() -> None:
    shown = launches()["different experts"]
    for lines in (drawn(shown, 100), summary_lines(shown)):
        assert sum(f"mixed-1a2b3c4d: {MEMBERS}" in line for line in lines) == 1
        assert any("for 2 experts" in line for line in lines)


def test_experts_have_a_line_a_model_and_done_models_share_one() -> None:
    tasks = [expert("densenet", k, "done") for k in range(4)]
    tasks += [expert("resnet", k, "running") for k in range(4)]
    few = drawn(snapshot([row(0, "waiting"), *tasks]), 120)
    assert any(re.search(r"densenet +4/4 .*✓ 77.0 +✓ 78.0 +✓ 79.0 +✓ 80.0", line) for line in few)
    assert any(line.count("━╸") + line.count("━─") == 4 for line in few if "resnet" in line)
    tasks += [expert("resnext", k, "queued") for k in range(8)]
    many = drawn(snapshot([row(0, "waiting"), *tasks]), 120)
    assert any("✓ 4 densenet 78.5" in line for line in many)
    assert not any("4/4" in line for line in many)


def test_experts_of_several_seeds_have_a_line_each() -> None:
    tasks = [expert("resnet", k, "done", expert_seed=seed) for seed in (None, 43) for k in range(4)]
    tasks += [expert("resnet", k, "running", expert_seed=44) for k in range(4)]
    lines = drawn(snapshot([row(0, "waiting"), *tasks]), 120)
    starts = [re.search(r"^ *(resnet(?: seed \d+)?) +(\d/4) ", line) for line in lines]
    found = [match.groups() for match in starts if match]
    assert found == [("resnet", "4/4"), ("resnet seed 43", "4/4"), ("resnet seed 44", "0/4")]


@pytest.mark.parametrize("width", [80, 120])
def test_experts_that_the_recipe_did_not_train_are_named(width: int) -> None:
    others = ["not saved by fusionrun", "trained with other settings (seed: 1 there, 2 here)"]
    tasks = [expert("densenet", k, "done", note=others[0]) for k in range(4)]
    tasks += [expert("resnet", k, "done", note=others[k % 2]) for k in range(4)]
    lines = drawn(snapshot([row(0), *tasks, expert("resnext", 0, "done")]), width)
    text = " ".join(" ".join(lines).split())
    assert text.count(f"! experts: 4 densenet, 2 resnet: {others[0]}") == 1
    assert text.count(f"! experts: 2 resnet: {others[1]}") == 1
    assert "resnext:" not in text and all(cell_len(line) <= width for line in lines)


def test_header_and_footer() -> None:
    text = "\n".join(drawn(launches()["in trouble"], 120, notices=["disk full"], hint="Ctrl-C!"))
    for words in (
        *("demo", "● running", "rows: 4 running", "cuda", "4 ranks × 8 threads", "52 %"),
        *("elapsed 1h02m", "ETA 1h30m", "Slurm job 4711", "2 restarts", "disk full", "Ctrl-C!"),
        *("channel is broken", "Connection closed by peer [10.0.0.3]:4432"),
    ):
        assert words in text, words
    calm = "\n".join(drawn(launches()["done"], 120, hint="Ctrl-C!"))
    for words in ("restart", "Slurm", "channel", "Ctrl-C!", "!"):
        assert words not in calm, words


@pytest.mark.parametrize("height", (12, 16, 23, 30, 50))
@pytest.mark.parametrize("name", ["16 rows", "64 rows", "training experts", "failed"])
def test_height_limits_the_lines(name: str, height: int) -> None:
    assert len(drawn(launches()[name], 100, height=height)) <= height


def test_a_low_terminal_keeps_running_and_failed_rows() -> None:
    lines = drawn(launches()["16 rows"], 100, height=18)
    text = "\n".join(lines)
    assert sum("● running" in line and "/100" in line for line in lines) == 6
    assert sum("✗ failed" in line and "/100" in line for line in lines) == 1
    assert "✓ done  " not in text
    assert re.search(r"… and 5 done, 4 queued", text)


def test_a_full_height_hides_nothing() -> None:
    shown = launches()["16 rows"]
    full = drawn(shown, 100)
    assert drawn(shown, 100, height=len(full)) == full
    assert drawn(shown, 100, height=len(full) - 1) != full


def test_ascii_only_keeps_every_width() -> None:
    shown = snapshot([row(1, "failed", note="Größe ✗ 数"), *experts("done", "running", "queued")])
    plain = drawn(shown, 120, ascii_only=True)
    "\n".join(plain).encode("ascii")
    assert [len(line) for line in plain] == [len(line) for line in drawn(shown, 120)]
    assert "x failed" in "\n".join(plain)


def test_notes_cannot_move_the_cursor() -> None:
    shown = snapshot(
        [row(0, "failed", note="a\x1b[2Jb\r\nc\x9bd\udc80")], channel="e\x1b[31m", study="f\x1bg"
    )
    text = "".join(drawn(shown, 100) + summary_lines(shown))
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    text.encode()


@pytest.mark.parametrize("name", launches())
def test_summary_lines_are_plain_aligned_and_complete(name: str) -> None:
    shown = launches()[name]
    lines = summary_lines(shown)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(lines))
    assert lines[0].startswith(f"demo: {shown.state}, {int(100 * shown.progress)} %, elapsed 1h02m")
    told = [task for task in shown.tasks if task.kind == "row"]
    told = [task for task in told if task.state not in ("done", "queued")]
    mine = [line for line in lines[1:] if line.startswith("  task-")]
    assert [line.split()[0] for line in mine] == [task.name for task in told]
    assert len({line.index(f" {t.state}") for line, t in zip(mine, told, strict=True)}) <= 1
    assert len({line.index("  loss ") for line in mine if "  loss " in line}) <= 1
    if name == "failed":
        assert squeezed([REASON[:160]]) in squeezed(lines)


def test_milestones_are_one_line() -> None:
    done = milestone(row(0, "done", val_accuracy=81.5, seconds=7830.0), {})
    assert done == (
        "✓ task-0-densenet-multiplicative done: val accuracy 81.50 % at epoch 38, "
        "gain over averaging -0.45, took 2h10m"
    )
    assert milestone(row(1, "failed", note="a\nb"), {}).endswith(
        "multiplicativeAddition failed: a b"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *(
            (0.0, "0s"),
            (59.4, "59s"),
            (59.6, "1m00s"),
            (3599.7, "1h00m"),
            (1234.0, "20m34s"),
            (86399.0, "23h59m"),
        ),
        *((86400.0, "1d00h"), (1e7, "115d"), (-3.0, "0s"), (None, "–")),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert f"ETA {text}," in summary_lines(snapshot([row(0)], eta_seconds=seconds))[0]


def test_only_a_finished_launch_shows_100_percent() -> None:
    almost = snapshot([row(0, epoch=99, step=390)], progress=0.9999)
    text = "\n".join(drawn(almost, 100))
    assert "99 %" in text
    assert "99.9/100" in text
    assert "━━ " not in next(line for line in drawn(almost, 100) if "99.9/100" in line)


def test_the_picture_survives_the_status_file(tmp_path: Path) -> None:
    for shown in launches().values():
        write_json(tmp_path / "status.json", plain(shown))
        assert read_json(tmp_path / "status.json", Snapshot) == shown


# ------------------------------------------------------------------ how busy the ranks are


def test_ranks_without_a_task_say_so() -> None:
    states: list[tuple[RankState, str | None]] = [
        ("working", row(0).name), ("idle", None), ("finished", None), ("finished", None)
    ]  # fmt: skip
    ranks = tuple(RankStatus(i, state, task, 0.1, None) for i, (state, task) in enumerate(states))
    text = "\n".join(drawn(snapshot([row(0)], ranks=ranks), 100))
    assert "rank 1 idle: no task can start yet" in text
    assert "ranks 2, 3 finished: all tasks are taken" in text
    ended = snapshot([row(0, "done")], ranks=ranks, state="done")
    assert "idle" not in "\n".join(drawn(ended, 100))


def test_the_last_lines_add_up_what_the_ranks_did() -> None:
    busy = (90.0, 60.0, 45.0, 0.0)
    ranks = tuple(
        RankStatus(i, "finished", None, 0.1, None, busy_seconds=each) for i, each in enumerate(busy)
    )
    done = snapshot([row(0, "done")], ranks=ranks, elapsed=100.0, state="done")
    work, idle = closing_lines(done)
    assert work == "3m15s of work in 1m40s: 1.9 of 4 ranks busy on average"
    assert idle.endswith("rank 0 10 %, rank 1 40 %, rank 2 55 %, rank 3 100 %")
    nothing = tuple(RankStatus(i, "finished", None, 0.1, None) for i in range(4))
    assert closing_lines(snapshot([row(0, "done")], ranks=nothing)) == []


def test_several_nodes_are_told() -> None:
    assert "4 ranks × 8 threads · 2 nodes" in "\n".join(drawn(snapshot([row(0)], nodes=2), 100))


# ------------------------------------------------------------------ GPUs


@pytest.mark.parametrize("width", (60, 80, 120, 160))
def test_every_gpu_shows_how_busy_hot_and_full_it_is(width: int) -> None:
    lines = drawn(launches()["on GPUs"], width)
    assert any("4 × NVIDIA H100 80GB HBM3, bf16" in line for line in lines)
    for k in range(4):
        wanted = rf" +{k} +{k} +{98 - k} +{61 + k} +512 of 700 +18.4 of 79.6 GiB"
        wanted += "  12,346" if width > 60 else ""
        assert any(re.fullmatch(wanted, line) for line in lines), lines
    assert squeezed(["! GPU 3 (rank 3) is slower than it could be: it is too hot, 64 °C"]) in (
        squeezed(lines)
    )


def test_memory_is_of_how_much_where_there_is_room() -> None:
    for name, width, times in (("on GPUs", 160, 4), ("one row", 160, 0), ("on GPUs", 120, 0)):
        text = "\n".join(drawn(launches()[name], width))
        assert text.count("12.0 of 79.6 GiB") == times
    assert " 12.0 GiB" in "\n".join(drawn(launches()["one row"], 160))  # a CPU's


def test_what_no_gpu_tells_has_no_column() -> None:
    silent = {"utilisation": None, "temperature": None, "power": None, "memory_used": None}
    cards = [card(k, **silent, memory_total=None) for k in range(2)]
    waiting = [row(k, "waiting") for k in range(2)]
    lines = drawn(on_gpus(waiting, *cards), 120)
    assert " GPU  ranks" in lines and "   0      0" in lines
    other = drawn(on_gpus(waiting, cards[0], card(1)), 120)
    assert any(re.fullmatch(r" +0 +0 +– +– +– +–", line) for line in other)
    (line,) = [line for line in summary_lines(on_gpus(waiting, *cards)) if "GPU 0" in line]
    assert "None" not in line and "– % busy" in line


def test_gpus_are_told_apart_by_machine_and_kind() -> None:
    tasks = [row(0), row(1)]
    lines = drawn(on_gpus(tasks, card(0, host="node7"), card(0, 1, host="node8")), 120)
    assert any(line.startswith(" node8:0      1") for line in lines), lines
    for width, name in ((120, "Tesla V100-SXM2-32GB"), (80, "Tesla V100-SX")):
        text = "\n".join(drawn(launches()["on shared GPUs of two kinds"], width))
        assert f"5  {name}" in text and "18.4 of 79.6 GiB" in text
    text = "\n".join(drawn(launches()["on shared GPUs of two kinds"], 60))
    assert "Tesla V100-SXM2-32GB, fp16" in squeezed([text]) or "Tesla" in text
    assert "18.4 of 79.6 GiB" in text  # rather than the names
    assert "! GPU 5 (ranks 1, 3) had 2 uncorrected memory errors since" in text


def test_many_ranks_of_a_gpu_push_no_number_out() -> None:
    lines = drawn(on_gpus([row(0)], card(0, *range(0, 32, 2)), card(1, *range(1, 32, 2))), 80)
    assert any(re.match(r" +1  1, 3, …, 31 .* 18.4 of 79.6 GiB", line) for line in lines), lines


def test_a_low_terminal_sums_the_gpus_up() -> None:
    shown = launches()["on GPUs"]
    lines = drawn(shown, 100, height=len(drawn(shown, 100)) - 7)
    assert " 4 GPUs: 96 % busy, GPU 3 least with 95 %, up to 64 °C, 2,049 W" in lines
    assert any("it is too hot" in line for line in lines)
    one = replace(shown, cards=(card(0),))
    assert " 1 GPU: 98 % busy, up to 61 °C, 512 W" in drawn(one, 100, height=12)


def test_gpus_of_a_launch_that_is_over_are_not_shown() -> None:
    over = replace(launches()["on GPUs"], state="stopped")
    assert "GPU " not in "\n".join(drawn(over, 120)) + "\n".join(summary_lines(over))


def test_a_log_has_a_line_a_gpu() -> None:
    text = "\n".join(summary_lines(launches()["on GPUs"]))
    wanted = "  GPU 1   97 % busy   62 °C  512 of 700 W  18.4 of 79.6 GiB  12,346 images/s  rank 1"
    assert wanted in text.splitlines() and text.count(" % busy") == 4
    assert "  ! GPU 3 (rank 3) is slower than it could be" in text
