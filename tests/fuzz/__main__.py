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
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz import kinds, running, trees

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.fuzz.running import Kind, Tally

JOBS = 2


def main() -> int:
    """Run what was asked for."""
    args = _arguments()
    os.nice(args.nice)
    print(f"seed {args.seed}", flush=True)
    if args.again:
        return _again(args.again, args.seed)
    begun = time.monotonic()
    n_found = 0
    for name, number, what, data in (*_texts(args), *_at_a_daemon(args)):
        n_found += 1
        _save(args, name, number, what, data)
    print(f"{time.monotonic() - begun:.0f} s, {n_found} findings")
    return 1 if n_found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--specs", type=int, default=10_000, help="VM specs")
    parser.add_argument("--texts", type=int, default=1_000, help="of every other kind of text")
    parser.add_argument("--messages", type=int, default=1_000, help="varlink messages at a daemon")
    parser.add_argument("--requests", type=int, default=500, help="HTTP requests at a daemon")
    parser.add_argument("--kind", action="append", choices=kinds.BY_NAME, help="texts: these alone")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--again", metavar="KIND:NUMBER", help="print one input and try it")
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "gmemd-fuzz")
    return parser.parse_args()


Finding = tuple[str, int, str, bytes]
"""What was found: the kind and the number of the input, what is wrong, and the input."""


def _texts(args: argparse.Namespace) -> Iterator[Finding]:
    """Each kind in turn, its inputs shared out to processes."""
    for name in args.kind or kinds.BY_NAME:
        n = args.specs if name == kinds.SPEC else args.texts
        size = max(1, -(-n // JOBS))
        pieces = [range(start, min(n, start + size)) for start in range(0, n, size)]
        with multiprocessing.get_context("fork").Pool(JOBS) as pool:
            for tally in pool.imap(_piece, [(name, numbers, args.seed) for numbers in pieces]):
                _print(str(tally))
                for one in tally.found:
                    yield one.kind, one.number, one.what, one.data


def _piece(task: tuple[str, range, int]) -> Tally:
    name, numbers, seed = task
    try:
        return running.run(
            kinds.BY_NAME[name],
            numbers,
            seed,
            lambda tally: _tell(f"{name}: {tally.n} of {len(numbers)}"),
        )
    finally:
        trees.remove()


def _at_a_daemon(args: argparse.Namespace) -> Iterable[Finding]:
    """Messages and requests at one daemon, and what became of it."""
    if args.kind or not (args.messages or args.requests):
        return ()
    from tests.fuzz import siege  # noqa: PLC0415  texts need no daemon

    with ExitStack() as stack:
        besieged = stack.enter_context(siege.siege())
        besieged.run(args.messages, args.requests, args.seed, _tell)
        for line in besieged.lines:
            _print(line)
        return [(*found, b"") for found in besieged.found]


def _print(line: str) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(line, flush=True)


def _tell(line: str) -> None:
    """Progress, at a terminal alone."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _again(which: str, seed: int) -> int:
    name, _, number = which.partition(":")
    if name not in kinds.BY_NAME:
        from tests.fuzz import siege  # noqa: PLC0415  as above

        print(siege.input_of(name, seed, int(number)))
        return 0
    kind: Kind = kinds.BY_NAME[name]
    data = running.input_of(seed, kind, int(number))
    print(repr(data))
    try:
        print("accepted" if kind.check(data) else "refused")
    finally:
        trees.remove()
    return 0


def _save(args: argparse.Namespace, name: str, number: int, what: str, data: bytes) -> None:
    print(f"{name} {number}: {what}", file=sys.stderr)
    if data:
        args.findings.mkdir(exist_ok=True)
        path = args.findings / f"{args.seed}-{name}-{number}"
        path.write_bytes(data)
        print(f"  input in {path}", file=sys.stderr)
    if number >= 0:
        again = f"python -m tests.fuzz --seed {args.seed} --again {name}:{number}"
        print(f"  again: {again}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
