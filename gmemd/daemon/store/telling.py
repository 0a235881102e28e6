"""A VM as it is written down, from what the daemon knows of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING

from gmemd.daemon.store.fdstore import region_name
from gmemd.daemon.store.records import (
    HolderRecord,
    PlanRecord,
    RegionRecord,
    VmRecord,
    encode_vm,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gmemd.daemon.holding import Holder
    from gmemd.daemon.vm import ManagedVm


MOST_STALE = 64
"""VMs of which only what audits find out is news, and that are written anew at a time.

One takes some 0.2 ms of the event loop.
"""


@dataclass(frozen=True, slots=True)
class _Line:
    """A VM's line, if it has one, what it was made of, and how many were made before it."""

    essence: object
    revision: object
    line: bytes | None
    number: int


class Lines:
    """What is written of each VM: at once where memory, holder or spec changed, or in its turn."""

    def __init__(self) -> None:
        self._known: dict[str, _Line] = {}
        self._made = 0

    def of(self, vms: Iterable[ManagedVm]) -> Iterator[bytes]:
        """Give the line of each VM that has one."""
        vms = list(vms)
        known = self._known
        stale = [
            (known[vm.name].number, vm.name)
            for vm in vms
            if vm.name in known and known[vm.name].revision is not vm.revision
        ]
        turn = {name for _, name in nsmallest(MOST_STALE, stale)}
        self._known = {}
        for vm in vms:
            line, essence = known.get(vm.name), _essence(vm)
            if line is None or line.essence != essence or vm.name in turn:
                self._made += 1
                record = record_of(vm)
                data = encode_vm(record) if record is not None else None
                line = _Line(essence, vm.revision, data, self._made)
            self._known[vm.name] = line
            if line.line is not None:
                yield line.line


def _essence(vm: ManagedVm) -> object:
    """What of a VM has to be written before anything depends on it."""
    holder = vm.holder
    regions = [
        (each.inode, each.offset, each.plan, each.strategy, each.reason, *each.notes)
        for each in vm.regions
    ]
    held = (holder.pid, holder.alive, holder.stored_as) if holder is not None else ()
    rest = (vm.dormant, vm.release_wanted, vm.prefaulted, vm.left_alone, vm.lost, vm.next_region_id)
    return vm.spec, regions, held, rest


def record_of(vm: ManagedVm) -> VmRecord | None:
    """What is written down of a VM; None where nothing has to be."""
    spec = vm.spec
    if spec is None or not (vm.regions or vm.dormant or vm.left_alone or vm.lost):
        return None
    seen = vm.audit or vm.audit_before
    verified = {
        (region.guest_node, region.index): region.verified_timestamp
        for region in (seen.regions if seen is not None else ())
    }
    return VmRecord(
        vm=vm.name,
        spec=spec,
        path=spec.path,
        state=str(vm.state),
        since=vm.since,
        message=vm.message,
        regions=tuple(
            RegionRecord(
                inode=region.inode,
                offset=region.offset,
                plan=PlanRecord.of(region.plan),
                strategy=region.strategy,
                reason=region.reason,
                notes=tuple(region.notes),
                rebound=region.rebound,
                resident_before=region.resident_before,
                id=region.id,
                spec_index=vm.spec_indexes.get(region.id),
                verified_timestamp=verified.get((region.plan.guest_node, region.plan.index)),
            )
            for region in vm.regions
        ),
        holder=_holder(vm.holder) if vm.holder is not None else None,
        dormant=vm.dormant,
        release_wanted=vm.release_wanted,
        prefaulted=vm.prefaulted,
        next_region_id=vm.next_region_id,
        left_alone=vm.left_alone,
        lost=vm.lost,
        warnings=vm.holder_warnings,
    )


def fds_of(vm: ManagedVm) -> Iterator[tuple[str, int]]:
    """The names and descriptors that a VM should have in the store."""
    for region in vm.regions:
        yield region_name(region.inode), region.fd
    holder = vm.holder
    if holder is not None and holder.alive:
        if holder.stored_as and holder.pidfd >= 0:
            yield holder.stored_as, holder.pidfd
        if holder.opener_stored_as and holder.opener_pidfd >= 0:
            yield holder.opener_stored_as, holder.opener_pidfd


def _holder(holder: Holder) -> HolderRecord:
    return HolderRecord(
        pid=holder.pid,
        start_ticks=holder.facts.start_ticks,
        since=holder.since,
        alive=holder.alive,
        vouched=holder.vouched,
        program=holder.facts.program,
        unit=holder.facts.unit,
        stored_as=holder.stored_as,
        opener=holder.opener,
        opener_stored_as=holder.opener_stored_as,
    )
