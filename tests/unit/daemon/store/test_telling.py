"""Which VMs are written anew, and when."""

from __future__ import annotations

from dataclasses import replace

from gmemd.daemon.holding import Holder
from gmemd.daemon.store.records import VmRecord
from gmemd.daemon.store.telling import MOST_STALE, Lines, fds_of, record_of
from gmemd.daemon.vm import ManagedVm
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy
from gmemd.spec.loading import parse_spec
from tests.unit.daemon.store.test_records import PLAN, SPEC


def vm(name: str, inode: int = 7) -> ManagedVm:
    made = ManagedVm(name, spec=parse_spec(SPEC, file="db-01.yaml"))
    made.regions = [Region(replace(PLAN, vm=name), 5, (26, inode), Strategy.INODE_POLICY, "kept")]
    return made


def told(lines: Lines, vms: list[ManagedVm]) -> dict[str, VmRecord]:
    records = [VmRecord.model_validate_json(line) for line in lines.of(vms)]
    return {record.vm: record for record in records}


def test_a_vm_without_memory_is_not_written() -> None:
    assert record_of(ManagedVm("web-01", spec=parse_spec(SPEC, file="db-01.yaml"))) is None
    assert record_of(ManagedVm("web-01", dormant=True)) is None


def test_names_in_the_store_are_of_regions_and_of_who_is_alive() -> None:
    made = vm("db-01", inode=0x2B)
    assert dict(fds_of(made)) == {"r.1a.2b": 5}
    made.holder = Holder(pidfd=8, pid=42, stored_as="h.1", opener_pidfd=9, opener_stored_as="h.2")
    assert dict(fds_of(made)) == {"r.1a.2b": 5, "h.1": 8, "h.2": 9}
    made.holder.alive = False
    assert dict(fds_of(made)) == {"r.1a.2b": 5}


def test_what_counts_is_written_at_once_for_however_many() -> None:
    lines, vms = Lines(), [vm(f"vm-{number}", number) for number in range(3 * MOST_STALE)]
    assert set(told(lines, vms)) == {each.name for each in vms}
    for each in vms:
        each.holder = Holder(pidfd=8, pid=42, stored_as="h.1")
    assert all(record.holder is not None for record in told(lines, vms).values())
    vms[0].regions[0].plan = replace(PLAN, vm="vm-0", host_nodes=frozenset({3}))
    assert told(lines, vms)["vm-0"].regions[0].plan.host_nodes == {3}


def test_what_audits_find_out_is_written_in_turn() -> None:
    lines, vms = Lines(), [vm(f"vm-{number}", number) for number in range(3 * MOST_STALE)]
    told(lines, vms)
    for time in (1.0, 2.0, 3.0):
        for each in vms:
            each.since = time
        written = [record.since == time for record in told(lines, vms).values()]
        assert sum(written) == MOST_STALE
    assert {record.since for record in told(lines, vms).values()} <= {1.0, 2.0, 3.0}
    assert min(record.since for record in told(lines, vms).values()) > 1.0
