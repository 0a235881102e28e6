"""Walk through a VM's life once for each use of each call, and each errno that it can fail with.

``python -m tests.kernel.walk SCENARIO``: each time one call fails, once. What is wrong afterwards
is told, and the exit code is 1: a traceback, something left behind, a VM that doesn't heal, or a
failure that nobody was told of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from enum import StrEnum
from itertools import count as count_from
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kernel.walk.faults import Fault
from tests.kernel.walk.running import Running
from tests.kernel.walk.scenarios import NAMES, scenario
from tests.kernel.walk.table import errnos_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    from tests.kernel.walk.scenarios import Scenario, Told

LEAK_SECONDS = 5.0
REHEARSALS = 3
_FAILURES = ("failed: ", "the last audit failed")


class Extent(StrEnum):
    """How much is walked: all; the first and last use of each call; of these one errno each."""

    WHOLE = "whole"
    ENDS = "ends"
    BRIEF = "brief"


class Walk:
    """The walk through one scenario. ``wrong`` is what it found."""

    def __init__(self, running: Running, through: Scenario, *, extent: Extent) -> None:
        self._running = running
        self._through = through
        self._extent = extent
        self._known: set[str] = set()
        self._expected: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.n_walked = self.n_fired = self.n_told = 0

    def faults(self, counts: Mapping[tuple[str, str], int]) -> Iterator[Fault]:
        """What of it is to be walked, by how often each call was made."""
        turn = count_from(0)
        for (process, call), n_uses in sorted(counts.items()):
            uses = sorted({0, n_uses - 1})
            if self._extent is Extent.WHOLE:
                uses = list(range(n_uses))
            elif self._extent is Extent.BRIEF and "/" in call.replace("/dev/kvm", ""):
                uses = [0]  # one of the many files that are read in the same way
            for n in uses:
                errnos = errnos_of(call)
                if self._extent is Extent.BRIEF and errnos:
                    errnos = (errnos[next(turn) % len(errnos)],)
                for errno in errnos:
                    yield Fault(process, call, n, errno)

    def rehearse(self) -> dict[tuple[str, str], int]:
        """Go through it without a fault, to see what calls are made and what is told then."""
        counts: dict[tuple[str, str], int] = {}
        for _ in range(REHEARSALS):
            with self._running.faults.armed(None):
                told = self._through.run()
            if told.refusals:
                self.wrong.append(f"without a fault: {told.refusals}")
            self._known |= told.seen
            self._expected.append(told.result)
            counts = self._running.faults.counts()
        return counts

    def take(self, fault: Fault) -> None:
        """Go through it with a fault, and note what is wrong afterwards."""
        running = self._running
        before, counted = running.holds(), running.counters()
        told: Told | None = None
        unhealed = ""
        try:
            with running.faults.armed(fault):
                told = self._through.run()
        except (TimeoutError, AssertionError) as error:
            unhealed = str(error)
        self.n_walked += 1
        fired = running.faults.fired
        self.n_fired += fired
        self._check_leaks(fault, before)
        problems = [f"unexpected: {text}" for text in running.unexpected]
        running.unexpected.clear()
        if unhealed:
            problems.append(f"not healed: {unhealed}")
        if told is not None:
            problems += self._judged(told, counted, fired=fired)
        self.wrong += [f"{fault}: {problem}" for problem in problems]

    def _judged(self, told: Told, counted: Mapping[str, float], *, fired: bool) -> list[str]:
        """Whether what went wrong was told: to the caller or in the status, and in the metrics."""
        news = sorted(told.seen - self._known)
        after = told.counters | self._running.counters()
        grown = [name for name, value in after.items() if value > counted.get(name, 0)]
        failures = [text for text in news if text.startswith(_FAILURES)]
        if told.refusals or news:
            self.n_told += 1
        elif told.result not in self._expected and fired:
            if _unknown(told.result) <= max(map(_unknown, self._expected)):
                return [f"told nobody: {_difference(self._expected[-1], told.result)}"]
            self.n_told += 1  # the status has the bytes whose node isn't known, and a gauge, too
        expected = [each | {"warnings": told.result["warnings"]} for each in self._expected]
        if told.healed is not None and told.healed not in expected:
            return [f"not healed by another audit: {_difference(self._expected[-1], told.healed)}"]
        if (told.refusals or failures) and not grown:
            return [f"not in the metrics: {[*told.refusals, *failures]}"]
        return []

    def _check_leaks(self, fault: Fault, before: Counter[str]) -> None:
        deadline = time.monotonic() + LEAK_SECONDS
        while left := self._running.holds() - before:
            if time.monotonic() > deadline:
                self.wrong.append(f"{fault}: left behind: {dict(left)}")
                return
            time.sleep(0.005)


def _unknown(result: Mapping[str, Any]) -> int:
    """Bytes that the status says it doesn't know the node of."""
    drifts = [node["drift"] for node in result["nodes"]]
    return sum(drift["unknown"] for drift in drifts if drift is not None)


def _difference(expected: object, found: object) -> str:
    """What of a result is another."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [key for key in expected | found if expected.get(key) != found.get(key)]
        return ", ".join(f"{key}: {_difference(expected.get(key), found.get(key))}" for key in keys)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = zip(expected, found, strict=True)
        return "; ".join(_difference(*pair) for pair in pairs if pair[0] != pair[1])
    return f"{found} for {expected}"


def main() -> int:
    """Walk through the scenarios that are asked for."""
    parser = argparse.ArgumentParser(prog="tests.kernel.walk", description=__doc__)
    parser.add_argument("scenario", choices=NAMES)
    parser.add_argument("--extent", type=Extent, choices=Extent, default=Extent.WHOLE)
    parser.add_argument("--call", help="only calls whose name contains this")
    parser.add_argument("--process", help="only this process's")
    parser.add_argument("--list", action="store_true", help="say what calls are made, and end")
    args = parser.parse_args()
    wrong: list[str] = []

    def work(running: Running) -> None:
        with scenario(args.scenario, running) as through:
            walk = Walk(running, through, extent=args.extent)
            counts = walk.rehearse()
            if args.list:
                for (process, call), count in sorted(counts.items()):
                    print(f"{process:10}{count:5} {call}")  # noqa: T201
                return
            began = time.monotonic()
            for fault in walk.faults(counts):
                if (args.call or "") in fault.call and args.process in {None, fault.process}:
                    walk.take(fault)
                    while walk.wrong:
                        wrong.append(walk.wrong.pop(0))
                        print(wrong[-1], flush=True)  # noqa: T201
            print(  # noqa: T201
                f"{args.scenario}: {walk.n_walked} faults, {walk.n_fired} came about, "
                f"{walk.n_told} were told of, {len(wrong)} problems, "
                f"{time.monotonic() - began:.1f} s"
            )

    with tempfile.TemporaryDirectory(prefix="gmemd-walk-") as directory:
        Running(Path(directory)).run(work)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
