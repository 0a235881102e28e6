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
    from gmemd.memory.regions import Region
    from gmemd.plan.model import VmPlan

pytestmark = pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")

MIB = 1 << 20
N_LARGE = 8
RESERVE = Reserve(ratio=0.02, minimum_bytes=256 * MIB)
PATIENCE_SECONDS = 60.0


def test_a_small_vm_is_ready_while_large_ones_are_provisioned(
    vm_plan: Callable[..., VmPlan], host: Host
) -> None:
    """The large ones are held up at their first chunk, for as long as it takes."""
    workers, never = Workers(), threading.Event()
    under_way, go_on = threading.Semaphore(0), threading.Event()

    def hold(progress: Progress) -> None:
        if progress.allocated_bytes and not go_on.is_set():
            under_way.release()
            assert go_on.wait(PATIENCE_SECONDS)

    async def provision(size: int, note: Callable[[Progress], None]) -> list[Region]:
        return await workers.provision(vm_plan(size), host, RESERVE, note, never)

    async def run() -> None:
        large = [asyncio.create_task(provision(64 * MIB, hold)) for _ in range(N_LARGE)]
        try:
            for _ in large:
                began = await asyncio.to_thread(under_way.acquire, timeout=PATIENCE_SECONDS)
                assert began, "they are all provisioned at the same time"
            release(await asyncio.wait_for(provision(4 * MIB, lambda _: None), PATIENCE_SECONDS))
            assert not any(task.done() for task in large)
        finally:
            go_on.set()
            for regions in await asyncio.gather(*large):
                release(regions)

    try:
        asyncio.run(run())
    finally:
        workers.close()
