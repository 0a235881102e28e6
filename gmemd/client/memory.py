"""Memory as a VMM gets it from the daemon, and as it hands its own over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from gmemd.client.wire import close_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from gmemd.client.types import Policy
    from gmemd.client.wire import Reply


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a region's file (``offset`` from the file's start) at a guest-physical address."""

    gpa: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A region that was handed out: ``size`` bytes from ``offset`` on of the file ``fd``.

    Sizes are bytes. ``extents`` say where it should be in the guest's address space;
    ``policy_achieved`` is what the kernel was seen to keep, None for nothing. Regions of one file
    have the same fd, which is the Memory's to close.
    """

    guest_node: int
    index: int
    fd: int
    offset: int
    size: int
    page_size: int
    backend: str
    extents: tuple[Extent, ...]
    strategy: str
    reason: str
    policy: str
    host_nodes: tuple[int, ...]
    policy_outcome: str | None
    policy_achieved: Policy | None


class Memory:
    """A VM's memory: its regions and, each once, their fds, which close with it.

    What was mapped, or given to KVM, stays. The process that acquired it holds it on.
    """

    def __init__(
        self,
        vm: str,
        regions: Sequence[MemoryRegion],
        fds: Sequence[int],
        warnings: Sequence[str] = (),
    ) -> None:
        self.vm = vm
        self.regions = tuple(regions)
        self.fds = tuple(fds)
        self.warnings = tuple(warnings)

    def close(self) -> None:
        """Close the fds; a second call does nothing."""
        fds, self.fds = self.fds, ()
        close_all(fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a VM's memory is; ``ratio`` goes from 0 to 1, None where it can't be told."""

    state: str
    message: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Offered:
    """A piece of a guest node's memory that a VMM has made.

    ``size`` bytes from ``offset`` on of the guest_memfd or memfd ``fd``, which stays the caller's.
    """

    guest_node: int
    fd: int
    size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class PlacedRegion:
    """What became of a region that was registered or adopted.

    ``id`` names it among the VM's regions; ``index`` is that of the spec's region; ``resident``
    counts the bytes that existed before the policy was set, which no policy places any more.
    """

    id: int
    guest_node: int
    index: int
    offset: int
    size: int
    page_size: int
    backend: str
    strategy: str
    reason: str
    policy: str
    host_nodes: tuple[int, ...]
    policy_outcome: str | None
    policy_achieved: Policy | None
    resident: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of regions, and how the VM of process ``pid`` is with them."""

    vm: str
    state: str
    message: str
    pid: int
    regions: tuple[PlacedRegion, ...]
    warnings: tuple[str, ...]


def memory_of(reply: Reply) -> Memory:
    """Decode the last reply to Acquire; its fds are the Memory's from then on."""
    told = reply.parameters
    regions = [_memory_region(region, reply.fds) for region in told["regions"]]
    return Memory(told["vm"], regions, reply.take_fds(), told["warnings"])


def progress_of(told: Mapping[str, Any]) -> Progress:
    """Decode a reply before the last one."""
    return Progress(told["state"], told["message"], told.get("progress_ratio"))


def placed_of(reply: Reply) -> Placed:
    """Decode the reply to Register and Adopt."""
    told = reply.parameters
    return Placed(
        vm=told["vm"],
        state=told["state"],
        message=told["message"],
        pid=told["pid"],
        regions=tuple(map(_placed_region, told["regions"])),
        warnings=tuple(told["warnings"]),
    )


def _memory_region(told: Mapping[str, Any], fds: Sequence[int]) -> MemoryRegion:
    return MemoryRegion(
        guest_node=told["guest_node"],
        index=told["index"],
        fd=_fd(fds, told["fd_index"]),
        offset=told["offset"],
        size=told["size"],
        page_size=told["page_size"],
        backend=told["backend"],
        extents=tuple(
            Extent(extent["gpa"], extent["offset"], extent["size"]) for extent in told["extents"]
        ),
        strategy=told["strategy"],
        reason=told["reason"],
        policy=told["policy"],
        host_nodes=tuple(told["host_nodes"]),
        policy_outcome=told.get("policy_outcome"),
        policy_achieved=told.get("policy_achieved"),
    )


def _fd(fds: Sequence[int], index: int) -> int:
    if not 0 <= index < len(fds):
        raise IndexError(f"file descriptor {index} of {len(fds)}")
    return fds[index]


def _placed_region(told: Mapping[str, Any]) -> PlacedRegion:
    return PlacedRegion(
        id=told["id"],
        guest_node=told["guest_node"],
        index=told["index"],
        offset=told["offset"],
        size=told["size"],
        page_size=told["page_size"],
        backend=told["backend"],
        strategy=told["strategy"],
        reason=told["reason"],
        policy=told["policy"],
        host_nodes=tuple(told["host_nodes"]),
        policy_outcome=told.get("policy_outcome"),
        policy_achieved=told.get("policy_achieved"),
        resident=told["resident"],
        warnings=tuple(told["warnings"]),
    )
