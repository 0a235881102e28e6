"""How much may be allocated next without waking the kernel's OOM killer. All sizes in bytes.

A strict bind to a full node is no ENOMEM but a global OOM kill, so a prefault re-reads what its
nodes have left before each chunk, and stops at the reserve.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.host import zones

if TYPE_CHECKING:
    from collections.abc import Mapping

# A chunk takes at most this part of what is left above the reserve, so that near the reserve
# others' allocations are seen before they matter; far from it the re-reading costs nothing.
_HEADROOM_PARTS = 16
# 2 GiB of guest_memfd on two threads took 0.59 s of CPU time in chunks of 16 MiB, and 0.52 s in
# chunks of 64, 256 and 1024 MiB (medians of 9, in turn). Of those that cost the same 256 MiB looks
# at zoneinfo, which is longer on a host of more CPUs, the less often, and still 20 times a second.
_SMALLEST_CHUNK = 16 << 20
_LARGEST_CHUNK = 256 << 20


@dataclass(frozen=True, slots=True)
class Guard:
    """The nodes that a region's pages will come from, and what must be left on each.

    ``shares`` (parts of one, by node) hold for interleaving, where each node must give its own;
    without them the nodes give together. ``movable``: ZONE_MOVABLE counts (memfd, never
    guest_memfd). ``root`` is where /proc is found. ``oom_panics``: behind the guard there is no OOM
    killer that would take the helper, but a panic.
    """

    reserve_bytes: Mapping[int, int]
    shares: Mapping[int, float] = field(default_factory=dict)
    movable: bool = False
    root: str = "/"
    oom_panics: bool = False

    def available(self) -> dict[int, int]:
        """What each node can give now, its reserve included."""
        now = zones.placeable(Path(self.root))
        return {
            node: now[node].placeable_available_bytes
            + (now[node].movable_available_bytes if self.movable else 0)
            for node in self.reserve_bytes
            if node in now
        }

    def headroom(self, available: Mapping[int, int]) -> int:
        """What the nodes can give a region before the first of them reaches its reserve.

        Never negative. Nodes that give together are counted down to their reserves one by one.
        """
        left = {
            node: max(0, available.get(node, 0) - reserve)
            for node, reserve in self.reserve_bytes.items()
        }
        if self.shares:
            return int(min(left.get(node, 0) / share for node, share in self.shares.items()))
        return sum(left.values())

    def fullest(self, available: Mapping[int, int]) -> int:
        """The node with the least left above its reserve, in proportion to its share."""
        nodes = self.shares or self.reserve_bytes
        return min(
            nodes,
            key=lambda node: (
                (available.get(node, 0) - self.reserve_bytes[node]) / self.shares.get(node, 1.0),
                node,
            ),
        )


class Claims:
    """What helpers were told to allocate and hasn't shown in the kernel's figures: bytes by node.

    One for the whole process, so that guards which watch the same node see each other's chunks.
    """

    def __init__(self) -> None:
        self._bytes: Counter[int] = Counter()
        self._lock = threading.Lock()

    def take(
        self,
        guard: Guard,
        remaining: int,
        page_size: int,
        *,
        n_threads: int = 1,
        payers_room: int | None = None,
        ahead: bool = False,
    ) -> int:
        """Claim the next chunk; 0 where not a page fits now. ``payers_room`` None: no limit.

        ``ahead``: no thread is free for it yet, so near a limit it is better looked at later.
        """
        with self._lock:
            available = guard.available()
            left = {node: size - self._bytes[node] for node, size in available.items()}
            headroom = guard.headroom(left)
            if payers_room is not None:
                headroom = min(headroom, payers_room)
            if ahead and headroom < _HEADROOM_PARTS * _LARGEST_CHUNK:
                return 0
            chunk = next_chunk(remaining, headroom, page_size, n_threads=n_threads)
            self._count(guard, chunk)
        return chunk

    def give_back(self, guard: Guard, chunk: int) -> None:
        """The chunk is allocated, or never will be."""
        with self._lock:
            self._count(guard, -chunk)

    def _count(self, guard: Guard, change: int) -> None:
        """On each node its share; where any node may give all of it, all of it."""
        for node in guard.reserve_bytes:
            self._bytes[node] += round(change * (guard.shares.get(node, 0) if guard.shares else 1))


claims = Claims()


def next_chunk(remaining: int, headroom: int, page_size: int, *, n_threads: int = 1) -> int:
    """How much to allocate next: whole pages, 0 where not one page fits above the reserve.

    Several threads share what one may have. Towards the end chunks get smaller, so that they
    finish at the same time.
    """
    part = headroom // (_HEADROOM_PARTS * n_threads)
    chunk = min(max(part, _SMALLEST_CHUNK, page_size), _LARGEST_CHUNK)
    if n_threads > 1:
        chunk = min(chunk, max(remaining // n_threads, _SMALLEST_CHUNK))
    chunk = min(max(chunk, page_size), remaining, headroom)
    return chunk - chunk % page_size
