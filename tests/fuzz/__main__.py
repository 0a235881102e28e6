"""`python -m tests.fuzz`: hostile specs, texts, messages and requests, as many as are asked for.

Prints what was tried and what it took. What was found is saved, with the command that makes the
same input again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz import kinds, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.running import Found, Kind, Tally

JOBS = 2
_PIECE = 50_000


def main() -> int:
    """Run what was asked for."""
    args = _arguments()
    os.nice(args.nice)
    print(f"seed {args.seed}", flush=True)
    if args.again:
        return _again(args.again, args.seed)
    begun = time.monotonic()
    tallies = list(_texts(args))
    found = [one for tally in tallies for one in tally.found]
    for one in found:
        _save(args.findings, args.seed, one)
    print(f"{time.monotonic() - begun:.0f} s, {len(found)} findings")
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--specs", type=int, default=10_000, help="VM specs")
    parser.add_argument("--texts", type=int, default=1_000, help="of every other kind of text")
    parser.add_argument("--kind", action="append", choices=kinds.BY_NAME, help="these alone")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--again", metavar="KIND:NUMBER", help="print one input and try it")
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "gmemd-fuzz")
    return parser.parse_args()


def _texts(args: argparse.Namespace) -> Iterator[Tally]:
    """Each kind in turn, its inputs shared out to processes; each piece's tally as it ends."""
    for name in args.kind or kinds.BY_NAME:
        n = args.specs if name == kinds.SPEC else args.texts
        size = max(1, -(-n // JOBS))
        pieces = [range(start, min(n, start + size)) for start in range(0, n, size)]
        with multiprocessing.get_context("fork").Pool(JOBS) as pool:
            for tally in pool.imap(_piece, [(name, numbers, args.seed) for numbers in pieces]):
                if sys.stderr.isatty():
                    print("\r\x1b[K", end="", file=sys.stderr)
                print(tally, flush=True)
                yield tally


def _piece(task: tuple[str, range, int]) -> Tally:
    name, numbers, seed = task

    def tell(tally: Tally) -> None:
        if sys.stderr.isatty():
            shown = f"{name}: {tally.n} of {len(numbers)}"
            print(f"\r\x1b[K{shown}", end="", file=sys.stderr, flush=True)

    return running.run(kinds.BY_NAME[name], numbers, seed, tell)


def _again(which: str, seed: int) -> int:
    name, _, number = which.partition(":")
    kind: Kind = kinds.BY_NAME[name]
    data = running.input_of(seed, kind, int(number))
    print(repr(data))
    print("accepted" if kind.check(data) else "refused")
    return 0


def _save(folder: Path, seed: int, one: Found) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{seed}-{one.kind}-{one.number}"
    path.write_bytes(one.data)
    print(f"{one.kind} {one.number}: {one.what}", file=sys.stderr)
    again = f"python -m tests.fuzz --seed {seed} --again {one.kind}:{one.number}"
    print(f"  input in {path}; again: {again}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
