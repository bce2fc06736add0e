"""Which W&B run a task is: another experiment is another run, a resumed one the same."""

import shutil
from pathlib import Path

import pytest

from fusionrun.logs.wandb import run_id


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "out/.fusionrun/wandb/resnet/concatenation.json"


def in_place_of(record: Path, out: Path) -> Path:
    return out / record.relative_to(record.parents[3])


def test_a_resumed_task_is_the_same_run(record: Path) -> None:
    first = run_id(record, resumed=False)
    assert run_id(record, resumed=True) == first == run_id(record, resumed=True)


def test_another_experiment_at_the_same_path_is_another_run(record: Path) -> None:
    ids = {run_id(record, resumed=False)}
    ids.add(run_id(record, resumed=False))  # removed and begun again
    shutil.rmtree(record.parents[3])
    ids.add(run_id(record, resumed=True))
    assert len(ids) == 3


def test_a_moved_folder_goes_on_with_its_run_and_who_comes_after_it_does_not(
    record: Path, tmp_path: Path
) -> None:
    first = run_id(record, resumed=False)
    record.parents[3].rename(tmp_path / "moved")
    moved = in_place_of(record, tmp_path / "moved")
    assert run_id(record, resumed=False) != first  # the next study at the old path
    assert run_id(moved, resumed=True) == first == run_id(moved, resumed=True)


def test_a_copy_beside_its_original_is_a_run_of_its_own(record: Path, tmp_path: Path) -> None:
    first = run_id(record, resumed=False)
    shutil.copytree(record.parents[3], tmp_path / "copy")
    copy = in_place_of(record, tmp_path / "copy")
    second = run_id(copy, resumed=True)
    assert second != first
    assert run_id(copy, resumed=True) == second
    assert run_id(record, resumed=True) == first


def test_a_link_to_the_folder_is_the_folder(record: Path, tmp_path: Path) -> None:
    first = run_id(record, resumed=False)
    (tmp_path / "link").symlink_to(record.parents[3])
    assert run_id(in_place_of(record, tmp_path / "link"), resumed=True) == first


def test_a_damaged_record_is_written_again(record: Path) -> None:
    first = run_id(record, resumed=False)
    record.write_text("{")
    assert run_id(record, resumed=True) not in ("", first)
