from __future__ import annotations

from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from gmemd.export.instruments import AUDIT_DURATION_BUCKETS_SECONDS, Counters

if TYPE_CHECKING:
    from gmemd.export.snapshot import VmStatus


def test_an_audit_is_counted_whole(placed: VmStatus) -> None:
    counters = Counters()
    assert placed.audit is not None
    counters.add_audit(placed.audit)
    counters.add_audit(replace(placed.audit, duration_seconds=1e6))
    counts = counters.read()
    assert counts.audit_cpu_seconds == 0.25
    assert counts.audit_pages == 2 * 65536
    assert counts.audit_errors == {"poisoned": 4}
    buckets = dict(counts.audit_duration_buckets)
    assert (buckets["0.1"], buckets["0.5"], buckets["1800.0"], buckets["+Inf"]) == (0, 1, 1, 2)


def test_a_bound_belongs_to_its_bucket(placed: VmStatus) -> None:
    assert placed.audit is not None
    for bound in AUDIT_DURATION_BUCKETS_SECONDS:
        counters = Counters()
        counters.add_audit(replace(placed.audit, duration_seconds=bound))
        assert dict(counters.read().audit_duration_buckets)[str(bound)] == 1


def test_a_forgotten_vm_takes_its_counters_along() -> None:
    counters = Counters()
    for vm in ("a", "b"):
        counters.add_prefault(vm, 4096)
        counters.add_policy_failure(vm, "not-kept")
    counters.forget("a")
    counts = counters.read()
    assert counts.prefault_bytes == {"b": 4096}
    assert counts.policy_failures == {("b", "not-kept"): 1}


def test_threads_lose_no_counts() -> None:
    counters = Counters()

    def count() -> None:
        for _ in range(2000):
            counters.add_prefault("a", 1)

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.read().prefault_bytes == {"a": 8000}
