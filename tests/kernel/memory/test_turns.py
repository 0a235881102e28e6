"""Many VMs at once: the small ones don't wait until the large ones have all their memory."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.work import Workers
from gmemd.memory.regions import release
from gmemd.plan.admission import Reserve

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmemd.host.model import Host
    from gmemd.memory.progress import Progress
    from gmemd.plan.model import VmPlan

pytestmark = pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")

MIB = 1 << 20
N_LARGE = 5
LARGE = 768 * MIB
SMALL = 16 * MIB
RESERVE = Reserve(ratio=0.02, minimum_bytes=256 * MIB)


def test_a_small_vm_is_ready_while_large_ones_are_provisioned(
    vm_plan: Callable[..., VmPlan], host: Host
) -> None:
    ready: list[str] = []
    workers = Workers()

    async def provision(kind: str, size: int, begun: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def note(progress: Progress) -> None:
            if progress.allocated_bytes:
                loop.call_soon_threadsafe(begun.set)

        regions = await workers.provision(vm_plan(size), host, RESERVE, note, threading.Event())
        ready.append(kind)
        await asyncio.to_thread(release, regions)

    async def run() -> None:
        begun = asyncio.Event()
        large = [asyncio.create_task(provision("large", LARGE, begun)) for _ in range(N_LARGE)]
        await begun.wait()
        await asyncio.gather(*large, provision("small", SMALL, asyncio.Event()))

    try:
        asyncio.run(run())
    finally:
        workers.close()
    assert ready.count("large") == N_LARGE
    assert ready.index("small") <= 1, ready
