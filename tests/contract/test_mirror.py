"""Every file of the package has its tests where one looks for them."""

from pathlib import Path

from tests.tiny import ROOT

PACKAGE, UNIT = ROOT / "fusionrun", ROOT / "tests/unit"

# What tests the files that have no test file of their own, below tests/.
TESTED_BY: dict[str, str] = {
    "*.py": "integration/test_bad_input.py",
    "commands/*.py": "integration/test_bad_input.py",
    "common/complexity.py": "unit/study/test_study.py",
    "common/exit_status.py": "integration/test_bad_input.py",
    "common/version.py": "contract/test_packaging.py",
    "common/seeds.py": "unit/robustness/test_corruptions.py",
    "components/*.py": "unit/components/test_store.py",
    "data/augmentation/policies.py": "unit/data/test_batch.py",
    "data/datasets/decode.py": "unit/data/test_image_folder.py",
    "data/datasets/folder_notes.py": "unit/data/test_image_folder.py",
    "data/datasets/request.py": "unit/data/test_datasets.py",
    "data/errors.py": "unit/data/test_split_files.py",
    "data/room.py": "unit/evaluation/test_measuring.py",
    "evaluation/*.py": "unit/evaluation/test_evaluate.py",
    "evaluation/statistics/*.py": "unit/evaluation/test_evaluate.py",
    "experts/*.py": "unit/experts/test_experts.py",
    "fusions/*.py": "unit/fusions/test_fusions.py",
    "launch/*.py": "integration/test_launch.py",
    "launch/checks/*.py": "unit/launch/test_preflight.py",
    "logs/*.py": "unit/logs/test_logs.py",
    "monitor/*.py": "unit/monitor/test_live.py",
    "report/*.py": "unit/report/test_report.py",
    "report/sections/*.py": "unit/report/test_report.py",
    "robustness/*.py": "unit/robustness/test_measure.py",
    "study/*.py": "unit/study/test_study.py",
    "tables/*.py": "unit/tables/test_tables.py",
    "training/*.py": "unit/training/test_trainer.py",
}


def has_own_tests(path: Path) -> bool:
    """Whether tests/unit/<room> has a test_<file>.py."""
    rooms = path.relative_to(PACKAGE).parts[:-1]
    return any((UNIT / "/".join(rooms[:1])).rglob(f"test_{path.stem}.py"))


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def test_every_file_is_tested_under_its_name_or_as_the_table_says() -> None:
    named = {path for pattern in TESTED_BY for path in PACKAGE.glob(pattern)}
    missing = [
        str(p.relative_to(PACKAGE)) for p in FILES if p not in named and not has_own_tests(p)
    ]
    assert missing == []


def test_the_table_says_nothing_that_is_not_so() -> None:
    for pattern, tests in TESTED_BY.items():
        assert (ROOT / "tests" / tests).is_file(), tests
        files = [path for path in FILES if path in PACKAGE.glob(pattern)]
        assert not all(map(has_own_tests, files)), f"{pattern}: nothing needs this line"


def test_tests_of_a_room_lie_in_its_folder() -> None:
    rooms = {path.name for path in PACKAGE.iterdir()} | {"bench", "gpu"}  # have tests, too
    assert {path.parent.name for path in UNIT.glob("*/test_*.py")} <= rooms
