"""Which memfd of a real QEMU is taken for which guest node, against the policies it gave them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from gmemd.host.reading import LIVE_ROOT, read_host
from gmemd.host.vms.finding import VmmFinder
from gmemd.kernel.procfs.numa_maps import parse_numa_maps
from gmemd.plan.adopting import plan_adoption
from gmemd.plan.observed import plan_observed
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec
from gmemd.spec.vmm.reading import read_command_line, vmm_kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from gmemd.host.model import Host
    from gmemd.host.vms.model import VmmProcess
    from gmemd.plan.adopting import Adoption

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
MODES = ("bind", "preferred", "interleave")

pytestmark = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"there is no {QEMU}")


@pytest.fixture(scope="module")
def host() -> Host:
    return read_host(LIVE_ROOT)


@contextmanager
def running(*words: str) -> Iterator[tuple[int, IO[bytes], IO[bytes]]]:
    """A QEMU whose machine is made and whose guest never runs: its pid and its QMP."""
    argv = [QEMU, "-accel", "tcg,tb-size=1", "-S", "-display", "none", "-nodefaults", *words]
    with subprocess.Popen(
        [*argv, "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert b"QMP" in process.stdout.readline()
            qmp(process.stdin, process.stdout, "qmp_capabilities")
            qmp(process.stdin, process.stdout, "query-status")
            yield process.pid, process.stdin, process.stdout
        finally:
            process.kill()


def qmp(to: IO[bytes], answers: IO[bytes], command: str, **arguments: object) -> None:
    to.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    to.flush()
    while "return" not in (answer := json.loads(answers.readline())):
        assert "error" not in answer


def look_at(pid: int) -> VmmProcess:
    (vmm,) = VmmFinder().find(pid).vmms
    assert not vmm.blocked
    return vmm


def adopt(vmm: VmmProcess, host: Host, *regions: RegionSpec) -> Adoption:
    spec = VmSpec(
        vm="db",
        source=Source.ADOPT,
        guest_nodes=tuple(GuestNode(id=n, regions=(one,)) for n, one in enumerate(regions)),
    )
    declaration = read_command_line(vmm_kind(vmm.argv[0]), vmm.argv)
    return plan_adoption(
        plan_observed("db", vmm, declaration, host, spec=spec), spec, declaration, host
    )


def region(size_mib: int, memdev: str | None = None) -> RegionSpec:
    return RegionSpec(
        size_bytes=size_mib * MIB,
        host_nodes=frozenset({0}),
        policy=PolicyMode.BIND,
        backend=Backend.MEMFD,
        memdev=memdev,
    )


def test_equal_memfds_are_the_guest_nodes_that_qemu_meant(host: Host) -> None:
    words = ["-m", "192M"]
    for number, mode in enumerate(MODES):
        backend = f"memory-backend-memfd,id=ram{number},size=64M,policy={mode},host-nodes=0"
        words += ["-object", backend]
    for number in (2, 0, 1):
        words += ["-numa", f"node,nodeid={number},memdev=ram{number}"]
    with running(*words) as (pid, *_):
        vmm = look_at(pid)
        adoption = adopt(vmm, host, region(64), region(64), region(64))
        with open(f"/proc/{pid}/numa_maps") as file:  # noqa: PTH123  a file of the kernel's
            held = {entry.start: entry.mode for entry in parse_numa_maps(file.read())}
        mode_of = {piece.inode: held[piece.address or 0] for piece in vmm.pieces}
        assert [one.plan.guest_node for one in adoption.regions] == [0, 1, 2]
        assert tuple(mode_of[one.inode] for one in adoption.regions) == MODES
        for one in adoption.regions:
            found = os.stat(f"/proc/{pid}/fd/{one.fd}")  # noqa: PTH116  the link isn't to be resolved
            assert one.inode == (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
            assert found.st_size == one.plan.size_bytes
    assert adoption.left == ()


def test_memory_that_is_added_later_is_found_by_its_name(host: Host) -> None:
    words = ["-m", "64M,slots=2,maxmem=256M", "-machine", "memory-backend=ram0"]
    words += ["-object", "memory-backend-memfd,id=ram0,size=64M"]
    with running(*words) as (pid, to, answers):
        qmp(
            to,
            answers,
            "object-add",
            **{"qom-type": "memory-backend-memfd"},
            id="dimm0",
            size=MIB * 128,
        )
        qmp(to, answers, "device_add", driver="pc-dimm", memdev="dimm0", id="d0")
        vmm = look_at(pid)
        spec = VmSpec(
            vm="db",
            source=Source.ADOPT,
            guest_nodes=(GuestNode(id=0, regions=(region(128, "dimm0"), region(64))),),
        )
        declaration = read_command_line(vmm_kind(vmm.argv[0]), vmm.argv)
        adoption = plan_adoption(
            plan_observed("db", vmm, declaration, host, spec=spec), spec, declaration, host
        )
    sizes = {one.spec_index: one.plan.size_bytes for one in adoption.regions}
    assert sizes == {0: 128 * MIB, 1: 64 * MIB}
