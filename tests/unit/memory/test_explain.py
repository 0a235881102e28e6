from __future__ import annotations

import pytest

from gmemd.memory.errors import ProvisionCancelledError
from gmemd.memory.prefault import PrefaultOutcome, PrefaultResult
from gmemd.memory.prefaulting import explain
from gmemd.memory.regions import Region
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode

MIB = 1 << 20
PLAN = RegionPlan(
    vm="db-01",
    guest_node=1,
    index=0,
    size_bytes=1024 * MIB,
    backend=Backend.GUEST_MEMFD,
    page_size=4096,
    policy=PolicyMode.BIND,
    host_nodes=frozenset({2}),
    strategy=Strategy.INODE_POLICY,
    reason="",
    prefault=True,
)
REGION = Region(PLAN, -1, (0, 0), PLAN.strategy, "")


@pytest.mark.parametrize(
    ("result", "reason", "message"),
    [
        (
            PrefaultResult(
                PrefaultOutcome.STOPPED_AT_RESERVE,
                512 * MIB,
                full_node=2,
                needed_bytes=512 * MIB,
                available_bytes=260 * MIB,
                reserve_bytes=256 * MIB,
            ),
            "node-full",
            (
                "node 2 is full: db-01: guest node 1 has 512MiB of 1GiB, needs 512MiB more, "
                "and 260MiB are left of which 256MiB are the reserve"
            ),
        ),
        (
            PrefaultResult(
                PrefaultOutcome.OOM_KILLED, 900 * MIB, full_node=2, available_bytes=1 * MIB
            ),
            "node-full",
            (
                "node 2 is full: the kernel's OOM killer ended the prefault of db-01: guest node 1 "
                "at 900MiB of 1GiB, with 1MiB left on the node"
            ),
        ),
        (
            PrefaultResult(PrefaultOutcome.COMPLETE, 896 * MIB, needed_bytes=128 * MIB),
            "not-resident",
            (
                "db-01: guest node 1: the kernel reported success and allocated 896MiB of 1GiB: "
                "134217728 bytes are missing"
            ),
        ),
        (
            PrefaultResult(
                PrefaultOutcome.CGROUP_FULL,
                100 * MIB,
                needed_bytes=924 * MIB,
                available_bytes=3 * MIB,
                detail="/sys/fs/cgroup/payer",
            ),
            "cgroup-full",
            (
                "cgroup /sys/fs/cgroup/payer is full: db-01: guest node 1 has 100MiB of 1GiB, "
                "needs 924MiB more, and 3MiB are left below memory.max"
            ),
        ),
        (
            PrefaultResult(PrefaultOutcome.KILLED, 1 * MIB, detail="SIGKILL"),
            "helper-killed",
            "the prefault helper of db-01: guest node 1 was killed by SIGKILL at 1MiB of 1GiB",
        ),
        (
            PrefaultResult(PrefaultOutcome.STUCK, 1 * MIB, detail="60 s"),
            "helper-stuck",
            (
                "the prefault helper of db-01: guest node 1 was stuck at 1MiB of 1GiB: it "
                "allocated nothing for 60 s, and was killed"
            ),
        ),
        (
            PrefaultResult(PrefaultOutcome.FAILED, 0, detail="no such thing"),
            "helper-failed",
            "the prefault helper of db-01: guest node 1 failed at 0B of 1GiB: no such thing",
        ),
    ],
)
def test_each_end_is_told_as_what_it_was(result: PrefaultResult, reason: str, message: str) -> None:
    error = explain(REGION, result)
    assert error is not None
    assert error.reason == reason
    assert error.message == message
    assert error.host_node == (2 if reason == "node-full" else None)


def test_all_of_it_is_no_error() -> None:
    assert explain(REGION, PrefaultResult(PrefaultOutcome.COMPLETE, 1024 * MIB)) is None


def test_cancelled_is_an_error_of_its_own() -> None:
    error = explain(REGION, PrefaultResult(PrefaultOutcome.CANCELLED, 0))
    assert isinstance(error, ProvisionCancelledError)
    assert error.reason == "cancelled"
