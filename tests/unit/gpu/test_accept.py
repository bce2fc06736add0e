"""The acceptance without a GPU: its budget and its file, and each part on one that is pretended."""

import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fusionrun
from fusionrun.study.recipe_yaml import make_recipe
from fusionrun.training import graphs, guard, step
from fusionrun.training import trainer as loop
from tests.bench import gpu_steps
from tests.bench.measure import Bench
from tests.gpu import accept, card, launches, numerics
from tests.gpu.accept import Acceptance, parser
from tests.gpu.part import Part, Verdict, judged
from tests.gpu.parts import PARTS

from .conftest import MIB, Pretended

# ---------------------------------------------------------------- budget, processes, file


def _looks(bench: Bench) -> Verdict:
    return Verdict("pass", "an invented GPU", {"cuda": "13.0", "name": "H100", "memory_bytes": 0})


def _says(verdict: Verdict, bench: Bench) -> Verdict:
    print("some words", bench.device, flush=True)
    return verdict


def _breaks(bench: Bench) -> Verdict:
    raise ValueError("a bug\nwith details")


def _dies(bench: Bench) -> Verdict:
    os._exit(7)


def _hangs(bench: Bench) -> Verdict:
    print("begins to wait", flush=True)
    time.sleep(600)
    return Verdict("pass", "never")


def accepted(
    parts: list[Part], file: Path, capsys: pytest.CaptureFixture[str], budget: float = 60
) -> tuple[int, dict[str, Any], list[str]]:
    """Exit status, what each part came to, and the lines of the terminal."""
    status = Acceptance(parts, budget, file).run()
    tree = json.loads(file.read_text())
    assert tree["not_done"] == []
    return (
        status,
        {part["name"]: part for part in tree["parts"]},
        capsys.readouterr().out.splitlines(),
    )


def test_a_part_that_breaks_dies_or_hangs_spoils_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "PATIENCE", 1)
    good = partial(_says, Verdict("pass", "good", {"number": 3}))
    parts = [
        Part("card", 30, _looks, needs_gpu=False, alone=True),
        Part("breaks", 20, _breaks),
        Part("dies", 20, _dies),
        Part("hangs", 2, _hangs),
        Part("good", 20, good),
        Part("long", 100, good),
    ]
    status, found, lines = accepted(parts, tmp_path / "a.json", capsys)
    assert status == 1
    states = {name: part["state"] for name, part in found.items()}
    assert states == {
        "card": "pass",
        "breaks": "fail",
        "dies": "fail",
        "hangs": "fail",
        "good": "pass",
        "long": "skipped",
    }
    assert found["breaks"]["text"] == "ValueError: a bug with details"
    assert "in _breaks" in found["breaks"]["output"]
    assert found["dies"]["text"] == "its process died: 7"
    assert found["hangs"]["text"] == "not done after 2 s"
    assert found["hangs"]["output"] == "begins to wait"
    assert found["good"]["figures"] == {"number": 3} and found["good"]["output"] == ""
    assert found["long"]["text"] == "no time left"
    assert len(lines) == 7 and lines[-1].startswith("6 parts: 2 pass, 3 fail, 1 skipped (")
    assert any(line.startswith("fail     hangs ") for line in lines)


@pytest.mark.parametrize(
    ("state", "needs_gpu", "status"),
    [("pass", False, 0), ("missed", False, 3), ("pass", True, 3), ("fail", False, 1)],
)
def test_exit_status(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    state: Any,
    needs_gpu: bool,
    status: int,
) -> None:
    parts = [
        Part("first", 20, partial(_says, Verdict("pass", "")), needs_gpu=False),
        Part("second", 20, partial(_says, Verdict(state, "words")), needs_gpu=needs_gpu),
    ]
    found, tree, _ = accepted(parts, tmp_path / "a.json", capsys)
    assert found == status
    if needs_gpu:
        assert tree["second"]["text"] == "torch uses no GPU here"
    if state == "fail":
        assert tree["second"]["output"] == "some words cpu"


def test_the_file_tells_what_is_done_while_others_wait(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    parts = [Part("one", 20, _looks, needs_gpu=False), Part("two", 20, partial(_reads, file))]
    assert Acceptance(parts, 60, file).run() == 0


def _reads(file: Path, bench: Bench) -> Verdict:
    """Of a second part: the first stands in the file."""
    tree = json.loads(file.read_text())
    wrong = [] if [part["name"] for part in tree["parts"]] == ["one"] else [str(tree)]
    wrong += [] if tree["not_done"] == ["two"] else [str(tree)]
    wrong += [] if bench.device.type == "cuda" and bench.on_gpu else [str(bench.device)]
    return judged(wrong, "")


def test_what_the_command_line_can_be_asked() -> None:
    options = parser().parse_args(["--budget", "90", "--json", "a.json", "--only", "waits"])
    assert (options.budget, options.json, options.only) == (90.0, Path("a.json"), ["waits"])
    text = parser().format_help()
    assert all(f"  {part.name} " in text for part in PARTS)
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--only", "nonsense"])


def test_the_table_has_what_may_be_wrong_before_what_is_timed() -> None:
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names) and names[0] == "card"
    alone = [part.alone for part in PARTS[1:]]
    assert alone == sorted(alone)
    assert all(part.needs_gpu for part in PARTS if part.alone and part.name != "card")


def test_only_three_of_what_is_wrong_are_said() -> None:
    assert judged([], "fine", {"a": 1}) == Verdict("pass", "fine", {"a": 1})
    assert judged(["a", "b"], "").text == "a; b"
    assert judged(list("abcde"), "").text == "a; b; c; and 2 more"


# ---------------------------------------------------------------- parts on a pretended GPU


def test_the_card(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    smi = SimpleNamespace(driver="580.1", compute_mode="Default", power_limit=700.0)
    smi.ecc_errors, smi.throttle = 0, ""
    monkeypatch.setattr(card, "read_gpus", lambda timeout: (smi,))
    monkeypatch.setattr(card, "of_device", lambda gpus, device: gpus[0])
    found = card.card(bench)
    assert found.state == "pass"
    assert found.text.startswith("H100, 80.0 GiB, sm_90, driver 580.1, torch ")
    assert found.figures["half_precision"] == "bf16" and "cuda" in found.figures
    smi.throttle = "it is too hot"
    found = card.card(bench)
    assert found.state == "fail" and found.text.endswith("it is too hot")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    found = card.card(bench)
    assert found.state == "fail" and "built for sm_75 sm_80, not for it" in found.text


def test_a_card_that_torch_does_not_use(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "read_gpus", lambda timeout: ())
    assert card.card(bench) == Verdict("skipped", "there is no GPU here")
    monkeypatch.setattr(card, "read_gpus", lambda timeout: (SimpleNamespace(name="Tesla V100"),))
    found = card.card(bench)
    assert found.state == "fail" and "nvidia-smi sees Tesla V100, torch " in found.text


def test_skipped_tests_are_no_passed_ones(
    bench: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "TESTS", "tests/unit/data/test_loader.py")
    found = card.cuda_tests(bench)  # in a process that sees no GPU
    assert (found.state, found.text) == ("fail", "1 skipped")


def test_against_float64(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    found = numerics.float64(bench)
    assert found.state == "pass", found.text
    assert len(found.figures) == 5 * 4  # four experts and a row, four precisions
    assert found.figures["resnet row fp32"]["gradients"] < 1e-4
    assert found.figures["resnet expert bf16"]["gradients"] > 1e-3  # it does compute in less

    monkeypatch.setattr(guard, "FIRST_SCALE", 2.0**40)  # the first steps overflow
    assert numerics.float64(bench).state == "pass"

    healthy = step.heads_of

    def wrong(output: Any) -> torch.Tensor:
        logits = healthy(output)
        return logits * (1.0 if logits.dtype == torch.float64 else 1.1)

    monkeypatch.setattr(step, "heads_of", wrong)
    found = numerics.float64(bench)
    assert found.state == "fail" and "resnet expert fp32: losses differ by " in found.text


def test_waits(bench: Pretended, monkeypatch: pytest.MonkeyPatch, modes: list[str]) -> None:
    monkeypatch.setattr(numerics, "MIXINGS", ("mixup",))
    monkeypatch.setattr(numerics, "STEPS", 1)
    # which suffices where nothing is recorded
    monkeypatch.setattr(gpu_steps, "warm_up", lambda trainer: 1)
    monkeypatch.setattr(graphs, "RECORDS", ())
    policies = {name: numerics.AUGMENTATIONS[name] for name in ("trivialaugment",)}
    monkeypatch.setattr(numerics, "AUGMENTATIONS", policies)
    found = numerics.waits(bench)
    combinations = 4 * 4 * 2  # architectures, precisions, kinds
    assert found.state == "pass" and f"{combinations} steps" in found.text
    assert modes == ["error", "default"] * combinations
    healthy = loop.Trainer.train_step

    def reads(self: loop.Trainer, batch: Any) -> torch.Tensor:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return healthy(self, batch)

    monkeypatch.setattr(loop.Trainer, "train_step", reads)
    found = numerics.waits(bench)
    assert (
        found.state == "fail"
        and "resnet expert fp32 trivialaugment mixup: called a sync" in found.text
    )
    assert f"and {combinations - 3} more" in found.text and modes[-1] == "default"


def test_graph_steps(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "MODELS", ("resnet", "densenet"))
    found = numerics.graph_steps(bench)
    assert found.state == "pass", found.text
    assert list(found.figures) == [
        f"{model} {what}"
        for model in ("resnet", "densenet")
        for what in ("expert, launched", "row, graph", "row, launched")
    ]


def test_short_of_memory(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "FULL_BATCH", 8)
    limits = [1.0]

    def limit(fraction: float, device: torch.device) -> None:
        limits.append(fraction)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    healthy = step.heads_of

    def heads(output: Any) -> torch.Tensor:
        logits = healthy(output)
        if limits[-1] < 1 and len(logits) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    monkeypatch.setattr(step, "heads_of", heads)
    found = numerics.short_of_memory(bench)
    assert found.state == "pass", found.text
    assert "20 MiB instead of 30 MiB: micro-batches of 4, the same numbers" in found.text
    assert limits == [1.0, 20 * MIB / (80 << 30), 1.0]
    monkeypatch.setattr(step, "heads_of", healthy)  # nothing runs out
    assert "batch 8 fits in 20 MiB" in numerics.short_of_memory(bench).text
    monkeypatch.setattr(step, "heads_of", heads)
    held = iter([10 * MIB] * 4)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(held, 900 * MIB))
    found = numerics.short_of_memory(bench)
    assert found.state == "fail" and "890 MiB weren't given back" in found.text


def test_given_back(bench: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(recipe: dict[str, Any], *overrides: str) -> None:
        trained.append(make_recipe(recipe, "recipe", overrides))

    monkeypatch.setattr(fusionrun, "train", train)
    found = numerics.given_back(bench)
    assert (found.state, found.text) == ("pass", "20 MiB held by an idle rank")
    assert [row.label for row in trained[0].rows] == ["improved_wide_resnet"]
    memory = {"reserved_bytes.all.current": 2 << 30, "reserved_bytes.all.allocated": 2 << 20}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: memory)
    found = numerics.given_back(bench)
    assert found.text.startswith("2.0 GiB held by an idle rank, expected below 1 GiB; the row took")


# ---------------------------------------------------------------- launches, without launching


def test_launches_that_end_otherwise_fail(
    bench: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = replace(Bench(bench.device, 1, bench.scratch, print))
    monkeypatch.setattr(launches.Launch, "run", lambda self: 0)
    monkeypatch.setattr(launches.Launch, "stopped", lambda self: [0, 0])
    monkeypatch.setattr(launches.Launch, "killed", lambda self: 0)
    found = launches.same_bits(on_cpu)
    assert found.state == "fail" and "[0, [0, 0], 0], expected [0, [4, 0], 0]" in found.text
    monkeypatch.setattr(launches.Launch, "stopped", lambda self: [4, 0])
    results = iter([1, 1, 2])
    monkeypatch.setattr(launches, "_results", lambda folder: next(results))
    assert launches.same_bits(on_cpu).text == "killed: other numbers than undisturbed"
    assert launches.demo(on_cpu).state == "pass"
    found = launches.broken_task(on_cpu)
    assert "exit status 0, expected 3" in found.text and "broken: no outcome" in found.text
