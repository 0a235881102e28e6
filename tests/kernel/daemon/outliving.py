"""A daemon that dies and comes back, with a store between, and what has to be as it was."""

from __future__ import annotations

import mmap
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.client.blocking import call
from gmemd.client.errors import CallError, NoDaemonError
from tests import stepping
from tests.kernel.daemon.vmms import RefusedByDaemonError
from tests.numa.counting import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.daemon.conftest import Daemon
    from tests.kernel.daemon.keeping import Store

REGIONS = 2  # of each VM that Daemon.write writes
POLICIES = {"bind [0]", "preferred [0]"}


class Outliving:
    """The daemon and its store. Lives follow each other; at a step one may be killed."""

    def __init__(self, daemon: Daemon, store: Store) -> None:
        self.daemon, self.store = daemon, store
        self._step = daemon.directory / "step"

    @contextmanager
    def life(self) -> Iterator[Daemon]:
        """A daemon until the block ends, which kills it."""
        with self.daemon.running(**{stepping.VARIABLE: str(self._step)}) as running:
            yield running

    def dies_at(self, step: str, work: Callable[[], object]) -> None:
        """Have the daemon do something, on the way of which it is killed at a step."""
        assert self.daemon.process is not None
        self._step.write_text(step)
        self.try_to(work)
        self.daemon.process.wait(60)
        assert not self._step.exists(), f"{step} was not reached"

    def try_to(self, work: Callable[[], object]) -> None:
        """Have the daemon do something, which it may not live to tell."""
        with suppress(CallError, NoDaemonError, RefusedByDaemonError):
            work()

    def dies_starting(self, step: str) -> None:
        """Have a daemon be killed at a step of its start."""
        self._step.write_text(step)
        with suppress(AssertionError), self.life():
            pass
        assert not self._step.exists(), f"{step} was not reached"

    def reload(self) -> Callable[[], object]:
        """What has it read specs again."""
        return lambda: call(self.daemon.socket, "Reload")

    def vms(self) -> dict[str, dict[str, Any]]:
        """All VMs, as root is told of them."""
        return {vm["vm"]: vm for vm in call(self.daemon.socket, "List")["vms"]}

    def check(self, regions: int, holders: int) -> None:
        """Both the store and the daemon have each region once, with a policy, and nothing besides.

        The policy is that of the spec, on host node 0, seen in a mapping of the test's own.
        """
        self.daemon.until(lambda: self._is(regions, holders))
        self.daemon.until(lambda: self.store.names("s") == ["s.1"])
        names = self.store.names("r")
        assert len(set(names)) == regions
        mine = [f"r.{device:x}.{number:x}" for device, number in self.memory().elements()]
        assert sorted(mine) == names
        assert {policy for policy in self.policies() if policy not in POLICIES} == set()

    def policies(self) -> list[str]:
        """The policy of each region in the store, and its nodes, as the kernel says them."""
        found = []
        for one in self.store.passed():
            if one.name.startswith("r."):
                with mmap.mmap(one.fd, 0) as memory:
                    mode, nodes = policy_of(memory)
                found.append(f"{mode} {nodes}")
        return found

    def _is(self, regions: int, holders: int) -> bool:
        have = len(self.store.names("r")), len(self.store.names("h"))
        return have == (regions, holders) and self.memory().total() == regions

    def memory(self) -> Counter[tuple[int, int]]:
        """The guests' memory that the daemon has descriptors of, and how many."""
        assert self.daemon.process is not None
        found: Counter[tuple[int, int]] = Counter()
        for fd in Path(f"/proc/{self.daemon.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                link, status = str(fd.readlink()), fd.stat()
                if "/memfd:" in link and "gmemd-state" not in link:
                    found[status.st_dev, status.st_ino] += 1
        return found
