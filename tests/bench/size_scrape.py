"""Scraping a host with hundreds of VMs on eight host nodes, while one is audited and prefaulted.

This host may have one node, so the snapshot is made up; the server, the audit and the prefault
are the daemon's own.
"""

from __future__ import annotations

import gzip
import http.client
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.audit.model import RegionAudit, VmAudit
from gmemd.audit.vm import AuditedRegion, audit_vm
from gmemd.drift.model import GuestNodeDrift, VmDrift
from gmemd.export.http import MetricsServer
from gmemd.export.instruments import Counters
from gmemd.export.listening import parse_listen
from gmemd.export.snapshot import RegionStatus, Snapshot, VmState, VmStatus
from gmemd.host.model import Cpuset, Host, HostNode
from gmemd.host.zones import placeable
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.guard import Guard
from gmemd.memory.prefault import PrefaultJob, prefault
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VMS = 500
GUEST_NODES = 4
HOST_NODES = 8
REPEATS = 9
WORK_MIB = 256
_MIB = 1 << 20
_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True)
class Row:
    """One way to scrape: samples, and bytes that came; ``ratio`` is to one scrape alone.

    ``seconds`` is the median, ``fastest_seconds`` what it takes where nothing else is in its way.
    """

    way: str
    seconds: float
    fastest_seconds: float
    samples: int
    kib: float
    ratio: float


def _host() -> Host:
    nodes = tuple(
        HostNode(
            id=node,
            cpus=frozenset({node}),
            distances={other: 10 if other == node else 20 for other in range(HOST_NODES)},
            total_bytes=512 << 30,
            free_bytes=256 << 30,
            placeable_bytes=512 << 30,
            placeable_available_bytes=256 << 30,
            placeable_free_bytes=128 << 30,
            movable_bytes=0,
            movable_available_bytes=0,
        )
        for node in range(HOST_NODES)
    )
    everything = frozenset(range(HOST_NODES))
    return Host(nodes, {}, Cpuset(everything, everything), everything, "7.2.0")


def vm_status(name: str, number: int) -> VmStatus:
    """A VM with memory on all host nodes; ``number`` is in each figure, and so tells it."""
    mine = frozenset({number % HOST_NODES})
    regions, drifts = [], []
    for guest_node in range(GUEST_NODES):
        by_node = {node: (number + node) * _MIB for node in range(HOST_NODES)}
        size = sum(by_node.values())
        placed = by_node[min(mine)]
        regions.append(
            RegionPlan(
                vm=name,
                guest_node=guest_node,
                index=0,
                size_bytes=size,
                backend=Backend.GUEST_MEMFD,
                page_size=PAGE_SIZE,
                policy=PolicyMode.BIND,
                host_nodes=mine,
                strategy=Strategy.INODE_POLICY,
                reason="",
                prefault=True,
            )
        )
        drifts.append(
            GuestNodeDrift(
                guest_node=guest_node,
                size_bytes=size,
                resident_bytes=size,
                placed_bytes=placed,
                misplaced_bytes=size - placed,
                unknown_bytes=0,
                by_node=by_node,
                allowed=mine,
                drift_ratio=(size - placed) / size,
                drift_lower_ratio=(size - placed) / size,
                drift_upper_ratio=(size - placed) / size,
                tolerance_ratio=0.01,
                share_error_ratio=None,
                policy_match=True,
                drifting=True,
            )
        )
    audits = tuple(
        RegionAudit(plan.guest_node, 0, plan.size_bytes, PAGE_SIZE, plan.size_bytes, drift.by_node)
        for plan, drift in zip(regions, drifts, strict=True)
    )
    return VmStatus(
        vm=name,
        source=Source.CREATE,
        state=VmState.DEGRADED,
        since=float(number),
        regions=tuple(RegionStatus(plan) for plan in regions),
        drift=VmDrift(name, tuple(drifts)),
        audit=VmAudit(name, float(number), 0.1, 0.1, audits),
    )


def snapshot(number: int, vms: int = VMS) -> Snapshot:
    """A host full of VMs whose figures all tell the number."""
    names = (f"vm-{index:03d}" for index in range(vms))
    return Snapshot(
        version="0",
        taken_timestamp=float(number),
        host=_host(),
        vms=tuple(vm_status(name, number) for name in names),
        reload_success_timestamp=float(number),
    )


def changed(before: Snapshot, number: int, share: int) -> Snapshot:
    """The same, where every so manyth VM was audited since."""
    vms = tuple(
        vm_status(vm.vm, number) if index % share == 0 else vm
        for index, vm in enumerate(before.vms)
    )
    return replace(before, vms=vms)


def scrape(address: str, *, encoding: str = "gzip") -> bytes:
    """What a scrape gives, as it is sent."""
    host, port = parse_listen(address)
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
        return connection.getresponse().read()
    finally:
        connection.close()


def compare(vms: int = VMS, *, repeats: int = REPEATS) -> list[Row]:
    """Medians, with every VM another than at the scrape before, a quarter of them, and none."""
    counters = Counters()
    versions = [snapshot(number, vms) for number in (1, 2)]
    current = [versions[0]]
    with (
        MetricsServer(["127.0.0.1:0"], lambda: current[0], counters) as server,
        ThreadPoolExecutor(2) as clients,
        busy(),
    ):
        address = server.addresses[0]

        def renew(share: int) -> None:
            number = int(current[0].taken_timestamp) + 1
            if share == 1:
                current[0] = snapshot(number, vms)
            elif share:
                current[0] = replace(changed(current[0], number, share), taken_timestamp=number)

        def once() -> bytes:
            return scrape(address)

        def twice() -> bytes:
            first, _ = [each.result() for each in [clients.submit(once), clients.submit(once)]]
            return first

        ways: dict[str, tuple[Callable[[], bytes], int]] = {
            "every VM is new": (once, 1),
            "every VM is new, two at once": (twice, 1),
            "a quarter is new": (once, 4),
            "a quarter is new, two at once": (twice, 4),
            "nothing is new": (once, 0),
        }
        once()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, (do, share) in ways.items():
                renew(share)
                begun = time.perf_counter()
                body = do()
                seconds[way].append(time.perf_counter() - begun)
        samples = sum(line[:1] != b"#" for line in gzip.decompress(body).splitlines())
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    return [
        Row(
            way,
            medians[way],
            min(taken),
            samples,
            len(body) / 1024,
            medians[way] / medians[way.removesuffix(", two at once")],
        )
        for way, taken in seconds.items()
    ]


@contextmanager
def busy() -> Iterator[None]:
    """An audit and a prefault that go on all the time, as in a daemon's threads."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def over_and_over(do: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                do()
        except BaseException as error:  # noqa: BLE001  raised below, in the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=over_and_over, args=(do,)) for do in (_audit, _prefault)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _plan(size_bytes: int) -> RegionPlan:
    return RegionPlan(
        vm="bench",
        guest_node=0,
        index=0,
        size_bytes=size_bytes,
        backend=Backend.MEMFD,
        page_size=PAGE_SIZE,
        policy=PolicyMode.BIND,
        host_nodes=frozenset({0}),
        strategy=Strategy.INODE_POLICY,
        reason="",
        prefault=True,
    )


def _audit() -> None:
    fd = create_memfd("audit", WORK_MIB * _MIB)
    try:
        os.posix_fallocate(fd, 0, WORK_MIB * _MIB)
        audit_vm(
            "bench",
            [AuditedRegion(fd, _plan(WORK_MIB * _MIB), 0)],
            readable=True,
            idle=True,
            stop=threading.Event(),
            counters_cgroup=None,
            progress=lambda _done, _total: None,
        )
    finally:
        os.close(fd)


def _prefault() -> None:
    fd = create_memfd("prefault", WORK_MIB * _MIB)
    cpus = frozenset(os.sched_getaffinity(0))
    try:
        job = PrefaultJob(
            fd=fd,
            offset=0,
            length=WORK_MIB * _MIB,
            page_size=PAGE_SIZE,
            guard=Guard(dict.fromkeys(placeable(), _RESERVE_BYTES), movable=True),
            task_policy=MemPolicy("default"),
            cpus=cpus,
            any_cpus=cpus,
            n_threads=1,
        )
        prefault(job, progress=lambda _: None, cancel=threading.Event())
    finally:
        os.close(fd)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    return "\n".join(
        f"{row.way:32} {row.seconds * 1000:8.1f} ms (least {row.fastest_seconds * 1000:6.1f})"
        f" {row.samples:>8} samples {row.kib:>8.0f} KiB"
        f" {row.ratio:>6.2f}x"
        for row in rows
    )
