"""Wrong recipes, flags, data and checkpoints, met as a user meets them: at the command line.

A wrong start is one line on stderr that names the place and what was expected, and changes
nothing; a checkpoint that can't be used fails its row and says why.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusionrun.cli import main
from fusionrun.components.store import ComponentInfo, save_component
from fusionrun.experts import Expert, build_expert
from fusionrun.launch import opening
from fusionrun.monitor.watch import watch
from fusionrun.study.recipe_yaml import dump_recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
output_dir: out
rows:
  - {model: resnet, fusion: concatenation}
data: {name: synthetic, num_classes: 4, train_images: 200, test_images: 40, image_size: 16}
models: {resnet: {width: 8, blocks: [1]}}
experts: {count: 2, epochs: 1, batch_size: 32, augmentation: none, checkpoint_dir: given}
fusion: {epochs: 1, batch_size: 32, augmentation: none}
runtime: {device: cpu, threads: 1}
logs: {tensorboard: false}
status: {every_seconds: 0.05}
"""
TASK = "task-0-resnet-concatenation"


@pytest.fixture(autouse=True)
def as_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of their own with a recipe; a launch leaves the tests' process as it was."""

    def refuse(code: int) -> None:
        raise AssertionError(f"the process would have ended with {code}")

    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    outer = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "SLURM_", "FUSIONRUN_")
    for name in [name for name in os.environ if name.startswith(outer)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "_exit", refuse)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    with_parent = getattr(ctypes.CDLL(None), "prctl", None)
    if with_parent is not None:
        with_parent(1, 0)  # a launch dies with its parent, pytest need not


def tree(folder: Path = Path()) -> dict[str, str]:
    """What lies in `folder`: {path: what it is or a hash of it}."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"to {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder"
    return found


def refuse(
    capsys: pytest.CaptureFixture[str], code: int, *words: str, says: tuple[str, ...]
) -> None:
    """The command ends with `code` and one line on stderr that has all of `says`."""
    capsys.readouterr()
    before = tree()
    found = main(words)
    output = capsys.readouterr()
    messages = [line for line in output.err.splitlines() if line.startswith("fusionrun:")]
    assert (found, len(messages)) == (code, 1), output
    for text in says:
        assert text in messages[0]
    assert output.err.strip() == messages[0]
    assert "Traceback" not in output.out
    after = tree()
    assert {path: after.get(path) for path in before} == before
    if code == 2:
        assert after == before


# ------------------------------------------------------------------ exit 2: the recipe

# (the recipe's bytes or a change of the good one, what the message has)
RECIPES: dict[str, tuple[bytes | Callable[[str], str], tuple[str, ...]]] = {
    "empty": (b"", ("recipe.yaml: found nothing", "expected keys such as output_dir")),
    "only a list": (b"- a\n- b\n", ("recipe.yaml: found a list", "expected keys")),
    "a picture": (b"\x89PNG\r\n\x1a\n\xff\xfe", ("recipe.yaml: is not text in UTF-8",)),
    "broken YAML": (lambda s: s.replace("rows:", "rows: ["), ("recipe.yaml", "line")),
    "tabs": (lambda s: s.replace("  - {", "\t- {"), ("recipe.yaml", "not valid YAML", "\\t")),
    "no output_dir": (
        lambda s: s.replace("output_dir: out", ""),
        ("recipe.yaml: output_dir: found nothing", "expected"),
    ),
    "no rows": (
        lambda s: s.replace("  - {model: resnet, fusion: concatenation}", ""),
        ("recipe.yaml: rows: found nothing", "expected a list"),
    ),
    "key twice": (lambda s: s + "output_dir: b\n", ("recipe.yaml", "'output_dir'", "twice")),
    "unknown key": (
        lambda s: s.replace("epochs: 1", "epoch: 1"),
        ("recipe.yaml: experts.epoch: unknown key", "did you mean 'epochs'?"),
    ),
    "word for number": (
        lambda s: s.replace("train_images: 200", "train_images: many"),
        ("recipe.yaml: data.train_images: found 'many'", "expected a whole number"),
    ),
    "unknown model": (
        lambda s: s.replace("{model: resnet,", "{model: resnet18,"),
        ("recipe.yaml: rows.0.model: found 'resnet18'", "did you mean 'resnet'?"),
    ),
    "unknown fusion": (
        lambda s: s.replace("fusion: concatenation", "fusion: transformer"),
        ("recipe.yaml: rows.0.fusion: found 'transformer'", "TransformerBase"),
    ),
    "same row twice": (
        lambda s: s.replace("rows:", "rows:\n  - {model: resnet, fusion: concatenation}"),
        ("recipe.yaml: rows.1: is the same experiment as rows.0",),
    ),
    "unknown argument": (
        lambda s: s.replace("width: 8", "widht: 8"),
        ("recipe.yaml: models.resnet.widht", "did you mean 'width'?"),
    ),
    "bad argument": (
        lambda s: s.replace("width: 8", "width: -8"),
        ("recipe.yaml: models.resnet", "found -8", "at least 1"),
    ),
    "unknown data set": (
        lambda s: s.replace("synthetic", "imagenet"),
        ("recipe.yaml: data.name: found 'imagenet'", "expected one of: cifar10"),
    ),
    "fusion that can't": (
        lambda s: s.replace("width: 8", "width: 9").replace("concatenation", "TransformerBase"),
        ("recipe.yaml: rows.0.fusion", "found D = 9", "multiple of 8"),
    ),
    "aliases that multiply": (
        lambda s: (
            s + f"checkpoint: {{every_epochs: &a [{'1, ' * 200}], "
            f"every_minutes: [{'*a, ' * 200}]}}\n"
        ),
        ("recipe.yaml: is not valid YAML", "alias"),
    ),
}


@pytest.mark.parametrize(("content", "says"), RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_wrong_recipe(
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: bytes | Callable[[str], str],
    says: tuple[str, ...],
) -> None:
    new = content if isinstance(content, bytes) else content(RECIPE).encode()
    assert new != RECIPE.encode()
    Path("recipe.yaml").write_bytes(new)
    refuse(capsys, 2, command, "recipe.yaml", says=says)


OVERRIDES = {
    "fusion.epcohs=3": ("override 'fusion.epcohs=3'", "fusion.epcohs", "did you mean 'epochs'?"),
    "fusion.epochs=0": ("override 'fusion.epochs=0'", "fusion.epochs: found 0", "above 0"),
    "fusion.epochs=": ("override 'fusion.epochs='", "found None", "a whole number"),
    "fusion.alpha=.nan": ("fusion.alpha: found nan", "a finite number"),
    "fusion.alpha=[": ("override 'fusion.alpha=['", "not valid YAML"),
    "rows.1.seed=3": ("override 'rows.1.seed=3'", "rows.1", "an index from 0 to 0"),
    "rows=": ("override 'rows='", "rows: found nothing", "a list"),
    "runtime.device=gpu": ("runtime.device: found 'gpu'", "auto, cpu, cuda"),
    "models.resnet.blocks=[0]": ("models.resnet", "blocks[0]", "found 0"),
    "models.resnet.num_classes=7": ("models.resnet.num_classes", "blocks, dropout, frozen_stages"),
    "data.image_size=4": ("data.image_size: found 4", "8 or more"),
    "output_dir=": ("output_dir: found None", "text"),
    'output_dir="a\\0b"': ("output_dir: found 'a\\x00b'", "printable"),
    "=3": ("override '=3'", "key=value"),
    f"data.name={'x' * 300}": ("data.name: found 'xxx", "expected one of"),
}


@pytest.mark.parametrize(("override", "says"), OVERRIDES.items(), ids=[k[:30] for k in OVERRIDES])
def test_a_wrong_override(
    capsys: pytest.CaptureFixture[str], override: str, says: tuple[str, ...]
) -> None:
    refuse(capsys, 2, "train", "recipe.yaml", override, says=says)


COMMANDS = {
    "": ("COMMAND", "--help"),
    "trian recipe.yaml": ("'trian'", "--help"),
    "train": ("RECIPE", "--model"),
    "train nowhere.yaml": (
        "nowhere.yaml: no such recipe",
        "expected one of: cifar100, cifar100_all16",
    ),
    "train configs/demmo.yaml": ("configs/demmo.yaml: no such recipe", "did you mean 'demo'?"),
    f"train {'x' * 300}": ("can't be read", "too long"),
    "train .": (".: is a folder", "YAML recipe"),
    "train recipe.yaml fusion.epochs 3": ("found 3 recipes", "expected one"),
    "train recipe.yaml --epoch-s 3": ("--epoch-s", "--help"),
    "train recipe.yaml --epochs three": ("--epochs", "'three'"),
    "train recipe.yaml --epochs": ("--epochs", "expected one argument"),
    "train recipe.yaml --epochs 0": ("command line: fusion.epochs: found 0", "above 0"),
    "train recipe.yaml --batch_size 1": ("command line: fusion.batch_size: found 1", "2 or more"),
    "train recipe.yaml --model resnet": ("--model and --fusion_type", "only one"),
    "train recipe.yaml --fusion_type concatenation": ("--model and --fusion_type", "only one"),
    "train recipe.yaml --model vgg --fusion_type concatenation": ("rows.0.model: found 'vgg'",),
    "train --model resnet": ("--model and --fusion_type",),
    "train recipe.yaml --output_dir= ": ("output_dir", "a folder"),
    "prepare": ("RECIPE", "--help"),
    "prepare fusion.epochs=3": ("prepare needs a RECIPE",),
    "prepare recipe.yaml --epochs 3": ("--epochs", "--help"),
    "watch": ("OUTPUT_DIR", "--help"),
    "watch out more": ("more", "--help"),
    "evaluate": ("OUTPUT_DIR", "--help"),
    "evaluate nowhere": ("nowhere/recipe.yaml: no such recipe",),
}


@pytest.mark.parametrize(("command", "says"), COMMANDS.items(), ids=COMMANDS)
def test_a_wrong_command_line(
    capsys: pytest.CaptureFixture[str], command: str, says: tuple[str, ...]
) -> None:
    refuse(capsys, 2, *command.split(), says=says)


def test_flags_and_overrides_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    """The last word is the mistake: everything before it was understood."""
    long = "rows=[" + ", ".join(f"{{model: resnet, fusion: concatenation, seed: {i}}}"
                                for i in range(20)) + "]"  # fmt: skip
    words = ["train", "--batch_size", "8", "recipe.yaml", long, "--epochs", "2", "fusion.alpha=2"]
    refuse(capsys, 2, *words, "rows.19.alpha=x", says=("'rows.19.alpha=x'", "rows.19.alpha"))


def test_help_and_version_are_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["train", "--help"], ["prepare", "-h"], ["--version"]):
        assert main(words) == 0
        output = capsys.readouterr()
        assert output.out and not output.err


def test_a_wrong_recipe_is_told_without_waiting_for_torch() -> None:
    """And as a real command, with nothing of it in this process."""
    program = (
        "import sys; from fusionrun.cli import main; code = main(sys.argv[1:]); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "recipe.yaml", "fusion.epochs=x"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done
    assert done.stderr.startswith("fusionrun: override 'fusion.epochs=x': fusion.epochs: ")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_only_rank_0_complains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["train", "recipe.yaml", "seed=x"], ["train", "--nothing"]):
        assert main(words) == 2
        assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------ exit 1: it can't start


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "one"}, ("RANK", "'one'", "a whole number")),
        ({"RANK": "2", "WORLD_SIZE": "2"}, ("RANK is 2", "WORLD_SIZE is 2", "torchrun")),
        ({"WORLD_SIZE": "2"}, ("MASTER_ADDR", "WORLD_SIZE is 2", "torchrun")),
        ({"LOCAL_WORLD_SIZE": "0"}, ("LOCAL_WORLD_SIZE", "found 0")),
    ],
)
def test_a_wrong_environment(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    says: tuple[str, ...],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse(capsys, 1, "train", "recipe.yaml", says=says)
    assert not Path("out").exists()


def test_no_gpu_where_one_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    says = ("runtime.device is cuda", "runtime.device=auto")
    refuse(capsys, 1, "train", "recipe.yaml", "runtime.device=cuda", says=says)


def test_an_output_dir_that_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("precious")
    for folder in ("notes.txt", "notes.txt/below", "/dev/null/out"):
        words = ("train", "recipe.yaml", f"output_dir={folder}")
        named = folder.split("/below")[0].split("/out")[0]  # what stands in the way
        refuse(capsys, 1, *words, says=(named, "output_dir", "expected a folder"))
    assert Path("notes.txt").read_text() == "precious"


def test_an_output_dir_where_another_launch_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "PATIENCE", 0.0)
    Path("out/.fusionrun/locks").mkdir(parents=True)
    for name in ("lock", "recipe.lock", f"locks/{TASK}.lock", "locks/experts-resnet.lock"):
        Path("out/.fusionrun", name).touch()  # they are left behind and say nothing
    with Path(f"out/.fusionrun/locks/{TASK}.lock").open("w") as lock:
        lock.write("host elsewhere, pid 4711, since yesterday\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        says = (f"another launch works here on {TASK}", "host elsewhere, pid 4711", "output_dir")
        refuse(capsys, 1, "train", "recipe.yaml", says=says)


def test_an_output_dir_where_another_launch_works_on_another_row() -> None:
    """Its status stays where people look for it, ours stands apart."""
    Path("out/.fusionrun/locks").mkdir(parents=True)
    Path("out/status.json").write_text("theirs")
    with (
        Path("out/.fusionrun/lock").open("w") as folder,
        Path("out/.fusionrun/locks/status.lock").open("w") as status,
    ):
        fcntl.flock(folder, fcntl.LOCK_SH)
        fcntl.flock(status, fcntl.LOCK_SH)
        assert main(["train", "recipe.yaml"]) == 0
    assert Path("out/status.json").read_text() == "theirs"
    assert Path(f"out/.fusionrun/launches/{TASK}/status.json").is_file()
    assert outcome(TASK)["state"] == "done"


def test_the_study_of_a_launch_that_has_only_just_begun_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is trained yet, but somebody is at it: its rows stay, other settings are refused."""
    other = ["rows.0.fusion=multiplicative"]
    begun = load_recipe(Path("recipe.yaml"), other)
    Path("out/.fusionrun/locks").mkdir(parents=True)
    Path("out/.fusionrun/recipe.lock").touch()
    Path("out/recipe.yaml").write_text(dump_recipe(begun))
    with Path("out/.fusionrun/lock").open("w") as folder:
        fcntl.flock(folder, fcntl.LOCK_SH)
        assert main(["train", "recipe.yaml", "--epochs", "2"]) == 2
        assert "fusion.epochs: 1 there, 2 in this recipe" in capsys.readouterr().err
        assert main(["train", "recipe.yaml"]) == 0
    rows = load_recipe(Path("out/recipe.yaml")).rows
    assert [row.fusion for row in rows] == ["multiplicative", "concatenation"]
    assert main(["train", "recipe.yaml", *other, "--epochs", "1"]) == 0


def test_nothing_to_watch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(watch.__kwdefaults__, "wait_seconds", 0.5)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/status.json").write_text("{")
    before = tree()
    for folder in ("nowhere", "empty", "broken", "recipe.yaml"):
        assert main(["watch", folder]) == 1
        output = capsys.readouterr()
        assert f"{folder}/status.json" in output.err
        waits = folder in ("nowhere", "empty")
        assert ("waits for one to begin" in output.out) == waits, output.out
        assert len(output.err.splitlines()) == 1
    assert tree() == before


def test_launch_sh_is_told_the_status_by_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun would take a status other than 0 for a crash, and start everything again."""
    monkeypatch.setenv("FUSIONRUN_EXIT_FILE", "status")
    assert main(["train", "recipe.yaml", "seed=x"]) == 0
    assert Path("status").read_text() == "2\n"
    assert main(["train", "recipe.yaml", "output_dir=recipe.yaml"]) == 0
    assert Path("status").read_text() == "1\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "recipe.yaml", "seed=x"]) == 0
    assert Path("status").read_text() == "1\n"  # one rank of the machine writes it
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_rank_that_falls_has_left_the_sign_that_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """launch.sh tells by it what could not start from what stopped before the end."""

    def falls(*_: object) -> int:
        assert Path("status").read_text() == ""
        raise ZeroDivisionError

    monkeypatch.setenv("FUSIONRUN_EXIT_FILE", "status")
    monkeypatch.setattr("fusionrun.commands.train.run", falls)
    with pytest.raises(ZeroDivisionError):
        main(["train", "recipe.yaml"])
    assert Path("status").read_text() == ""


# ------------------------------------------------------------------ exit 1: the data


def images(folder: Path, classes: str = "ab", count: int = 3) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (40 * i, 9, 200)).save(folder / name / f"{i}.png")


def image_folder(change: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """A good image folder, and what is wrong with it."""

    def build(root: Path) -> list[str]:
        images(root / "train", count=20)
        images(root / "test")
        change(root)
        return ["data.name=image_folder", "data.train_images=null", "data.test_images=null"]

    return build


def cifar_archive(root: Path) -> list[str]:
    root.mkdir()
    (root / "cifar-100-python.tar.gz").write_bytes(b"\x1f\x8b half a download")
    return ["data.name=cifar100", "data.image_size=32"]


def cifar_files(root: Path) -> list[str]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": [1]}))
    return ["data.name=cifar10", "data.image_size=32"]


def without(*parts: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for part in parts:
            shutil.rmtree(root / part)

    return remove


def empty_class(root: Path) -> None:
    for file in (root / "train" / "b").iterdir():
        file.unlink()


def no_images(root: Path) -> None:
    for file in (root / "test" / "a").iterdir():
        file.write_text("not an image")


def a_file(root: Path) -> list[str]:
    root.write_text("a file")
    return ["data.name=image_folder"]


def cache_in_a_file(root: Path) -> list[str]:
    (root.parent / "file").touch()
    return [*image_folder(lambda root: None)(root), "data.cache_dir=file/cache"]


def splits_in_a_file(root: Path) -> list[str]:
    root.touch()
    return ["data.splits_dir=set/splits"]


# (what lies at data.root and overrides for it, what the message has)
DATA: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
    "no cifar100": (
        lambda root: ["data.name=cifar100", "data.image_size=32"],
        ("set/cifar-100-python", "not found", "data.download=true"),
    ),
    "cifar100 of another size": (
        lambda root: ["data.name=cifar100"],
        ("image_size is 16", "32x32"),
    ),
    "half an archive": (cifar_archive, ("set/cifar-100-python.tar.gz", "checksum")),
    "broken cifar10": (cifar_files, ("set/cifar-10-batches-py/data_batch_1", "wrong checksum")),
    "no folder": (lambda root: ["data.name=image_folder"], ("set/train", "cannot be listed")),
    "a file for a folder": (a_file, ("set/train", "cannot be listed")),
    "no train": (image_folder(without("train")), ("set/train: cannot be listed", "data.root")),
    "no test": (image_folder(without("test")), ("set/test: cannot be listed", "data.test_folder")),
    "empty class": (image_folder(empty_class), ("set/train/b", "no usable image")),
    "no image is one": (image_folder(no_images), ("set/test/a", "no usable image")),
    "another class in test": (
        image_folder(lambda root: images(root / "test", "c")),
        ("set: train and test hold different class", "only in test: ['c']"),
    ),
    "one class": (
        image_folder(without("train/b", "test/b")),
        ("set/train", "found 1 class", "at least 2"),
    ),
    "too few images for the splits": (
        lambda root: ["data.train_images=4", "experts.count=4"],
        ("would be empty", "Use more data"),
    ),
    "too many classes": (lambda root: ["data.num_classes=1000"], ("num_classes is 1000",)),
    "fewer images than classes": (lambda root: ["data.train_images=3"], ("train_images is 3",)),
    "images too small": (lambda root: ["data.image_size=8"], ("image_size is 8", "at least 16")),
    "more experts than classes": (
        lambda root: ["data.split=non_iid", "experts.count=5"],
        ("num_experts is 5", "4 classes"),
    ),
    "cache in a file": (cache_in_a_file, ("file/cache",)),
    "splits in a file": (
        splits_in_a_file,
        ("folder", "data.splits_dir"),
    ),
}


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize(("build", "says"), DATA.values(), ids=DATA)
def test_wrong_data(
    capsys: pytest.CaptureFixture[str],
    command: str,
    build: Callable[[Path], list[str]],
    says: tuple[str, ...],
) -> None:
    overrides = build(Path("set"))
    refuse(capsys, 1, command, "recipe.yaml", "data.root=set", *overrides, says=says)


def cut_off(name: str) -> Callable[[Path], list[str]]:
    def damage(folder: Path) -> list[str]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        return []

    return damage


def all_the_same(folder: Path) -> list[str]:
    path = folder / "fusion_holdout_indices.npy"
    np.save(path, np.ones_like(np.load(path)))
    return []


def indices_gone(folder: Path) -> list[str]:
    (folder / "expert_train_indices.npy").unlink()
    return []


SPLITS: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
    "of other data": (lambda folder: ["data.train_images=240"], ("split_meta.json", "fingerprint")),
    "of another seed": (lambda folder: ["data.seed=7"], ("split_meta.json", "expected")),
    "for more experts": (
        lambda folder: ["experts.count=3"],
        ("split_meta.json: num_experts is 2, expected 3",),
    ),
    "record cut off": (cut_off("split_meta.json"), ("split_meta.json", "JSON")),
    "indices cut off": (
        cut_off("fusion_holdout_indices.npy"),
        ("fusion_holdout_indices.npy", "an .npy file of indices"),
    ),
    "indices replaced": (all_the_same, ("fusion_holdout_indices.npy", "repeated")),
    "indices gone": (indices_gone, ("expert_train_indices.npy", "an .npy file")),
}


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize(("damage", "says"), SPLITS.values(), ids=SPLITS)
def test_wrong_splits(
    capsys: pytest.CaptureFixture[str],
    command: str,
    damage: Callable[[Path], list[str]],
    says: tuple[str, ...],
) -> None:
    assert main(["prepare", "recipe.yaml", "data.splits_dir=splits"]) == 0
    overrides = ["data.splits_dir=splits", *damage(Path("splits"))]
    refuse(capsys, 1, command, "recipe.yaml", *overrides, says=says)


# ------------------------------------------------------------------ exit 3: the experts


def expert(model: str = "resnet", classes: int = 4, **arguments: Any) -> Expert:
    torch.manual_seed(3)
    return build_expert(model, classes, **(arguments or {"width": 8, "blocks": [1]}))


def bare(path: Path, module: torch.nn.Module) -> None:
    torch.save(module.state_dict(), path)


def bytes_of(module: torch.nn.Module, path: Path) -> bytes:
    bare(path, module)
    return path.read_bytes()


def nan_weights(path: Path) -> None:
    state = expert().state_dict()
    state["classifier.bias"][2] = torch.nan
    torch.save(state, path)


def damaged(path: Path) -> None:
    """One flipped bit in the middle of the weights."""
    content = bytearray(bytes_of(expert(), path))
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("intruder-was-here", "w")


def other_classes(path: Path) -> None:
    """A checkpoint of ours, but for five classes."""
    about = ComponentInfo(
        component="expert", model="resnet", arguments={"width": 8, "blocks": [1]}, num_classes=5,
        feature_dim=8, num_experts=2, classes=list("abcde"), mean=[0.5] * 3, std=[0.2] * 3,
        image_size=16, epoch=1, val_accuracy=50.0, expert=0,
    )  # fmt: skip
    save_component(path, expert(classes=5), about)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (lambda path: path.touch(), ("is empty",)),
    "text": (lambda path: path.write_text("weights, honestly\n" * 50), ("is a text file",)),
    "cut off": (
        lambda path: path.write_bytes(bytes_of(expert(), path)[:-300]),
        ("its end is missing",),
    ),
    "only the first half": (
        lambda path: path.write_bytes(bytes_of(expert(), path)[:5000]),
        ("its end is missing",),
    ),
    "a flipped bit": (damaged, ("damaged",)),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), ("is a pickle",)),
    "a pickle that runs code": (
        lambda path: path.write_bytes(pickle.dumps(Intruder())),
        ("is a pickle",),
    ),
    "an archive that runs code": (
        lambda path: torch.save({"state_dict": Intruder()}, path),
        ("could run code", "refused"),
    ),
    "a whole model": (
        lambda path: torch.save(expert(), path),
        ("holds a whole network", "state_dict()"),
    ),
    "a list": (lambda path: torch.save([1, 2], path), ("found list", "expected a state dict")),
    "numbers, no tensors": (
        lambda path: torch.save(dict.fromkeys(expert().state_dict(), 1.0), path),
        ("holds no tensors",),
    ),
    "nothing in it": (lambda path: torch.save({}, path), ("holds no tensors",)),
    "another architecture": (
        lambda path: bare(path, expert("densenet", growth=4, blocks=[1], stem=8)),
        ("doesn't fit this ResNet", "lacks"),
    ),
    "another width": (
        lambda path: bare(path, expert(width=16, blocks=[1])),
        ("found shape (16,", "expected (8,", "models"),
    ),
    "another depth": (
        lambda path: bare(path, expert(width=8, blocks=[2])),
        ("doesn't fit this ResNet", "has unknown", "stage1.1."),
    ),
    "another number of classes": (
        lambda path: bare(path, expert(classes=5)),
        ("found shape (5,", "expected (4,", "for 5 classes"),
    ),
    "ours, another number of classes": (other_classes, ("for 5 classes",)),
    "not a number": (nan_weights, ("not finite", "classifier.bias")),
    # even root can't read its own memory from the start
    "unreadable": (lambda path: path.symlink_to("/proc/self/mem"), ()),
}


def outcome(task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"out/.fusionrun/outcomes/{task}.json").read_text())
    return found


@pytest.mark.parametrize(("make", "says"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_an_expert_that_cannot_be_used_is_refused_or_fails_its_row(
    capsys: pytest.CaptureFixture[str], make: Callable[[Path], object], says: tuple[str, ...]
) -> None:
    folder = Path("given/resnet")
    folder.mkdir(parents=True)
    make(folder / "expert_0_best.pth")
    bare(folder / "expert_1_best.pth", expert())
    before = tree(Path("given"))
    capsys.readouterr()
    status = main(["train", "recipe.yaml"])
    output = capsys.readouterr()
    told, log = output.err, Path(f"out/logs/{TASK}.log")
    if status == 3:  # only reading all of the weights shows it
        found = outcome(TASK)
        assert found["state"] == "failed"
        told = log.read_text().splitlines()[-1]
        assert all(text in found["note"] for text in says)
    else:
        assert status == 1 and not log.exists()
    for text in ("given/resnet/expert_0_best.pth", *says):
        assert text in told
    assert "Traceback" not in output.out + output.err
    assert tree(Path("given")) == before
    assert not Path("intruder-was-here").exists()
    assert not Path("out/resnet_fusions").exists()


def test_the_intruder_is_a_real_one() -> None:
    """Loaded without care it does leave its file: the tests above could fail."""
    torch.save({"state_dict": Intruder()}, "file.pth")
    torch.load("file.pth", weights_only=False)
    assert Path("intruder-was-here").exists()
    Path("intruder-was-here").unlink()
    pickle.loads(pickle.dumps(Intruder()))
    assert Path("intruder-was-here").exists()


def test_a_folder_in_the_experts_place(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("given/resnet/expert_0_best.pth")
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("precious")
    says = ("given/resnet/expert_0_best.pth: is a folder, expected", "move it away")
    refuse(capsys, 1, "train", "recipe.yaml", says=says)
    assert (path / "notes.txt").read_text() == "precious"


def test_the_same_command_goes_on_once_it_is_mended(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("given/resnet")
    folder.mkdir(parents=True)
    (folder / "expert_0_best.pth").touch()
    bare(folder / "expert_1_best.pth", expert())
    assert main(["train", "recipe.yaml"]) == 1
    bare(folder / "expert_0_best.pth", expert())
    assert main(["train", "recipe.yaml"]) == 0
    assert outcome(TASK)["state"] == "done"
    capsys.readouterr()
    before = tree(Path("out"))
    assert main(["train", "recipe.yaml", "--epochs", "2"]) == 2  # another experiment
    said = capsys.readouterr().err
    assert "out/recipe.yaml (the study in this folder): was made with other settings" in said
    assert "fusion.epochs: 1 there, 2 in this recipe" in said and "Traceback" not in said
    assert tree(Path("out")) == before
    assert main(["train", "recipe.yaml"]) == 0


def test_one_row_by_flags_reads_the_experts_it_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder with all models' experts, or the model's own."""
    folder = Path("elsewhere/resnet")
    folder.mkdir(parents=True)
    for k in range(2):
        bare(folder / f"expert_{k}_best.pth", expert())
    before = tree(Path("elsewhere"))
    for given in ("elsewhere", "elsewhere/resnet", "elsewhere/resnet/"):
        flags = f"--model resnet --fusion_type simpleAddition --checkpoint_dir {given} --epochs 2"
        output_dir = f"run-{len(given)}"
        assert main(["train", "recipe.yaml", *flags.split(), "--output_dir", output_dir]) == 0
        manifest = Path(output_dir, "resnet_fusions/simpleAddition/manifest.json")
        settings = json.loads(manifest.read_text())["settings"]
        assert (settings["fusion"], settings["fusion.epochs"]) == ("simpleAddition", 2)
    assert tree(Path("elsewhere")) == before
    assert not Path("given").exists() and not Path("out").exists()
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}'])
def test_a_damaged_manifest_fails_its_row_and_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], content: str
) -> None:
    manifest = Path("out/resnet_fusions/concatenation/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(content)
    assert main(["train", "recipe.yaml"]) == 3
    assert "Traceback" not in "".join(capsys.readouterr())
    note = outcome(TASK)["note"]
    assert note.startswith(f"{manifest}: ")
    assert note in Path(f"out/logs/{TASK}.log").read_text()
    assert manifest.read_text() == content
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]


# --- experts that this recipe wouldn't train ----------------------------------------------------


def test_experts_of_another_recipe_are_not_passed_off_as_this_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = ["train", "recipe.yaml", "experts.checkpoint_dir=null"]
    assert main(own) == 0
    before = tree(Path("out"))
    capsys.readouterr()
    assert main([*own, "experts.epochs=2", "rows.0.fusion=simpleAddition"]) == 2
    assert "experts.epochs: 1 there, 2 in this recipe" in capsys.readouterr().err
    Path("out/recipe.yaml").unlink()  # the experts' own files say so too
    assert main([*own, "experts.epochs=2", "rows.0.fusion=simpleAddition"]) == 2
    said = capsys.readouterr().err
    assert "expert_0_best.pth: was made with other settings" in said
    assert "experts.epochs: 1 there, 2 in this recipe" in said
    del before["out/recipe.yaml"]
    assert tree(Path("out")) == before


def test_experts_from_elsewhere_may_be_trained_otherwise_but_not_on_other_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "recipe.yaml"]) == 0
    other = ["train", "recipe.yaml", "output_dir=other", "experts.epochs=2"]
    assert main(other) == 2
    assert "experts.epochs: 1 there, 2 in this recipe" in capsys.readouterr().err
    assert not Path("other").exists()
    other.append("experts.pattern={model}/expert_{k}_best.pth")  # these are meant
    assert main(other) == 0
    capsys.readouterr()
    assert main([*other, "output_dir=third", "data.seed=7"]) == 2
    assert "data.seed: 42 there, 7 in this recipe" in capsys.readouterr().err
    assert not Path("third").exists()
