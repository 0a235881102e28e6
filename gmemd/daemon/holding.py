"""Who has a VM's memory: a process, known by its pidfd, and what happens when it exits.

A pidfd names one process for good, whatever its number is given to afterwards.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.export.snapshot import HolderStatus
from gmemd.host.vms.holders import ProcessFacts, has_exited
from gmemd.spec.nodeset import format_nodeset

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan


@dataclass(slots=True)
class Holder:
    """A process that has a VM's memory, on the event loop.

    ``pidfd`` is the holder's own. ``opener`` is the pid that asked for the memory on its behalf,
    and ``opener_pidfd`` its (-1: it did so itself). ``vouched``: it is known to be the VM's VMM, by
    its own word or that of who may say so of any process. ``stored_as`` and ``opener_stored_as``
    are what the pidfds are called where they outlive the daemon.
    """

    pidfd: int
    pid: int
    facts: ProcessFacts = field(default_factory=ProcessFacts)
    opener: int = 0
    opener_pidfd: int = -1
    vouched: bool = True
    since: float = field(default_factory=time.time)
    alive: bool = True
    stored_as: str = ""
    opener_stored_as: str = ""
    _watched: bool = False

    def watch(self, exited: Callable[[], None]) -> None:
        """Call back once it exits, soon if it has."""

        def tell() -> None:
            self._unwatch()
            self.alive = False
            exited()

        self._watched = True
        asyncio.get_running_loop().add_reader(self.pidfd, tell)

    @property
    def exited(self) -> bool:
        """Whether it has exited, told or not."""
        return not self.alive or has_exited(self.pidfd)

    @contextmanager
    def exit_cancels(self, cancel: threading.Event) -> Iterator[None]:
        """Set ``cancel`` if it exits meanwhile: what is done is for nobody then.

        Of one that is watched, who watches it is told.
        """
        if self._watched:
            yield
            return
        loop = asyncio.get_running_loop()

        def give_up() -> None:
            loop.remove_reader(self.pidfd)
            cancel.set()

        loop.add_reader(self.pidfd, give_up)
        try:
            yield
        finally:
            loop.remove_reader(self.pidfd)

    def is_process(self, pid: int) -> bool:
        """Whether it is the process that has that pid now."""
        return pid == self.pid and not self.exited

    def was_opened_by(self, pid: int) -> bool:
        """Whether the process that has that pid now asked for the memory on its behalf."""
        return pid == self.opener and self.opener_pidfd >= 0 and not has_exited(self.opener_pidfd)

    def close(self) -> None:
        """Watch it no more. Harmless when repeated."""
        self._unwatch()
        self.alive = False
        fds, self.pidfd, self.opener_pidfd = (self.pidfd, self.opener_pidfd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def status(self) -> HolderStatus:
        """Return the holder as the snapshot has it."""
        return HolderStatus(self.pid, self.since, self.facts.program, self.facts.unit, self.alive)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self.pidfd)


def cpuset_warnings(plan: RegionPlan, facts: ProcessFacts, host: Host) -> list[str]:
    """Tell of host nodes that a region asks for and its holder's cpuset leaves out.

    The cpuset of the task that faults a page in wins over the policy of the inode.
    """
    with_memory = frozenset(node.id for node in host.nodes if node.has_memory)
    outside = (plan.host_nodes & with_memory) - facts.mems
    if not facts.mems or not outside:
        return []
    has, lacks = format_nodeset(facts.mems), format_nodeset(outside)
    return [
        f"its VMM's cpuset.mems is {has}: what the guest touches first goes there, not to {lacks}"
    ]
