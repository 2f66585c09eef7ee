"""Trees of files as kernels and containers show them; and this machine's own group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.control import cgroup
from mlxd.control.cgroup import Limit
from tests.support.cgroup import memory_limit

GIB = 2**30
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2_MOUNT = "41 31 0:38 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw"
CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


class Tree:
    """A root folder with `proc` and cgroup hierarchies of the test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def proc(self, memberships: str, *mounts: str) -> None:
        folder = self.root / "proc/self"
        folder.mkdir(parents=True)
        (folder / "cgroup").write_text(memberships)
        (folder / "mountinfo").write_text("\n".join(("1 0 8:1 / / rw - ext4 /dev/x rw", *mounts)))

    def v1(
        self,
        folder: str,
        limit: int,
        used: int = 0,
        inactive: int = 0,
        active: int = 0,
        mapped: int = 0,
    ) -> None:
        here = self._made(f"sys/fs/cgroup/memory/{folder}")
        (here / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (here / "memory.usage_in_bytes").write_text(f"{used}\n")
        stat = f"cache 5\ninactive_file 1\nactive_file 1\ntotal_inactive_file {inactive}\n"
        stat += f"total_active_file {active}\ntotal_mapped_file {mapped}\n"
        (here / "memory.stat").write_text(stat)

    def v2(
        self,
        folder: str,
        limit: str,
        used: int = 0,
        inactive: int = 0,
        active: int = 0,
        mapped: int = 0,
        high: str = "max",
    ) -> None:
        here = self._made(f"sys/fs/cgroup/{folder}")
        (here / "memory.max").write_text(f"{limit}\n")
        (here / "memory.high").write_text(f"{high}\n")
        (here / "memory.current").write_text(f"{used}\n")
        stat = f"anon 5\nfile_mapped {mapped}\ninactive_file {inactive}\nactive_file {active}\n"
        (here / "memory.stat").write_text(stat)

    def limits(self) -> list[Limit]:
        group = cgroup.own_group(self.root)
        return list(cgroup.limits(group)) if group is not None else []

    def _made(self, folder: str) -> Path:
        here = self.root / folder
        here.mkdir(parents=True, exist_ok=True)
        return here


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


UNLIMITED = 9223372036854771712


def test_version_1_beside_an_empty_version_2(tree: Tree) -> None:
    tree.proc(
        "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n",
        CPU_MOUNT,
        V1_MOUNT.format(root="/"),
        V2_MOUNT.format(root="/", point="/sys/fs/cgroup/unified"),
    )
    tree.v1("a/b", 4 * GIB, used=3 * GIB, inactive=GIB)
    tree.v1("a", UNLIMITED)
    tree.v1("", UNLIMITED)
    (limit,) = tree.limits()
    assert limit == Limit(4 * GIB, 2 * GIB)
    assert (limit.available, limit.share) == (2 * GIB, 0.5)


def test_version_2_with_a_limit_further_up(tree: Tree) -> None:
    tree.proc("0::/work.slice/mlxd.service\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("work.slice/mlxd.service", "max")
    tree.v2("work.slice", str(8 * GIB), used=6 * GIB, inactive=GIB)
    (tree.root / "sys/fs/cgroup/memory.stat").write_text("")  # the root has no limit and no usage
    assert tree.limits() == [Limit(8 * GIB, 5 * GIB)]


def test_a_limit_from_which_on_the_kernel_slows_a_group_down_counts(tree: Tree) -> None:
    tree.proc("0::/mlxd\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("mlxd", str(8 * GIB), high=str(6 * GIB))
    assert tree.limits() == [Limit(6 * GIB, 0)]


def test_a_process_that_is_moved_has_the_limits_of_where_it_is(tree: Tree) -> None:
    tree.proc("0::/a\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("a", str(2 * GIB))
    tree.v2("b", str(3 * GIB))
    assert tree.limits() == [Limit(2 * GIB, 0)]
    (tree.root / "proc/self/cgroup").write_text("0::/b\n")
    assert tree.limits() == [Limit(3 * GIB, 0)]


def test_a_container_that_sees_its_own_group_as_the_root(tree: Tree) -> None:
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("", str(2 * GIB), used=GIB)
    assert tree.limits() == [Limit(2 * GIB, GIB)]


def test_a_container_whose_path_is_one_of_the_host(tree: Tree) -> None:
    tree.proc("7:memory:/docker/f00\n", V1_MOUNT.format(root="/docker/f00"))
    tree.v1("", 2 * GIB, used=GIB)
    assert tree.limits() == [Limit(2 * GIB, GIB)]
    (tree.root / "proc/self/cgroup").write_text("7:memory:/kubepods/pod1/f00\n")
    assert tree.limits() == [Limit(2 * GIB, GIB)]


def test_a_container_whose_path_leads_out_of_its_namespace(tree: Tree) -> None:
    mount = V2_MOUNT.format(root="/../..", point="/sys/fs/cgroup")
    tree.proc("0::/../other\n", mount)
    tree.v2("", str(2 * GIB))
    assert tree.limits() == [Limit(2 * GIB, 0)]


def test_a_mount_point_with_a_space_in_it(tree: Tree) -> None:
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup/a\\040b"))
    tree.v2("a b", str(GIB))
    assert tree.limits() == [Limit(GIB, 0)]


@pytest.mark.parametrize("file", ["memory.max", "memory.current", "memory.stat"])
def test_a_level_that_cannot_be_read_leaves_the_others(tree: Tree, file: str) -> None:
    tree.proc("0::/a/b\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("a", str(4 * GIB), used=GIB)
    tree.v2("a/b", str(2 * GIB))
    level = tree.root / "sys/fs/cgroup/a/b"
    (level / file).write_text("inactive_file nonsense")
    assert tree.limits() == [Limit(4 * GIB, GIB)]
    (level / file).unlink()
    (level / file).mkdir()
    assert tree.limits() == [Limit(4 * GIB, GIB)]


def test_a_system_without_memory_cgroups_has_no_limit(tree: Tree) -> None:
    tree.proc("1:cpu:/\n", CPU_MOUNT)
    assert tree.limits() == []


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_were_read_twice_are_given_up_and_programs_that_run_are_not(
    tree: Tree, version: int
) -> None:
    used, inactive, active, mapped = 3 * GIB, GIB // 4, 2 * GIB, GIB // 2
    if version == 1:
        tree.proc("4:memory:/a\n", V1_MOUNT.format(root="/"))
        tree.v1("a", 4 * GIB, used, inactive, active, mapped)
    else:
        tree.proc("0::/a\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
        tree.v2("a", str(4 * GIB), used, inactive, active, mapped)
    assert tree.limits() == [Limit(4 * GIB, 5 * GIB // 4)]


def test_what_is_mapped_of_files_that_nobody_used_lately_is_given_up(tree: Tree) -> None:
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("", str(GIB), used=GIB // 2, inactive=GIB // 4, active=0, mapped=GIB // 4)
    assert tree.limits() == [Limit(GIB, GIB // 4)]


def test_more_reclaimable_than_used_is_nothing_used(tree: Tree) -> None:
    tree.proc("0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.v2("", str(GIB), used=5, inactive=6)
    assert tree.limits() == [Limit(GIB, 0)]


def test_weights_that_are_read_again_leave_as_much_for_others(tmp_path: Path) -> None:
    """As loads do: a page that is read twice counts as in use."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(150 * 2**20))
    drop = "import os; f = os.open(sys.argv[1], os.O_RDONLY); os.fsync(f);"
    drop += "os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED);"
    program = (
        f"import sys; {drop}"
        "from mlxd.control.memory import read_memory; before = read_memory().available;"
        "[sum(map(len, iter(lambda: f.read(2**20), b''))) for _ in range(4)"
        " for f in [open(sys.argv[1], 'rb')]];"
        "print(before - read_memory().available)"
    )
    with memory_limit(300 * 2**20) as group:
        done = subprocess.run(
            [*group.prefix, sys.executable, "-c", program, str(file)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    assert int(done.stdout) < 50 * 2**20


def test_a_real_limit_is_found_by_a_process_inside() -> None:
    program = (
        "from mlxd.control.memory import read_memory; r = read_memory();"
        "print(r.total, r.available, r.limit_share)"
    )
    with memory_limit(300 * 2**20) as group:
        done = subprocess.run(
            [*group.prefix, sys.executable, "-c", program],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    total, available, share = done.stdout.split()
    assert int(total) == group.limit
    assert 0 < int(available) < group.limit
    assert 0 < float(share) < 1
