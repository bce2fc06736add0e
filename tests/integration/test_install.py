"""`pip install` of the checkout, then the command from elsewhere."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fusionrun
from fusionrun.study.shipped_recipes import shipped_recipes
from tests.tiny import ROOT, environment

SHORT = (
    "rows=[{model: resnet, fusion: concatenation}]",
    "data.train_images=400",
    "experts.count=2",
    "experts.epochs=1",
    "fusion.epochs=1",
    "logs.tensorboard=false",
)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment that has this one's packages and an installed copy."""
    folder = tmp_path_factory.mktemp("installed")
    skip = shutil.ignore_patterns(".*", "runs", "data-*", "__pycache__")
    for name in ("fusionrun", "configs"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=skip)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "copy")
    bin = folder / "environment/bin"
    run = subprocess.check_call
    run([sys.executable, "-m", "venv", "--without-pip", folder / "environment"])
    (site,) = (folder / "environment/lib").glob("python3*/site-packages")
    inherited = [path for path in sys.path if path.endswith("-packages")]
    (site / "inherited.pth").write_text("".join(f"{path}\n" for path in inherited))
    pip = [sys.executable, "-m", "pip", "--python", bin / "python", "--disable-pip-version-check"]
    words = ["install", "--quiet", "--no-deps", "--ignore-installed", folder / "copy"]
    if importlib.util.find_spec("hatchling"):
        words.append("--no-build-isolation")  # no network needed
    run([*pip, *words], env=bare())
    shutil.rmtree(folder / "copy")
    return bin / "fusionrun"


def bare() -> dict[str, str]:
    """As a user's shell that knows nothing of the checkout."""
    return {key: value for key, value in environment().items() if key != "PYTHONPATH"}


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=bare(), capture_output=True, text=True, timeout=110
    )


def test_the_command_and_the_module_are_one(script: Path, tmp_path: Path) -> None:
    as_module = (script.parent / "python", "-m", "fusionrun")
    for words in (["--help"], ["train", "--help"], ["--version"], ["train"], ["evaluate", "no"]):
        ours, other = call(script, *words, cwd=tmp_path), call(*as_module, *words, cwd=tmp_path)
        found = (ours.returncode, ours.stdout, ours.stderr)
        assert found == (other.returncode, other.stdout, other.stderr)
    assert call(script, "--version", cwd=tmp_path).stdout == f"{fusionrun.__version__}\n"


def test_it_finds_the_demo_from_any_folder(script: Path, tmp_path: Path) -> None:
    done = call(script, "train", "demo", "output_dir=out", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/resnet_fusions/concatenation/manifest.json").is_file()
    shown = call(script, "evaluate", "out", cwd=tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    page = call(script, "report", "out", cwd=tmp_path)
    assert page.returncode == 0, page.stdout + page.stderr
    assert (tmp_path / "out/report.html").is_file()


def test_the_package_brings_its_recipes_and_types(script: Path, tmp_path: Path) -> None:
    program = (
        "import fusionrun; from pathlib import Path; p = Path(fusionrun.__file__).parent; "
        "print(*sorted(str(f.relative_to(p)) for f in p.rglob('*') if f.is_file()))"
    )
    found = call(script.parent / "python", "-c", program, cwd=tmp_path).stdout.split()
    installed = {name for name in found if not name.endswith((".py", ".pyc"))}
    own = {str(path.relative_to(ROOT / "fusionrun")) for path in (ROOT / "fusionrun").rglob("*.*")}
    others = {name for name in own if not name.endswith((".py", ".pyc"))}
    recipes = {f"configs/{path.name}" for path in shipped_recipes().values()}
    assert installed == others | recipes and "py.typed" in installed


def test_a_launch_of_several_ranks(script: Path, tmp_path: Path) -> None:
    torchrun = (script.parent / "python", "-m", "torch.distributed.run", "--standalone")
    words = ("--nproc-per-node=2", "-m", "fusionrun", "train", "demo.yaml", "output_dir=out")
    done = call(*torchrun, *words, *SHORT, "runtime.threads=1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208
