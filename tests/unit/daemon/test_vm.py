from __future__ import annotations

from dataclasses import replace

from gmemd.audit.model import RegionAudit, Sample, VmAudit
from gmemd.daemon.vm import LONGEST_RETRY_SECONDS, ManagedVm, retry_seconds
from gmemd.drift.model import VmDrift
from gmemd.export.snapshot import VmState
from gmemd.memory.progress import Progress, Stage
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy, VmPlan
from gmemd.spec.problems import Problem
from tests.unit.daemon.vms import MIB, guest_node_drift, region_plan, spec

PROBLEM = Problem("/v/vm.yaml", 3, 1, "memory", "lots", "must be a size", "write 8MiB")


def provisioned(strategy: Strategy = Strategy.INODE_POLICY) -> ManagedVm:
    plan = region_plan()
    vm = ManagedVm("vm", spec(), plan=VmPlan(spec(), (plan,)))
    vm.regions = [Region(plan, -1, (0, 0), strategy, "because")]
    return vm


def test_retries_come_later_each_time_up_to_a_limit() -> None:
    assert [retry_seconds(attempts) for attempts in (1, 2, 3)] == [5, 10, 20]
    assert retry_seconds(100) == LONGEST_RETRY_SECONDS


def test_the_same_failure_with_other_figures_is_no_news() -> None:
    vm = ManagedVm("vm", spec())
    assert vm.fail("full", "1GiB missing")
    assert not vm.fail("full", "2GiB missing")
    assert vm.message == "2GiB missing"
    assert vm.fail("killed", "the helper was killed")


def test_another_spec_forgets_old_failures() -> None:
    vm = ManagedVm("vm", spec())
    vm.fail("full", "node 0 is full")
    vm.ask(spec(size_bytes=4 * MIB))
    assert (vm.attempts, vm.retry_at, vm.failure) == (0, 0.0, "")


def test_since_is_when_the_state_changed_not_its_message() -> None:
    vm = ManagedVm("vm", since=1.0)
    vm.enter(VmState.WAITING, "another reason")
    assert vm.since == 1.0
    vm.enter(VmState.PROVISIONING)
    assert vm.since > 1.0


def test_well_placed_memory_is_ready() -> None:
    vm = provisioned()
    vm.drift = VmDrift("vm", (guest_node_drift(0, {0: 8 * MIB}, {0}),))
    vm.settle()
    assert (vm.state, vm.message) == (VmState.READY, "")


def test_drift_degrades_with_cause_and_remedy() -> None:
    vm = provisioned()
    vm.drift = VmDrift("vm", (guest_node_drift(0, {1: 8 * MIB}, {0}),))
    assert vm.settle()
    assert vm.state is VmState.DEGRADED
    assert vm.message == "guest node 0: spilled: the node was full"
    assert vm.hint == "free memory there"
    assert not vm.settle()


def test_memory_that_nothing_places_is_degraded() -> None:
    vm = provisioned(Strategy.UNMANAGED)
    vm.settle()
    assert (vm.state, vm.message) == (VmState.DEGRADED, "guest node 0: unmanaged: because")


def test_promises_count_from_admission_to_residency() -> None:
    plan = region_plan()
    vm = ManagedVm("vm", spec(), plan=VmPlan(spec(), (plan,)))
    assert vm.promises() == ()
    vm.promised = True
    assert vm.promises() == (plan,)
    assert dict(vm.resident()) == {("vm", 0, 0): {0: 0}}
    vm.progress = Progress("vm", Stage.PREFAULTING, 2 * MIB, 8 * MIB)
    assert dict(vm.resident()) == {("vm", 0, 0): {0: 2 * MIB}}


def test_what_an_audit_saw_is_what_is_there() -> None:
    vm = provisioned()
    assert dict(vm.resident()) == {("vm", 0, 0): {0: 8 * MIB}}
    seen = RegionAudit(0, 0, 8 * MIB, 4096, 3 * MIB, {0: 3 * MIB})
    vm.audit = VmAudit("vm", 0.0, 0.0, 0.0, (seen,))
    assert dict(vm.resident()) == {("vm", 0, 0): {0: 3 * MIB}}


def test_memory_not_prefaulted_stays_promised_until_seen() -> None:
    vm = provisioned()
    vm.regions[0].plan = replace(region_plan(), prefault=False)
    assert dict(vm.resident()) == {("vm", 0, 0): {0: 0}}


def test_what_was_only_sampled_and_grows_by_itself_counts_for_what_it_is_at_the_least() -> None:
    vm = provisioned()
    sample = Sample(2048, 256, {0: 128})
    seen = RegionAudit(0, 0, 8 * MIB, 4096, 4 * MIB, {0: 4 * MIB}, exact=False, sample=sample)
    vm.audit = VmAudit("vm", 0.0, 0.0, 0.0, (seen,))
    assert dict(vm.resident()) == {("vm", 0, 0): {0: 4 * MIB}}
    vm.regions[0].plan = replace(region_plan(), prefault=False)
    (there,) = dict(vm.resident()).values()
    assert 3 * MIB < there[0] < 3.9 * MIB


def test_a_broken_file_is_told_beside_the_version_in_force() -> None:
    vm = provisioned()
    vm.settle()
    vm.problem = PROBLEM
    status = vm.status()
    assert status.spec_error
    assert status.state is VmState.READY
    assert status.message == ""
    assert "last good version" in status.warnings[0]


def test_a_vm_of_a_broken_file_alone_says_what_is_wrong() -> None:
    vm = ManagedVm("vm", problem=PROBLEM)
    vm.enter(VmState.FAILED, str(PROBLEM), "write 8MiB")
    status = vm.status()
    assert (status.source, status.spec_error) == (None, True)
    assert status.message.startswith("/v/vm.yaml:3:1")


def test_what_is_told_of_a_vm_is_the_same_object_until_it_is_another() -> None:
    vm = provisioned()
    told, promised = vm.status(), vm.commitments()
    assert vm.status() is told
    vm.audit_due = 5.0
    vm.touch()
    assert vm.status() is told, "nothing of it is another"
    assert vm.commitments() is promised
    vm.enter(VmState.DEGRADED, "why")
    assert vm.status() is not told
    assert vm.status().message == "why"
    vm.regions = []
    assert vm.commitments() is not promised
    assert vm.commitments().committed == {}


def test_a_vm_is_another_revision_only_where_something_has_changed() -> None:
    vm = provisioned()
    revision = vm.revision
    vm.audit_due, vm.looked_at, vm.inline, vm.message = 5.0, (1, 2), False, ""
    assert vm.revision is revision
    vm.message = "other"
    assert vm.revision is not revision
