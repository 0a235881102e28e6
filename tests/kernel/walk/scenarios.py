"""What is walked through: VMs from each source, from their spec to their memory's release.

Whatever fails is tried again, as an operator or a VMM would; a fault comes about once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from gmemd.client.blocking import BadCallError, NoDaemonError, RefusedError
from gmemd.client.errors import CallError
from tests.kernel.daemon.vmms import RefusedByDaemonError, Vmm, vmm
from tests.kernel.walk.running import PATIENCE_SECONDS
from tests.qemu import start_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.export.snapshot import VmStatus
    from tests.kernel.walk.running import Running

MIB = 1 << 20
REST_SECONDS = (0.0, 0.01, 0.1, 1.0, 2.0)
"""Before each attempt: a VMM that was not found is looked for again after a second."""

_REFUSALS = (CallError, BadCallError, RefusedError, RefusedByDaemonError, NoDaemonError)

CREATED = """\
version: 1
vm: created
source: create
prefault: true
guest_nodes:
  - {id: 0, memory: 2MiB, host_nodes: 0, policy: bind, backend: guest_memfd}
  - {id: 1, memory: 1MiB, host_nodes: 0, policy: local, backend: memfd}
"""
REGISTERED = """\
version: 1
vm: registered
source: register
guest_nodes:
  - {id: 0, memory: 2MiB, host_nodes: 0, backend: memfd, prefault: true}
  - {id: 1, memory: 1MiB, host_nodes: 0, backend: guest_memfd}
"""
ADOPTED = """\
version: 1
vm: adopted
source: adopt
backend: memfd
match: {{qemu_name: {name}}}
guest_nodes:
  - {{id: 0, memory: 8MiB, host_nodes: 0}}
  - {{id: 1, memory: 4MiB, host_nodes: 0}}
"""
OBSERVED = """\
version: 1
vm: observed
source: observe
match: {{qemu_name: {name}}}
drift_tolerance: 5%
guest_nodes:
  - {{id: 0, memory: 8MiB, host_nodes: 0, policy: default}}
  - {{id: 1, memory: 4MiB, host_nodes: 0, policy: default}}
"""
QEMU = (
    *("-object", "memory-backend-memfd,id=m0,size=8M,share=on,prealloc=on"),
    *("-object", "memory-backend-memfd,id=m1,size=4M,share=on,prealloc=on"),
    *("-m", "12M", "-smp", "2", "-numa", "node,cpus=0,memdev=m0", "-numa", "node,memdev=m1"),
)


@dataclass
class Told:
    """What an outsider was told: error replies, what status said on the way, and the result.

    ``healed`` is the result once all was looked at again after a fault; ``counters`` are the
    metrics' while there was memory: those of a VM go with it.
    """

    refusals: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    result: dict[str, Any] = field(default_factory=dict)
    healed: dict[str, Any] | None = None
    counters: dict[str, float] = field(default_factory=dict)


class Scenario(ABC):
    """One VM's life, over and over."""

    name = ""
    spec = ""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.told = Told()

    def run(self) -> Told:
        """Go through it once, from nothing to nothing."""
        self.told = Told()
        path = self.running.vms / f"{self.name}.yaml"
        with self._watching():
            path.write_text(self.spec)
            try:
                self.attempt("Reload", lambda: self.running.call("Reload"))
                self.live()
            except BaseException:
                with self.running.faults.paused(), suppress(*_REFUSALS):
                    self.running.call("Release", vm=self.name, force=True)
                raise
            finally:
                path.unlink()
                self.attempt("Reload", lambda: self.running.call("Reload"))
                self.running.until(lambda: self._status() is None, f"{self.name} is forgotten")
        return self.told

    @abstractmethod
    def live(self) -> None:
        """What is done between the spec's coming and going."""

    def attempt(self, what: str, do: Callable[[], object]) -> object:
        """Do something; what is refused once has to go well the next time."""
        for rest_seconds in REST_SECONDS:
            time.sleep(rest_seconds)
            try:
                return do()
            except _REFUSALS as error:
                self.told.refusals.append(f"{what}: {error}")
        raise TimeoutError(f"{what} doesn't heal: {self.told.refusals[-1]}")

    def audit(self) -> None:
        """A look at every page."""
        self.attempt("Audit", lambda: self.running.call("Audit", vm=self.name, where=True))

    def sample(self) -> None:
        """A look at some pages."""
        self.attempt("sample", lambda: self.running.call("Audit", vm=self.name, sample_pages=256))

    def note_result(self) -> None:
        """Remember how the VM is in the end, without what differs from one time to the next."""
        with self.running.faults.paused():
            self.told.counters = self.running.counters()
            self.told.result = self._described()
            if self.running.faults.fired:
                self.running.call("Audit", vm=self.name, full=True)
                # What became of a prefault stays a warning as long as its memory is there.
                self.told.healed = self._described() | {"warnings": self.told.result["warnings"]}

    def _described(self) -> dict[str, Any]:
        told = self.running.call("Describe", vm=self.name)["vm"]
        return {
            "state": told["state"],
            "warnings": sorted(told["warnings"]),
            "holder": (told["holder"] or {}).get("alive"),
            "nodes": [
                {
                    "drift": _figures(node["drift"]),
                    "regions": [
                        {key: each[key] for key in ("strategy", "policy_outcome", "size")}
                        for each in node["regions"]
                    ],
                }
                for node in told["guest_nodes"]
            ],
        }

    def until_state(self, *states: str) -> None:
        """Wait until it is in one of the states, which it has to come to by itself."""

        def is_so() -> bool:
            status = self._status()
            return status is not None and str(status.state) in states

        self.running.until(is_so, f"{self.name} is {' or '.join(states)}")

    def _status(self) -> VmStatus | None:
        vms = self.running.daemon.snapshot.vms
        return next((vm for vm in vms if vm.vm == self.name), None)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Note everything that the VM's status says meanwhile."""
        stop = Event()

        def watch() -> None:
            while not stop.wait(0.002):
                if (status := self._status()) is not None:
                    for text in (f"{status.state}: {status.message}", *status.warnings):
                        self.told.seen.add(text)

        thread = Thread(target=watch, name="watch-status")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(PATIENCE_SECONDS)


class Created(Scenario):
    """Made and prefaulted, acquired, audited, released."""

    name = "created"
    spec = CREATED

    def __init__(self, running: Running, guest: Vmm) -> None:
        super().__init__(running)
        self._guest = guest

    def live(self) -> None:
        self.until_state("ready")
        self.attempt("Acquire", lambda: self._guest.do("acquire", self.name))
        try:
            self.audit()
            self.sample()
            self.note_result()
            self.attempt("Release", lambda: self._guest.do("call", "Release", vm=self.name))
        finally:
            self._guest.do("drop", self.name)


class Registered(Scenario):
    """Made by a VMM, registered, prefaulted, audited, released."""

    name = "registered"
    spec = REGISTERED

    def __init__(self, running: Running, guest: Vmm) -> None:
        super().__init__(running)
        self._guest = guest

    def live(self) -> None:
        pieces = [(0, 0, 0, 2 * MIB), (1, 1, 0, MIB)]
        self._guest.do("make", self.name, 2 * MIB)
        self._guest.do("make_guest_memfd", self.name, MIB)
        try:
            self.attempt("Register", lambda: self._guest.do("register", self.name, pieces))
            self.audit()
            self.sample()
            self.note_result()
            self.attempt("Release", lambda: self._guest.do("call", "Release", vm=self.name))
        finally:
            self._guest.do("drop", self.name)


class Adopted(Scenario):
    """Taken from a QEMU that knows nothing of it, audited, let go."""

    name = "adopted"

    def __init__(self, running: Running, qemu_name: str) -> None:
        super().__init__(running)
        self.spec = ADOPTED.format(name=qemu_name)

    def live(self) -> None:
        self.until_state("ready")
        self.audit()
        self.sample()
        self.note_result()
        self.attempt("Release", lambda: self.running.call("Release", vm=self.name, force=True))


class Observed(Scenario):
    """A QEMU that is looked at."""

    name = "observed"

    def __init__(self, running: Running, qemu_name: str) -> None:
        super().__init__(running)
        self.spec = OBSERVED.format(name=qemu_name)

    def live(self) -> None:
        self.until_state("ready")
        self.audit()
        self.sample()
        self.note_result()


@contextmanager
def scenario(name: str, running: Running) -> Iterator[Scenario]:
    """One of them, with the VMM that it needs."""
    if name in {"created", "registered"}:
        with vmm(running) as guest:
            yield {"created": Created, "registered": Registered}[name](running, guest)
    else:
        qemu_name = f"walk-{time.monotonic_ns()}"
        with start_qemu(*QEMU, name=qemu_name):
            yield {"adopted": Adopted, "observed": Observed}[name](running, qemu_name)


NAMES = ("created", "registered", "adopted", "observed")


def _figures(drift: dict[str, Any] | None) -> object:
    if drift is None:
        return None
    return {key: drift.get(key) for key in ("placed", "misplaced", "unknown", "resident", "cause")}
