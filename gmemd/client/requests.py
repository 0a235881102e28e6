"""The calls of io.gmemd: what each sends, and what its reply becomes. io.gmemd.varlink explains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gmemd.client.memory import memory_of, placed_of, progress_of
from gmemd.client.wire import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from gmemd.client.memory import Memory, Offered, Placed, Progress
    from gmemd.client.types import AuditOptions, Listed, Planned, Reloaded, Vm
    from gmemd.client.wire import Reply


class Change(NamedTuple):
    """A VM as it is now; ``status`` is None where it is gone."""

    vm: str
    status: Vm | None


class _Fds:
    """The fds of one call, each once."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def index(self, fd: int) -> int:
        """Return an fd's number in the call."""
        return self._fds.setdefault(fd, len(self._fds))

    def optional(self, fd: int | None) -> int | None:
        """Return the same, or None."""
        return None if fd is None else self.index(fd)

    @property
    def all(self) -> tuple[int, ...]:
        """In their order."""
        return tuple(self._fds)


def listing() -> Request[Listed]:
    """List."""
    return Request("List", {}, lambda reply: cast("Listed", reply.parameters))


def describe(vm: str) -> Request[Vm]:
    """Describe."""
    return Request("Describe", {"vm": vm}, _vm)


def plan(vm: str | None, spec: str | None) -> Request[Planned]:
    """Plan."""
    return Request(
        "Plan", {"vm": vm, "spec": spec}, lambda reply: cast("Planned", reply.parameters)
    )


def acquire(
    vm: str,
    *,
    holder: int | None,
    timeout_seconds: float | None,
    cgroup: int | None,
    spec: str | None,
    progress: Callable[[Progress], None] | None,
) -> Request[Memory]:
    """Acquire; ``holder`` is a pidfd, ``cgroup`` an fd of a cgroup.procs."""
    fds = _Fds()
    parameters = {
        "vm": vm,
        "holder": fds.optional(holder),
        "cgroup": fds.optional(cgroup),
        "timeout_ms": None if timeout_seconds is None else math.ceil(timeout_seconds * 1000),
        "spec": spec,
    }

    def advance(told: dict[str, Any]) -> None:
        if progress is not None:
            progress(progress_of(told))

    return Request(
        "Acquire", parameters, memory_of, fds.all, advance if progress is not None else None
    )


def register(
    vm: str,
    regions: Sequence[Offered],
    *,
    remove: Sequence[int],
    holder: int | None,
    cgroup: int | None,
    spec: str | None,
) -> Request[Placed]:
    """Register; ``remove`` are ids of earlier regions."""
    fds = _Fds()
    parameters = {
        "vm": vm,
        "regions": [
            {
                "guest_node": region.guest_node,
                "fd_index": fds.index(region.fd),
                "offset": region.offset,
                "size": region.size,
            }
            for region in regions
        ],
        "remove": list(remove) or None,
        "holder": fds.optional(holder),
        "cgroup": fds.optional(cgroup),
        "spec": spec,
    }
    return Request("Register", parameters, placed_of, fds.all)


def adopt(vm: str, pid: int | None) -> Request[Placed]:
    """Adopt."""
    return Request("Adopt", {"vm": vm, "pid": pid}, placed_of)


def handover(vm: str, holder: int) -> Request[int]:
    """Handover; the result is the pid of the new holder."""
    return Request(
        "Handover", {"vm": vm, "holder": 0}, lambda reply: int(reply.parameters["pid"]), (holder,)
    )


def audit(
    vm: str, progress: Callable[[int, int], None] | None, **asked: Unpack[AuditOptions]
) -> Request[Vm]:
    """Audit; ``progress`` gets the bytes that were looked at, and all."""

    def advance(told: dict[str, Any]) -> None:
        if progress is not None and told.get("looked_at") is not None and told.get("total"):
            progress(told["looked_at"], told["total"])

    parameters: dict[str, Any] = {
        "vm": vm,
        **{name: value or None for name, value in asked.items()},
    }
    return Request("Audit", parameters, _vm, progress=advance if progress is not None else None)


def release(vm: str, *, force: bool) -> Request[str]:
    """Release; the result is the VM's state afterwards."""
    parameters = {"vm": vm, "force": True if force else None}
    return Request("Release", parameters, lambda reply: str(reply.parameters["state"]))


def reload() -> Request[Reloaded]:
    """Reload."""
    return Request("Reload", {}, lambda reply: cast("Reloaded", reply.parameters))


def watch(vm: str | None) -> Request[Change]:
    """Watch; every reply is a result, and there is no last one."""
    return Request(
        "Watch",
        {"vm": vm},
        lambda reply: Change(reply.parameters["vm"], reply.parameters.get("status")),
        progress=lambda _: None,
    )


def _vm(reply: Reply) -> Vm:
    return cast("Vm", reply.parameters["vm"])
