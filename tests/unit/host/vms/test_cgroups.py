"""Cgroup, unit and cpuset of a process, in all three kinds of hierarchies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink.peer import trusted_unit
from gmemd.host.vms.cgroups import main_cgroup, read_cgroups, read_mems, unit_of
from gmemd.host.vms.holders import ProcessFacts, read_facts

if TYPE_CHECKING:
    from tests.unit.host.vms.conftest import ProcTree

LIBVIRT = "/machine.slice/machine-qemu\\x2d1\\x2ddb.scope/libvirt/emulator"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        (LIBVIRT, "machine-qemu\\x2d1\\x2ddb.scope"),
        ("/system.slice/db.service", "db.service"),
        ("/user.slice/user-0.slice/user@0.service/app.slice/vm.scope", "vm.scope"),
        ("/kubepods/burstable/pod1/abc", ""),
        ("/", ""),
    ],
)
def test_the_innermost_unit_counts(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


def test_the_unified_hierarchy_names_the_process_unless_it_is_unused(tree: ProcTree) -> None:
    tree.add(1, ["a"], cgroup="0::/system.slice/db.service\n")
    tree.add(2, ["a"], cgroup="4:memory:/m\n1:name=systemd:/machine.slice/x.scope\n0::/\n")
    tree.add(3, ["a"], cgroup="9:name=systemd:/\n4:memory:/docker/abc\n0::/\n")
    found = [main_cgroup(read_cgroups(pid, tree.root)) for pid in (1, 2, 3)]
    assert found == ["/system.slice/db.service", "/machine.slice/x.scope", "/docker/abc"]


def test_the_cpuset_of_the_cgroup_or_the_next_above(tree: ProcTree) -> None:
    mount = tree.root / "sys/fs/cgroup"
    (mount / "machine.slice/a.scope").mkdir(parents=True)
    (mount / "machine.slice/cpuset.mems.effective").write_text("1\n")
    tree.add(1, ["a"], cgroup="0::/machine.slice/a.scope\n")
    cgroups = read_cgroups(1, tree.root)
    assert read_mems(1, cgroups, tree.root) == {1}
    (mount / "machine.slice/a.scope/cpuset.mems.effective").write_text("0-1\n")
    assert read_mems(1, cgroups, tree.root) == {0, 1}


def test_the_older_hierarchy(tree: ProcTree) -> None:
    folder = tree.root / "sys/fs/cgroup/cpuset/vm"
    folder.mkdir(parents=True)
    (folder / "cpuset.effective_mems").write_text("2\n")
    tree.add(1, ["a"], cgroup="3:cpuset:/vm\n0::/\n")
    assert read_mems(1, read_cgroups(1, tree.root), tree.root) == {2}


@pytest.mark.parametrize("cgroup", ["0::/../../outside\n", "0::/nowhere\n"])
def test_what_the_kernel_tells_of_the_process_otherwise(tree: ProcTree, cgroup: str) -> None:
    tree.add(1, ["a"], cgroup=cgroup, mems="0,2-3")
    assert read_mems(1, read_cgroups(1, tree.root), tree.root) == {0, 2, 3}


def test_nothing_where_nothing_tells(tree: ProcTree) -> None:
    (tree.add(1, ["a"]) / "status").unlink()
    assert read_mems(1, {}, tree.root) == frozenset()


@pytest.mark.parametrize("char", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_nobody_gets_into_another_unit_by_a_cgroup_s_name(tree: ProcTree, char: str) -> None:
    """Whoever a cgroup is delegated to may name those below it so; only a line feed is refused."""
    own = f"/user.slice/user@1000.service/a{char}0::/system.slice/db.service"
    tree.add(1, ["a"], cgroup=f"0::{own}\n")
    assert read_cgroups(1, tree.root) == {"": own}
    assert trusted_unit(main_cgroup(read_cgroups(1, tree.root))) == "user@1000.service"


def test_a_cgroup_whose_name_no_file_can_have(tree: ProcTree) -> None:
    tree.add(1, ["a"], cgroup="0::/a\0b\n", mems="2")
    assert read_mems(1, read_cgroups(1, tree.root), tree.root) == {2}


def test_a_damaged_stat_is_a_process_of_which_nothing_is_told(tree: ProcTree) -> None:
    folder = tree.add(1, ["a"])
    (folder / "comm").write_text("a\n")
    assert read_facts(1, tree.root).start_ticks == 4200
    (folder / "stat").write_text((folder / "stat").read_text().replace(" 4200 ", " 42-0 "))
    assert read_facts(1, tree.root) == ProcessFacts()
