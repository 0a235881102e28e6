"""A VM as it is written down, from what the daemon knows of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.daemon.store.fdstore import region_name
from gmemd.daemon.store.records import HolderRecord, PlanRecord, RegionRecord, VmRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.daemon.holding import Holder
    from gmemd.daemon.vm import ManagedVm


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
