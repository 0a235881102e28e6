"""What comes back from the fd store is taken for what it is, whatever it is called."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.store.fdstore import region_name
from gmemd.daemon.store.records import (
    HolderRecord,
    PlanRecord,
    RegionRecord,
    VmRecord,
    encode_state,
    encode_vm,
)
from gmemd.daemon.store.recovery import Recovered, recover
from gmemd.daemon.store.statefile import NAME, StateFile, StateMemory
from gmemd.host.reading import read_host
from gmemd.host.vms.holders import read_facts
from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP
from gmemd.memory import passed, recovered
from gmemd.memory.creator import create_guest_memfds
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, OnVmmExit, PolicyMode
from tests.unit.daemon.store.test_records import PLAN
from tests.unit.daemon.vms import spec

if TYPE_CHECKING:
    from collections.abc import Iterator


MIB = 1 << 20


class Left:
    """What an earlier daemon left: its directory, and what the store passes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.passed: dict[str, int] = {}

    def memory(self, size_bytes: int = MIB) -> tuple[int, int]:
        """A memory file in the store, under its name; its inode."""
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size_bytes)
        status = os.fstat(fd)
        inode = status.st_dev, status.st_ino
        self.passed[region_name(inode)] = fd
        return inode

    def write(
        self, *records: VmRecord, boot_id: str = "boot", unclaimed: tuple[str, ...] = ()
    ) -> None:
        lines = [encode_vm(record) for record in records]
        data = encode_state(lines, boot_id=boot_id, sequence=5, next_holder=9, unclaimed=unclaimed)
        StateFile(self.directory).write(data)

    def recover(self) -> Recovered:
        left, self.passed = list(self.passed.items()), {}
        return recover(left, self.directory, host=read_host(probe=False), boot_id="boot")


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = Left(tmp_path)
    with ExitStack() as stack:
        made_of = made.recover

        def recover_and_close() -> Recovered:
            recovered = made_of()
            for vm in recovered.vms:
                for region in vm.regions:
                    stack.callback(region.close)
                if vm.holder is not None:
                    stack.callback(_close, vm.holder.pidfd)
            for fd in recovered.leaving:
                stack.callback(os.close, fd)
            if recovered.memory is not None:
                stack.callback(recovered.memory.close)
            return recovered

        made.recover = recover_and_close  # type: ignore[method-assign]
        yield made
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def record(*inodes: tuple[int, int], holder: HolderRecord | None = None) -> VmRecord:
    plan = replace(
        PLAN,
        backend=Backend.MEMFD,
        size_bytes=MIB,
        policy=PolicyMode.BIND,
        host_nodes=frozenset({0}),
        demand={0: MIB},
    )
    regions = tuple(
        RegionRecord(
            inode=inode,
            offset=0,
            plan=PlanRecord.of(replace(plan, index=index)),
            strategy=Strategy.INODE_POLICY,
            reason="as it is",
        )
        for index, inode in enumerate(inodes)
    )
    return VmRecord(
        vm="db-01", spec=spec("db-01"), state="ready", since=1.0, regions=regions, holder=holder
    )


def holder(pid: int, stored_as: str = "") -> HolderRecord:
    return HolderRecord(
        pid=pid,
        start_ticks=read_facts(pid).start_ticks,
        since=1.0,
        alive=True,
        vouched=True,
        program="vmm",
        unit="",
        stored_as=stored_as,
    )


def test_regions_come_back_with_their_policies_set_where_they_lack(left: Left) -> None:
    left.write(record(left.memory(), left.memory()))
    recovered = left.recover()
    (vm,) = recovered.vms
    assert vm.lost == ()
    assert [region.inode for region in vm.regions] == [each.inode for each in vm.record.regions]
    assert [region.bind is not None and region.bind.ok for region in vm.regions] == [True, True]
    assert all("was changed while gmemd was away" in region.notes[0] for region in vm.regions)
    assert (recovered.sequence, recovered.next_holder) == (5, 9)


def test_what_is_there_and_set_is_left_as_it_is(left: Left) -> None:
    inode = left.memory()
    left.write(record(inode))
    kept = os.dup(left.passed[region_name(inode)])
    left.recover()
    left.passed[region_name(inode)] = kept
    (vm,) = left.recover().vms
    assert vm.regions[0].notes == []


def test_another_file_under_a_regions_name_is_not_it(left: Left) -> None:
    inode, other = left.memory(), left.memory()
    left.passed[region_name(inode)], left.passed[region_name(other)] = (
        left.passed[region_name(other)],
        left.passed[region_name(inode)],
    )
    left.write(record(inode))
    (vm,) = left.recover().vms
    assert (vm.regions, vm.lost) == ([], ("guest node 1: what came back is another file",))


@pytest.mark.parametrize("size_bytes", [0, MIB - 4096])
def test_a_file_that_is_smaller_by_now_is_lost(left: Left, size_bytes: int) -> None:
    left.write(record(left.memory(size_bytes)))
    (vm,) = left.recover().vms
    assert vm.regions == []
    assert f"has {size_bytes} bytes by now" in vm.lost[0]


def test_what_is_no_memory_is_lost(left: Left, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    status = os.fstat(fd)
    inode = status.st_dev, status.st_ino
    left.passed[region_name(inode)] = fd
    left.write(record(inode))
    (vm,) = left.recover().vms
    assert "neither a guest_memfd nor a memfd" in vm.lost[0]


def test_memory_of_nobody_is_to_be_removed(left: Left) -> None:
    mine, nobodys = left.memory(), left.memory()
    left.write(record(mine))
    recovered = left.recover()
    assert set(recovered.stored) == {region_name(mine), region_name(nobodys)}
    assert [os.fstat(fd).st_ino for fd in recovered.leaving] == [nobodys[1]]
    assert recovered.unclaimed == ()


def test_without_a_state_memory_stays_and_is_known_from_then_on(left: Left) -> None:
    inode = left.memory()
    recovered = left.recover()
    assert (recovered.stored, recovered.unclaimed) == ((), (region_name(inode),))
    again = left.memory()
    left.write(unclaimed=(region_name(again),))
    assert left.recover().unclaimed == (region_name(again),)


@pytest.mark.parametrize("boot_id", ["boot", "another"])
def test_the_state_in_the_store_counts_where_the_file_is_gone(left: Left, boot_id: str) -> None:
    inode = left.memory()
    state = StateMemory()
    lines = [encode_vm(record(inode))]
    state.write(encode_state(lines, boot_id=boot_id, sequence=7), 7)
    left.passed[NAME] = state.fd
    recovered = left.recover()
    assert len(recovered.vms) == (1 if boot_id == "boot" else 0)
    assert recovered.unclaimed == (() if boot_id == "boot" else (region_name(inode),))
    assert NAME in recovered.stored
    assert recovered.memory is not None


def test_what_a_newer_gmemd_left_stays(left: Left) -> None:
    inode = left.memory()
    left.passed["s.2"] = os.memfd_create("state")
    recovered = left.recover()
    assert recovered.unclaimed == (region_name(inode), "s.2")
    assert recovered.vms == []


def test_a_holder_is_known_by_its_pidfd(left: Left) -> None:
    left.passed["h.1"] = os.pidfd_open(os.getpid())
    left.write(record(left.memory(), holder=holder(os.getpid(), "h.1")))
    (vm,) = left.recover().vms
    assert vm.holder is not None
    assert (vm.holder.alive, vm.exited, vm.holder.stored_as) == (True, False, "h.1")


def test_a_holder_that_exited_is_known_to_have(left: Left) -> None:
    process = subprocess.Popen(["sleep", "60"])
    told = holder(process.pid, "h.1")
    left.passed["h.1"] = os.pidfd_open(process.pid)
    process.kill()
    process.wait()
    left.write(record(left.memory(), holder=told))
    (vm,) = left.recover().vms
    assert vm.holder is not None
    assert (vm.holder.alive, vm.exited, vm.holder.pidfd) == (False, True, -1)


def test_a_pidfd_of_another_process_is_not_the_holders(left: Left) -> None:
    left.passed["h.1"] = os.pidfd_open(os.getppid())
    left.write(record(left.memory(), holder=holder(os.getpid(), "h.1")))
    (vm,) = left.recover().vms
    assert vm.holder is not None
    assert (vm.holder.alive, vm.exited) == (False, True)


def test_without_its_pidfd_a_holder_is_known_by_when_it_was_started(left: Left) -> None:
    left.write(record(left.memory(), holder=holder(os.getpid())))
    (vm,) = left.recover().vms
    assert vm.holder is not None
    assert vm.holder.alive


def test_without_a_state_no_holder_is_called_as_one_that_is_in_the_store(left: Left) -> None:
    left.passed["h.1f"] = os.pidfd_open(os.getppid())
    assert left.recover().next_holder == 0x20


@pytest.mark.parametrize("on_vmm_exit", OnVmmExit)
def test_kept_memory_that_nobody_can_tell_now_stays(
    left: Left, on_vmm_exit: OnVmmExit, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = left.memory()
    gone = holder(os.getpid()).model_copy(update={"alive": False})
    told = record(inode, holder=gone)
    kept = told.spec.model_copy(update={"on_vmm_exit": on_vmm_exit})
    left.write(told.model_copy(update={"spec": kept}))

    def full(_: int) -> int:
        raise KernelError("fcntl", errno.EMFILE, "F_DUPFD_CLOEXEC")

    monkeypatch.setattr(recovered, "duplicate", full)
    found = left.recover()
    names = (region_name(inode),)
    keeps = on_vmm_exit is OnVmmExit.KEEP
    assert found.unclaimed == (names if keeps else ())
    assert found.stored == (() if keeps else names)
    assert len(found.leaving) == (0 if keeps else 1)


def test_guest_memfds_are_known_where_no_other_can_be_made(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fd,) = create_guest_memfds([MIB], flags=GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED)
    status = os.fstat(fd)
    inode = status.st_dev, status.st_ino
    left.passed[region_name(inode)] = fd
    monkeypatch.setattr(passed, "create_guest_memfds", lambda *_, **__: ())
    told = record(inode)
    plan = told.regions[0].plan.model_copy(update={"backend": Backend.GUEST_MEMFD})
    left.write(
        told.model_copy(update={"regions": (told.regions[0].model_copy(update={"plan": plan}),)})
    )
    (vm,) = left.recover().vms
    assert vm.lost == ()
