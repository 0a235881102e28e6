"""VMs of an earlier daemon, taken into the fleet of this one. On the event loop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gmemd.audit.model import RegionAudit, VmAudit
from gmemd.daemon.clock import mistrust_vm
from gmemd.daemon.desired import Desired
from gmemd.daemon.vm import ManagedVm
from gmemd.export.snapshot import VmState
from gmemd.plan.model import VmPlan
from gmemd.spec.model import OnVmmExit, Source

if TYPE_CHECKING:
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.possession import Possession
    from gmemd.daemon.store.records import VmRecord
    from gmemd.daemon.store.recovery import Recovered, RecoveredVm

log = logging.getLogger(__name__)

_HAVE_IT_AGAIN = "a restart of gmemd lost sight of {what}: {why}"


def have_again(recovered: Recovered, fleet: Fleet, possession: Possession) -> Desired:
    """Have the VMs that were recovered be the fleet's; gives the specs that were in force.

    What came back of a VM in part, and nobody had it, is of no use: it leaves, and is made anew.
    """
    specs = {}
    for found in recovered.vms:
        record = found.record
        if _is_useless(found):
            log.warning("%s: its memory is made anew: %s", record.vm, "; ".join(found.lost))
            recovered.leaving += _given_up(found)
            continue
        vm = fleet.vms[record.vm] = _vm(found)
        specs[record.vm] = record.spec_in_force
        possession.have_again(vm, exited=found.exited)
    if specs:
        held = sum(1 for vm in fleet.vms.values() if vm.held)
        log.info("recovered %d VMs, %d of them held by a process", len(specs), held)
    return Desired(specs)


def _given_up(found: RecoveredVm) -> list[int]:
    """The descriptors of its memory, which are the caller's from then on."""
    if found.holder is not None:
        found.holder.close()
    return [region.fd for region in found.regions]


def _is_useless(found: RecoveredVm) -> bool:
    """Whether a VM's memory isn't all there, and nobody has used it or uses what is missing."""
    if not found.lost:
        return False
    record = found.record
    alive = found.holder is not None and found.holder.alive
    if record.spec.source is Source.ADOPT:
        return not found.regions
    kept = found.holder is not None and not alive
    released = kept and found.exited and record.spec.on_vmm_exit is OnVmmExit.RELEASE
    return not alive and (not kept or released or not found.regions)


def _vm(found: RecoveredVm) -> ManagedVm:
    record = found.record
    spec = record.spec_in_force
    vm = ManagedVm(
        record.vm,
        spec=spec,
        state=next((state for state in VmState if state == record.state), VmState.WAITING),
        since=record.since,
        message=record.message,
        regions=found.regions,
        holder=found.holder,
        dormant=record.dormant,
        release_wanted=record.release_wanted,
        prefaulted=record.prefaulted,
        next_region_id=record.next_region_id,
        left_alone=record.left_alone,
        holder_warnings=record.warnings,
        audit_before=_audit(record),
        spec_indexes={
            region.id: region.spec_index
            for region in record.regions
            if region.spec_index is not None
        },
    )
    if found.regions:
        vm.plan = VmPlan(spec, tuple(region.plan for region in found.regions))
    if found.lost:
        what = f"{len(found.lost)} of {len(record.regions)} of its memory files"
        vm.lost = _HAVE_IT_AGAIN.format(what=what, why="; ".join(found.lost))
    elif record.lost:
        vm.lost = record.lost
    if found.regions:
        vm.settle()
    mistrust_vm(vm)
    return vm


def _audit(record: VmRecord) -> VmAudit:
    """What was verified, and nothing else: where pages are is to be seen anew."""
    regions = tuple(
        RegionAudit(
            guest_node=region.plan.guest_node,
            index=region.plan.index,
            size_bytes=region.plan.size_bytes,
            page_size=region.plan.page_size,
            resident_bytes=0,
            by_node={},
            verified_timestamp=region.verified_timestamp,
        )
        for region in record.regions
    )
    return VmAudit(
        vm=record.vm, started_timestamp=0.0, duration_seconds=0.0, cpu_seconds=0.0, regions=regions
    )
