"""Who pays: the cgroup that the helper runs in, by the kernel's own count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.memory.errors import ProvisionError
from tests.numa.provisioning import MIB, planned, provisioned, region, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.memory.progress import Progress

MOUNT = Path("/sys/fs/cgroup")


@pytest.fixture
def payer() -> Iterator[Path]:
    """A cgroup with the memory controller and nobody in it."""
    (MOUNT / "cgroup.subtree_control").write_text("+memory")
    directory = MOUNT / "gmemd-test-payer"
    directory.mkdir()
    yield directory
    directory.rmdir()


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a process of its own, which may change its cgroup and user."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def charged(directory: Path) -> dict[int, int]:
    """File pages charged to a cgroup, in MiB by node; nodes with none left out."""
    lines = (directory / "memory.numa_stat").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("file ")]
    by_node = (part[1:].split("=") for part in line.split()[1:])
    mebibytes = {int(node): round(int(size) / MIB) for node, size in by_node}
    return {node: size for node, size in mebibytes.items() if size}


def test_a_named_cgroup_pays(payer: Path) -> None:
    plan = planned(spec(region(64, {1}), region(64, {2}), cgroup=f"/{payer.name}"))
    with provisioned(plan) as regions:
        assert charged(payer) == {1: 64, 2: 64}
        assert {one.cgroup for one in regions} == {payer}
    assert payer.exists(), "it isn't gmemd's to remove"


def test_a_cgroup_that_is_full_is_told_as_that(payer: Path) -> None:
    (payer / "memory.max").write_text(str(100 * MIB))
    plan = planned(spec(region(300, {1}), cgroup=str(payer)))
    with pytest.raises(ProvisionError) as caught, provisioned(plan):
        pass
    assert "oom_kill 0" in (payer / "memory.events").read_text()
    assert caught.value.reason == "cgroup-full"
    assert 200 * MIB < caught.value.needed_bytes < 260 * MIB
    assert str(payer) in caught.value.message
    assert "memory.max" in str(caught.value.hint)


def test_a_cgroup_whose_limit_falls_meanwhile_kills_the_helper_alone(payer: Path) -> None:
    def lower(progress: Progress) -> None:
        if progress.allocated_bytes:
            (payer / "memory.max").write_text(str(1 * MIB))

    plan = planned(spec(region(600, {1}), cgroup=str(payer)))
    with pytest.raises(ProvisionError) as caught, provisioned(plan, progress=lower):
        pass
    assert "oom_kill 0" not in (payer / "memory.events").read_text()
    assert caught.value.reason == "cgroup-full"


def test_cpus_that_are_not_allowed_leave_the_pages_where_they_belong() -> None:
    """As under AllowedCPUs=: node 1's CPUs are 2 and 3."""
    (MOUNT / "cgroup.subtree_control").write_text("+cpuset")
    narrow = MOUNT / "gmemd-test-narrow"
    narrow.mkdir()
    try:
        (narrow / "cpuset.cpus").write_text("0-1")
        done = run(NARROW, str(narrow))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "1 note, 64 MiB\n"
    finally:
        narrow.rmdir()


NARROW = """
import sys
from pathlib import Path
from tests.numa.provisioning import bytes_by_node, difference, planned, provisioned, region, spec

Path(sys.argv[1], "cgroup.procs").write_text("0")
before = bytes_by_node()
with provisioned(planned(spec(region(64, {1})))) as regions:
    (note,) = regions[0].notes
    assert "AllowedCPUs" in note
    print(1, "note,", difference(bytes_by_node(), before)[1], "MiB")
"""

DELEGATED = """
import sys
from pathlib import Path
from tests.numa.provisioning import planned, provisioned, region, spec
from tests.numa.test_prefault_cgroup import charged

Path(sys.argv[1], "cgroup.procs").write_text("0")
if len(sys.argv) > 2:
    import os
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
plan = planned(spec(region(64, {3}), vm="paid"))
with provisioned(plan) as regions:
    print(Path("/proc/self/cgroup").read_text().strip())
    print(regions[0].cgroup, regions[0].own_cgroup, charged(regions[0].cgroup))
print(regions[0].cgroup.exists())
"""


@pytest.mark.parametrize("user", [None, 65534], ids=["root", "somebody"])
def test_below_a_delegated_subtree_each_vm_has_a_cgroup_of_its_own(user: int | None) -> None:
    (MOUNT / "cgroup.subtree_control").write_text("+memory")
    subtree = MOUNT / "gmemd-test-delegated"
    subtree.mkdir()
    try:
        if user is None:
            os.setxattr(subtree, "user.delegate", b"1")
        else:
            for path in (
                subtree,
                *(subtree / name for name in ("cgroup.procs", "cgroup.subtree_control")),
            ):
                os.chown(path, user, user)
            Path("/dev/kvm").chmod(0o666)
        arguments = [str(subtree), *([] if user is None else [str(user)])]
        done = run(DELEGATED, *arguments)
        assert done.returncode == 0, done.stderr
        own, paid, left = done.stdout.splitlines()
        assert own == f"0::/{subtree.name}/daemon"
        assert paid == f"{subtree}/vm-paid True {{3: 64}}"
        assert left == "False"
    finally:
        if (subtree / "daemon").exists():
            (subtree / "daemon").rmdir()
        subtree.rmdir()
