"""What an earlier daemon left: VMs with their regions and holders, and what can't be told any more.

Nothing of it is trusted: a descriptor counts by what it is, not by its name; a process by its
pidfd, or its start time. All of this blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.daemon.holding import Holder
from gmemd.daemon.store import statefile
from gmemd.daemon.store.fdstore import inode_of, number_of, region_name
from gmemd.errors import GmemdError
from gmemd.host.vms.holders import (
    NotAPidfdError,
    ProcessFacts,
    has_exited,
    pid_of_pidfd,
    pidfd_open,
    read_facts,
)
from gmemd.host.vms.taking import take_by_inode
from gmemd.memory.recovered import Earlier, LostRegionError, recover_region
from gmemd.spec.model import OnVmmExit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gmemd.daemon.store.records import HolderRecord, RegionRecord, VmRecord
    from gmemd.host.model import Host
    from gmemd.memory.regions import Region

log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class RecoveredVm:
    """A VM as it was: its record, the regions that are there again, who holds it.

    ``lost`` are the regions that aren't, in words. ``exited``: its holder was there when the record
    was written, and is gone. ``untold`` are names in the store of what may be lost, or not: nobody
    could tell.
    """

    record: VmRecord
    regions: list[Region] = field(default_factory=list)
    holder: Holder | None = None
    exited: bool = False
    lost: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()


@dataclass(slots=True)
class Recovered:
    """All of it. ``stored`` are names that are in the store, ``unclaimed`` such of no known VM.

    ``memory`` is the state's own memfd; ``set_aside`` names what the file that is there has to be
    kept as, since it can't be read. ``leaving`` are descriptors of what is nobody's: they are to be
    closed once it is out of the store, since whoever closes the last one waits for the memory.
    """

    vms: list[RecoveredVm] = field(default_factory=list)
    stored: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
    memory: statefile.StateMemory | None = None
    sequence: int = 0
    next_holder: int = 1
    set_aside: tuple[str, ...] = ()
    leaving: list[int] = field(default_factory=list)


def read_boot_id() -> str:
    """What tells this start of the machine from all others."""
    return _BOOT_ID.read_text().strip()


def recover(
    passed: Sequence[tuple[str, int]],
    directory: Path,
    *,
    host: Host,
    boot_id: str,
) -> Recovered:
    """Have again what an earlier daemon left in the store and in the state directory.

    The passed descriptors are taken over: those of use are copied, the others are closed, or are
    ``leaving``. Memory in the
    store that no state tells of stays there if the state can't be read; it is given back if it is
    known to be nobody's.
    """
    fds = dict(passed)
    _close(fd for name, fd in passed if fds[name] != fd)  # one of several of a name is enough
    try:
        memory = fds.pop(statefile.NAME, -1)
        recovered = Recovered(memory=statefile.StateMemory(memory) if memory >= 0 else None)
        found = _read(recovered, statefile.StateFile(directory), fds, boot_id)
        vms = found.state.vms if found.state is not None else ()
        if found.state is not None:
            recovered.sequence = found.state.header.sequence
            recovered.next_holder = found.state.header.next_holder
        for record in vms:
            recovered.vms.append(_recover_vm(record, fds, host))
        leaving = _settle_names(recovered, found, fds)
        recovered.leaving = [fds.pop(name) for name in leaving]
    finally:
        _close(fds.values())
    return recovered


def _read(
    recovered: Recovered, file: statefile.StateFile, fds: Mapping[str, int], boot_id: str
) -> statefile.Found:
    """Choose the state, and say what of it is wrong."""
    found = statefile.choose_state(_candidates(recovered, file), boot_id)
    newer = max([found.newer, *(int(name[2:]) for name in fds if _is_newer_state(name))])
    for problem in found.problems:
        log.error("the state that an earlier gmemd left: %s", problem)
    aside = []
    if found.newer:
        aside.append(f"v{found.newer}")
    elif found.damaged:
        aside.append("damaged")
    recovered.set_aside = tuple(aside)
    if newer and found.state is None:
        log.error(
            "a newer gmemd (state of format %d) ran here: what it knew of VMs isn't understood, "
            "their memory stays in the fd store until that gmemd runs again",
            newer,
        )
    return statefile.Found(found.state, newer, damaged=found.damaged, problems=found.problems)


def _candidates(recovered: Recovered, file: statefile.StateFile) -> Iterator[tuple[str, bytes]]:
    if recovered.memory is not None:
        try:
            for slot in recovered.memory.read():
                yield "the state in the fd store", slot
        except OSError as error:
            log.error("reading the state in the fd store: %s", error.strerror)  # noqa: TRY400
    try:
        data = file.read()
    except OSError as error:
        log.error("reading %s: %s", file.path, error.strerror)  # noqa: TRY400
        return
    if data is not None:
        yield str(file.path), data


def _settle_names(
    recovered: Recovered, found: statefile.Found, fds: Mapping[str, int]
) -> frozenset[str]:
    """Say of each name in the store whether it is somebody's, nobody's, or can't be told.

    Returns those that are nobody's.
    """
    known = {region_name(region.inode) for vm in recovered.vms for region in vm.regions}
    for vm in recovered.vms:
        if vm.holder is not None:
            known |= {vm.holder.stored_as, vm.holder.opener_stored_as}
    state = found.state
    untold = state is None or bool(state.unreadable) or bool(found.newer)
    before = frozenset(state.header.unclaimed) if state is not None else frozenset[str]()
    unclaimed = {
        name
        for name in fds
        if name not in known
        and (_is_newer_state(name) or (inode_of(name) and (untold or name in before)))
    }
    unclaimed.update(*(vm.untold for vm in recovered.vms))
    if memory := sum(1 for name in unclaimed if inode_of(name)):
        log.error(
            "%d memory files in the fd store are of VMs that nothing is known of any more: they "
            "stay there (stop gmemd and `systemctl clean --what=fdstore` gives all memory back)",
            memory,
        )
    recovered.unclaimed = tuple(sorted(unclaimed))
    taken = max(map(number_of, fds), default=0)  # the state that tells may be lost
    recovered.next_holder = max(recovered.next_holder, taken + 1)
    stored = set(fds) - unclaimed  # what is nobody's is removed by the first commit
    if recovered.memory is not None:
        stored.add(statefile.NAME)
    recovered.stored = tuple(sorted(stored))
    return frozenset(fds) - known - unclaimed


def _recover_vm(record: VmRecord, fds: Mapping[str, int], host: Host) -> RecoveredVm:
    vm = RecoveredVm(record)
    if record.holder is not None:
        vm.holder = _recover_holder(record.holder, fds)
        vm.exited = record.holder.alive and not vm.holder.alive
    lost: list[str] = []
    untold: set[str] = set()
    with contextlib.ExitStack() as stack:
        taken = _taken(stack, record, vm.holder, fds)
        for region in record.regions:
            try:
                vm.regions.append(_recover_region(region, record, taken, host))
            except (GmemdError, OSError) as error:
                lost.append(error.message if isinstance(error, GmemdError) else str(error))
                name = region_name(region.inode)
                if not isinstance(error, LostRegionError) and name in fds and _is_to_last(record):
                    untold.add(name)
    vm.lost, vm.untold = tuple(lost), tuple(sorted(untold))
    for words in lost:
        log.error("%s: not recovered: %s", record.vm, words)
    return vm


def _is_to_last(record: VmRecord) -> bool:
    """Whether a VM's memory has somebody's data that outlives who has it."""
    return record.holder is not None and record.spec.on_vmm_exit is OnVmmExit.KEEP


def _taken(
    stack: contextlib.ExitStack, record: VmRecord, holder: Holder | None, fds: Mapping[str, int]
) -> dict[tuple[int, int], int]:
    """Descriptors of a VM's files by inode: the store's, or else its holder's own."""
    wanted = {region.inode for region in record.regions}
    found = {inode: fds[name] for inode in wanted if (name := region_name(inode)) in fds}
    lacking = wanted - found.keys()
    if lacking and holder is not None and holder.alive:
        try:
            taken = take_by_inode(holder.pidfd, holder.pid, lacking)
        except GmemdError as error:
            log.warning("%s: taking its memory from pid %d: %s", record.vm, holder.pid, error)
            return found
        stack.callback(_close, list(taken.values()))
        found |= taken
    return found


def _recover_region(
    region: RegionRecord,
    record: VmRecord,
    taken: Mapping[tuple[int, int], int],
    host: Host,
) -> Region:
    fd = taken.get(region.inode)
    if fd is None:
        raise LostRegionError(f"guest node {region.plan.guest_node}: its file is not there")
    earlier = Earlier(
        plan=region.plan.plan(record.vm),
        inode=region.inode,
        offset=region.offset,
        strategy=region.strategy,
        reason=region.reason,
        notes=region.notes,
        rebound=region.rebound,
        resident_before=region.resident_before,
        id=region.id,
    )
    return recover_region(fd, earlier, host)


def _recover_holder(record: HolderRecord, fds: Mapping[str, int]) -> Holder:
    """The holder as it was; not alive where it is gone, or can't be told from another process."""
    pidfd = _pidfd(record, fds) if record.alive else -1
    alive = pidfd >= 0
    opener = -1
    with contextlib.suppress(KeyError, OSError):
        opener = os.dup(fds[record.opener_stored_as])
    facts = read_facts(record.pid) if alive else ProcessFacts(record.program, record.unit)
    return Holder(
        pidfd=pidfd,
        pid=record.pid,
        facts=facts,
        opener=record.opener,
        opener_pidfd=opener,
        vouched=record.vouched,
        since=record.since,
        alive=alive,
        stored_as=record.stored_as if record.stored_as in fds else "",
        opener_stored_as=record.opener_stored_as if record.opener_stored_as in fds else "",
    )


def _pidfd(record: HolderRecord, fds: Mapping[str, int]) -> int:
    """A pidfd of the holder if it is still there, else -1: the stored one, or a new one."""
    stored = fds.get(record.stored_as, -1)
    try:
        if stored >= 0:
            if not has_exited(stored) and pid_of_pidfd(stored) == record.pid:
                return os.dup(stored)
            return -1
        pidfd = pidfd_open(record.pid)
    except (GmemdError, NotAPidfdError, OSError):
        return -1
    if read_facts(record.pid).start_ticks == record.start_ticks and not has_exited(pidfd):
        return pidfd
    os.close(pidfd)
    return -1


def _is_newer_state(name: str) -> bool:
    kind, _, version = name.partition(".")
    known = name == statefile.NAME
    return kind == "s" and version.isascii() and version.isdigit() and not known


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
