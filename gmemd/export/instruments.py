"""Counters that only grow: the daemon's threads increment them, the collector renders them.

This is the one mutable thing in the export layer; every access holds its lock, briefly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.audit.model import VmAudit

AUDIT_DURATION_BUCKETS_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True, slots=True)
class Counts:
    """The counters at one moment. ``audit_duration_buckets`` pairs upper bounds with totals."""

    audit_duration_buckets: tuple[tuple[str, float], ...]
    audit_duration_sum_seconds: float
    audit_cpu_seconds: float
    audit_pages: int
    audit_errors: dict[str, int]
    policy_failures: dict[tuple[str, str], int]
    prefault_bytes: dict[str, int]
    api_errors: dict[str, int]


class Counters:
    """What happened since the daemon started. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._durations = [0] * (len(AUDIT_DURATION_BUCKETS_SECONDS) + 1)
        self._duration_sum_seconds = 0.0
        self._cpu_seconds = 0.0
        self._pages = 0
        self._audit_errors: Counter[str] = Counter()
        self._policy_failures: Counter[tuple[str, str]] = Counter()
        self._prefault_bytes: Counter[str] = Counter()
        self._api_errors: Counter[str] = Counter()

    def add_audit(self, audit: VmAudit) -> None:
        """Count a finished audit: its time, CPU time, and the pages and errors of its own looks."""
        with self._lock:
            bucket = bisect_left(AUDIT_DURATION_BUCKETS_SECONDS, audit.duration_seconds)
            self._durations[bucket] += 1
            self._duration_sum_seconds += audit.duration_seconds
            self._cpu_seconds += audit.cpu_seconds
            for region in audit.regions:
                if region.rolled:
                    continue
                self._pages += region.pages_seen
                self._audit_errors.update(region.errors)

    def add_scan(self, cpu_seconds: float, pages_seen: int, errors: Mapping[str, int]) -> None:
        """Count what the rolling scan has done: its CPU time, pages and errors."""
        with self._lock:
            self._cpu_seconds += cpu_seconds
            self._pages += pages_seen
            self._audit_errors.update(errors)

    def add_audit_error(self, reason: str) -> None:
        """Count an audit that failed as a whole; ``reason`` is a short fixed word."""
        with self._lock:
            self._audit_errors[reason] += 1

    def add_policy_failure(self, vm: str, reason: str) -> None:
        """Count a policy that could not be set as asked; ``reason`` is a short fixed word."""
        with self._lock:
            self._policy_failures[vm, reason] += 1

    def add_prefault(self, vm: str, allocated_bytes: int) -> None:
        """Count bytes that a prefault allocated for the VM."""
        with self._lock:
            self._prefault_bytes[vm] += allocated_bytes

    def add_api_error(self, error: str) -> None:
        """Count a call that was answered with an error, by its name without the interface."""
        with self._lock:
            self._api_errors[error] += 1

    def forget(self, vm: str) -> None:
        """Drop what is counted by VM, once the VM is gone."""
        with self._lock:
            self._prefault_bytes.pop(vm, None)
            for key in [key for key in self._policy_failures if key[0] == vm]:
                del self._policy_failures[key]

    def read(self) -> Counts:
        """All counters at one moment."""
        with self._lock:
            return Counts(
                audit_duration_buckets=self._cumulative_buckets(),
                audit_duration_sum_seconds=self._duration_sum_seconds,
                audit_cpu_seconds=self._cpu_seconds,
                audit_pages=self._pages,
                audit_errors=dict(self._audit_errors),
                policy_failures=dict(self._policy_failures),
                prefault_bytes=dict(self._prefault_bytes),
                api_errors=dict(self._api_errors),
            )

    def _cumulative_buckets(self) -> tuple[tuple[str, float], ...]:
        bounds = [str(bound) for bound in AUDIT_DURATION_BUCKETS_SECONDS] + ["+Inf"]
        total = 0
        buckets = []
        for bound, count in zip(bounds, self._durations, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return tuple(buckets)
