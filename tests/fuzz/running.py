"""Runs one kind of input many times: what it takes, whether anything grows, what was found.

Every input is made from the seed, the kind and its number alone, so that any can be made again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.fuzz.checking import Finding, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_SECONDS = 0.1
"""CPU time of one input, above which it counts as a hang."""

MOST_GROWTH_BYTES = 16 << 20
MOST_GROWTH_OBJECTS = 2000
MOST_FINDINGS = 10
_WARM_UP = 0.1
_TRIES = 3


@dataclass(frozen=True)
class Kind:
    """A kind of input: how one is made, and what has to hold; tells if it was accepted."""

    name: str
    make: Callable[[Random], bytes]
    check: Callable[[bytes], bool]


@dataclass(frozen=True)
class Found:
    """An input that must not have done what it did."""

    kind: str
    number: int
    what: str
    data: bytes


@dataclass
class Tally:
    """What a run saw. Sizes in bytes; ``slowest`` is CPU seconds, number and size of an input."""

    kind: str
    n: int = 0
    n_accepted: int = 0
    cpu_seconds: float = 0.0
    slowest: tuple[float, int, int] = (0.0, 0, 0)
    rss_bytes: tuple[int, int] = (0, 0)
    n_objects: tuple[int, int] = (0, 0)
    n_fds: tuple[int, int] = (0, 0)
    found: list[Found] = field(default_factory=list)

    def __str__(self) -> str:
        seconds, number, size = self.slowest
        rate = self.n / self.cpu_seconds if self.cpu_seconds else 0.0
        return (
            f"{self.kind}: {self.n} inputs, {self.n_accepted} accepted, {rate:.0f}/s of CPU time, "
            f"slowest {seconds * 1000:.1f} ms (input {number}, {size} bytes), "
            f"RSS {_pair(self.rss_bytes, 1 << 20)} MiB, objects {_pair(self.n_objects)}, "
            f"fds {_pair(self.n_fds)}, {len(self.found)} findings"
        )


def _pair(values: tuple[int, int], unit: int = 1) -> str:
    return " -> ".join(str(round(value / unit)) for value in values)


def input_of(seed: int, kind: Kind, number: int) -> bytes:
    """The input of that number."""
    return kind.make(Random(f"{seed} {kind.name} {number}"))


def run(
    kind: Kind, numbers: range, seed: int, tell: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Try the inputs of those numbers; ``tell`` is called from time to time."""
    tally = Tally(kind.name)
    warm = max(1, int(len(numbers) * _WARM_UP))
    for number in numbers:
        _try(kind, number, seed, tally)
        if tally.n == warm:
            at_first = _sizes()
        if tally.n % 1000 == 0:
            tell(tally)
        if len(tally.found) >= MOST_FINDINGS:
            break
    if tally.n > warm:
        _compare(tally, at_first, _sizes())
    tell(tally)
    return tally


def _try(kind: Kind, number: int, seed: int, tally: Tally) -> None:
    data = input_of(seed, kind, number)
    begun = time.thread_time()
    try:
        tally.n_accepted += kind.check(data)
    except Finding as finding:
        tally.found.append(Found(kind.name, number, str(finding), data))
    except Exception:  # noqa: BLE001  each is what is looked for
        tally.found.append(Found(kind.name, number, traceback.format_exc(limit=-6), data))
    seconds = time.thread_time() - begun
    if seconds > LIMIT_SECONDS:  # once may be the garbage collector's
        seconds = min(seconds, *_times(kind, data))
    tally.n += 1
    tally.cpu_seconds += seconds
    tally.slowest = max(tally.slowest, (seconds, number, len(data)))
    if seconds > LIMIT_SECONDS:
        what = f"took {seconds * 1000:.0f} ms of CPU time"
        tally.found.append(Found(kind.name, number, what, data))


def _times(kind: Kind, data: bytes) -> Iterator[float]:
    for _ in range(_TRIES):
        yield cpu_seconds(lambda: _quietly(kind, data))


def _quietly(kind: Kind, data: bytes) -> None:
    with contextlib.suppress(Exception):  # found before
        kind.check(data)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this thread that some work takes."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def _sizes() -> tuple[int, int, int]:
    """This process' resident bytes, objects and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    n_fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names alone
    return pages * os.sysconf("SC_PAGESIZE"), len(gc.get_objects()), n_fds


def _compare(tally: Tally, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    tally.rss_bytes, tally.n_objects, tally.n_fds = zip(before, after, strict=True)
    for what, grown, most in (
        ("RSS bytes", after[0] - before[0], MOST_GROWTH_BYTES),
        ("objects", after[1] - before[1], MOST_GROWTH_OBJECTS),
        ("open files", after[2] - before[2], 0),
    ):
        try:
            require(grown <= most, f"{what} grew by {grown} after the first {_WARM_UP:.0%}")
        except Finding as finding:
            tally.found.append(Found(tally.kind, tally.n, str(finding), b""))
