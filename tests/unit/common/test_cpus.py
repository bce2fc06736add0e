"""A container's quota counts, whichever version of control groups says it, and however deep."""

import os
from pathlib import Path

import pytest

from fusionrun.common.cpus import cpu_limit

V1 = "36 25 0:30 {root} {mount}/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 25 0:38 {root} {mount}/unified rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def a_process(folder: Path, groups: str, root: str = "/") -> Path:
    """A folder as /proc/self is, of a machine whose control groups are mounted in `folder`."""
    (folder / "cgroup").write_text(groups)
    mounts = "22 1 0:5 / /proc rw - proc proc rw\n" + V1 + V2
    (folder / "mountinfo").write_text(mounts.format(root=root, mount=folder))
    return folder


def set_quota(folder: Path, quota: str, period: str = "100000") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if "unified" in folder.parts:
        (folder / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


V1_GROUPS = "5:cpu,cpuacct:/box/inner\n4:memory:/other\n0::/\n"


@pytest.mark.parametrize(
    ("part", "groups"), [("cpu", V1_GROUPS), ("unified", "4:memory:/other\n0::/box/inner\n")]
)
@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [
        ("100000", "100000", 1),
        ("350000", "100000", 3),  # what is left of a CPU is no thread's worth
        ("150000", "50000", 3),
        ("50000", "100000", 1),
        ("max", "100000", 8),
        ("-1", "100000", 8),
        ("9900000", "100000", 8),
        ("nonsense", "100000", 8),
    ],
)
def test_a_quota(
    tmp_path: Path, part: str, groups: str, quota: str, period: str, cpus: int
) -> None:
    set_quota(tmp_path / part / "box/inner", quota, period)
    assert cpu_limit(a_process(tmp_path, groups)) == cpus


@pytest.mark.parametrize("part", ["cpu", "unified"])
def test_the_tightest_of_nested_groups_counts(tmp_path: Path, part: str) -> None:
    process = a_process(tmp_path, "5:cpu,cpuacct:/a/b/c\n0::/a/b/c\n")
    set_quota(tmp_path / part / "a/b/c", "max" if part == "unified" else "-1")
    set_quota(tmp_path / part / "a/b", "600000")
    set_quota(tmp_path / part / "a", "200000")
    assert cpu_limit(process) == 2
    set_quota(tmp_path / part / "a", "700000")
    assert cpu_limit(process) == 6


@pytest.mark.parametrize("groups", ["5:cpu,cpuacct:/docker/1f\n0::/docker/1f\n", "0::/\n5:cpu:/\n"])
@pytest.mark.parametrize("part", ["cpu", "unified"])
def test_in_a_container_its_own_group_is_mounted(tmp_path: Path, groups: str, part: str) -> None:
    set_quota(tmp_path / part, "200000")
    assert cpu_limit(a_process(tmp_path, groups, root="/docker/1f")) == 2


def test_where_nobody_says_anything_the_mask_counts(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path) == 8  # no /proc
    assert cpu_limit(a_process(tmp_path, "0::/\n")) == 8
