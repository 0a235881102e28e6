"""What blocks, in threads: reading the host, provisioning, auditing, observing, giving back.

Each kind has threads of its own, so that a long prefault holds up neither an audit nor a release.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gmemd.audit.locating import locate_vm
from gmemd.audit.vm import EVERY_PAGE, AuditedRegion, audit_vm
from gmemd.audit.watching import Watch, watch_vm, with_verified
from gmemd.daemon.scanning import Scanning
from gmemd.daemon.store.recovery import recover
from gmemd.errors import GmemdError
from gmemd.host.reading import read_host
from gmemd.memory.passed import MemoryFiles
from gmemd.memory.received import place_received, prefault_acquired
from gmemd.memory.regions import provision_vm, rebind, release

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gmemd.audit.asked import Asked
    from gmemd.audit.model import VmAudit
    from gmemd.daemon.store.recovery import Recovered
    from gmemd.host.model import Feature, Host
    from gmemd.memory.passed import MemoryFile
    from gmemd.memory.progress import Progress
    from gmemd.memory.regions import Region
    from gmemd.plan.admission import Reserve
    from gmemd.plan.layout import Extent
    from gmemd.plan.model import RegionPlan, VmPlan
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

MOST_PROVISIONING = 32
"""VMs that get memory at the same time; the kernel shares the CPUs out among their helpers, so that
a small one is ready long before the large ones that came earlier.

Measured on 2 CPUs: of two VMs of 4 GiB and, 0.2 s later, four of 256 MiB these were ready after
0.57 to 0.86 s (mean, medians of 3) where two VMs had their turn at a time, after 0.25 to 0.28 s so;
all six took 1.1 to 1.3 s either way. Turns at the CPUs, chunk by chunk, for the VM with the least
left made the small ones hardly sooner (0.18 to 0.32 s), and four of 1 GiB 40 % later.
"""
EXPENDABLE_SECONDS = 2.0
"""How long the end waits for a look at other processes: one that is stopped ends in less."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Workers:
    """The daemon's threads. Nothing here touches the daemon's state."""

    def __init__(self) -> None:
        self._provisioning = ThreadPoolExecutor(MOST_PROVISIONING, thread_name_prefix="provision")
        self._auditing = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._watching = ThreadPoolExecutor(1, thread_name_prefix="watch")
        self._releasing = ThreadPoolExecutor(2, thread_name_prefix="release")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._identifying = ThreadPoolExecutor(1, thread_name_prefix="identify")
        self._placing = ThreadPoolExecutor(MOST_PROVISIONING, thread_name_prefix="place")
        self._observing = _Expendable("observe")
        self._looking = _Expendable("look")
        self.scanning = Scanning()
        self._memory_files = MemoryFiles()
        self._features: dict[str, Feature] | None = None

    def close(self) -> None:
        """Wait for what runs, and end the threads; what only waits is dropped."""
        self._observing.close()
        self._looking.close()
        for pool in (
            self._provisioning,
            self._identifying,
            self._placing,
            self._auditing,
            self._watching,
            self._releasing,
            self._reading,
        ):
            pool.shutdown(wait=True, cancel_futures=True)
        self.scanning.close()

    async def read_host(self) -> Host:
        """Read the host's figures; its features are probed the first time only."""
        host = await self.read(read_host, probe=self._features is None)
        if self._features is None:
            self._features = dict(host.features)
        return replace(host, features=self._features)

    async def read(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run something short that reads files."""
        return await _run(self._reading, partial(function, *args, **kwargs))

    async def observe(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run something that looks at other processes, one at a time."""
        return await self._observing.run(partial(function, *args, **kwargs))

    async def look(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run a look at another process that somebody waits for, beside what is observed."""
        return await self._looking.run(partial(function, *args, **kwargs))

    async def provision(
        self,
        plan: VmPlan,
        host: Host,
        reserve: Reserve,
        progress: Callable[[Progress], None],
        cancel: threading.Event,
    ) -> list[Region]:
        """Make a VM's regions. Raises ProvisionError; all is given back then."""
        work = partial(
            provision_vm, plan, host=host, reserve=reserve, progress=progress, cancel=cancel
        )
        return await _run(self._provisioning, work)

    async def audit(
        self,
        vm: str,
        regions: Sequence[Region],
        *,
        confidential: bool,
        idle: bool,
        holders_cgroup: Path | None,
        progress: Callable[[int, int], None],
        stop: threading.Event,
        asked: Asked = EVERY_PAGE,
        layout: Mapping[tuple[int, int], Sequence[Extent]] | None = None,
    ) -> VmAudit:
        """Audit a VM's regions as is asked. Raises KernelError and AuditStoppedError.

        ``idle``: nobody uses them. ``holders_cgroup`` pays for what no cgroup of gmemd's own does;
        ``progress`` gets bytes looked at and bytes in all. With a ``layout``, which may be empty,
        it is told where in the regions what is (gmemd.audit.locating), unless they are
        ``confidential``.
        """
        audited = _audited(regions)
        audit = partial(
            audit_vm,
            vm,
            audited,
            readable=not confidential,
            idle=idle,
            stop=stop,
            counters_cgroup=_payer(regions, holders_cgroup),
            asked=asked,
        )

        def look() -> VmAudit:
            if layout is None or confidential:
                return with_verified(audit(progress=progress), audited, self.scanning.rolling)
            seen = audit(progress=lambda done, total: progress(done, 2 * total))
            return locate_vm(
                seen,
                audited,
                layout=layout,
                idle=idle,
                stop=stop,
                progress=lambda done, total: progress(total + done, 2 * total),
            )

        return await _run(self._auditing, look)

    async def watch(
        self,
        vm: str,
        regions: Sequence[Region],
        watch: Watch,
        *,
        holders_cgroup: Path | None,
        charged: bool,
    ) -> VmAudit:
        """Audit a VM's regions for little, and have them scanned behind everything from now on.

        ``holders_cgroup`` as in `audit`. ``charged``: it is spent of the budget, however it ends.
        Raises KernelError and AuditStoppedError.
        """
        self.scanning.start()
        watch = replace(watch, counters_cgroup=_payer(regions, holders_cgroup))

        def look() -> VmAudit:
            began = time.thread_time()
            try:
                return watch_vm(vm, _audited(regions), self.scanning.rolling, watch)
            finally:
                if charged:
                    self.scanning.looks.spend(time.thread_time() - began)

        return await _run(self._watching, look)

    async def identify(self, fd: int) -> MemoryFile:
        """Say which memory a received descriptor is. Raises NotMemoryError."""
        return await _run(self._identifying, partial(self._memory_files.identify, fd))

    async def place(
        self,
        received: Sequence[tuple[RegionPlan, int, int, MemoryFile]],
        *,
        spec: VmSpec,
        host: Host,
        reserve: Reserve,
        progress: Callable[[Progress], None],
        cancel: threading.Event,
        payer_fd: int | None,
    ) -> list[Region]:
        """Give received files (plan, fd, offset, what it is) their policies. See place_received."""
        work = partial(
            place_received,
            received,
            spec=spec,
            host=host,
            reserve=reserve,
            progress=progress,
            cancel=cancel,
            payer_fd=payer_fd,
        )
        return await _run(self._placing, work)

    async def prefault_acquired(
        self,
        regions: Sequence[Region],
        *,
        vm: str,
        host: Host,
        reserve: Reserve,
        progress: Callable[[Progress], None],
        cancel: threading.Event,
        payer_fd: int,
        payer: Path,
    ) -> None:
        """Prefault regions at the cost of a passed cgroup. Raises ProvisionError."""
        prefault = partial(
            prefault_acquired,
            regions,
            vm=vm,
            host=host,
            reserve=reserve,
            progress=progress,
            cancel=cancel,
            payer_fd=payer_fd,
            payer=payer,
        )

        def work() -> None:
            self.scanning.forget(regions)
            prefault()

        await _run(self._provisioning, work)

    async def release(self, regions: Sequence[Region]) -> None:
        """Give regions back."""

        def give_back(leaving: Sequence[Region]) -> None:
            try:
                self.scanning.remove(leaving)
            finally:
                release(leaving)

        await _run(self._releasing, partial(give_back, list(regions)))

    async def let_go(self, regions: Sequence[Region]) -> None:
        """Close regions that something else keeps, with what was made for them left as it is."""

        def close(leaving: Sequence[Region]) -> None:
            try:
                self.scanning.remove(leaving)
            finally:
                for region in leaving:
                    region.close()

        await _run(self._releasing, partial(close, list(regions)))

    async def recover(
        self, passed: Sequence[tuple[str, int]], directory: Path, host: Host, boot_id: str
    ) -> Recovered:
        """Have again what an earlier daemon left; see gmemd.daemon.store.recovery."""
        work = partial(recover, passed, directory, host=host, boot_id=boot_id)
        return await _run(self._identifying, work)

    async def close_fds(self, fds: Sequence[int]) -> None:
        """Close descriptors, any of which may be the last one of a guest's memory."""

        def close() -> None:
            for fd in fds:
                os.close(fd)

        await _run(self._releasing, close)

    async def rebind(self, changes: Sequence[tuple[Region, RegionPlan]]) -> None:
        """Give regions that exist a changed plan, for the pages still to come: all, or none.

        Raises ProvisionError where one can't have it; those before it get theirs back then.
        """

        def change() -> None:
            self.scanning.forget([region for region, _ in changes])
            before = [(region, region.plan, region.bind, region.rebound) for region, _ in changes]
            try:
                for region, plan in changes:
                    rebind(region, plan)
            except GmemdError:
                for region, plan, bind, rebound in before:
                    with contextlib.suppress(GmemdError):
                        rebind(region, plan)
                    region.plan, region.bind, region.rebound = plan, bind, rebound
                raise

        await _run(self._releasing, change)


class _Expendable:
    """A thread that the daemon's end doesn't wait for if it hangs.

    Reading the /proc of a process that is stuck in the kernel takes as long as that is.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], _R]) -> _R:
        """Give what the work gives, once all that was asked for before is done."""
        done: Future[_R] = Future()

        def do() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  it is the caller's
                done.set_exception(error)
            else:
                done.set_result(result)

        self._work.put(do)
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Wait a moment for what runs."""
        self._work.put(None)
        self._thread.join(EXPENDABLE_SECONDS)
        if self._thread.is_alive():
            log.warning("a look at other processes hangs; it is left behind")

    def _serve(self) -> None:
        while (do := self._work.get()) is not None:
            do()


def _audited(regions: Sequence[Region]) -> list[AuditedRegion]:
    return [
        AuditedRegion(region.fd, replace(region.plan, strategy=region.strategy), region.offset)
        for region in regions
    ]


def _payer(regions: Sequence[Region], holders_cgroup: Path | None) -> Path | None:
    """The directory of the cgroup that pays for all of the regions, where there is one."""
    payers = {region.cgroup for region in regions if region.own_cgroup}
    return payers.pop() if len(payers) == 1 else holders_cgroup


async def _run(pool: ThreadPoolExecutor, work: Callable[[], _R]) -> _R:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
