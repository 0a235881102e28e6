"""`python -m tests.bench`: what gmemd costs, on this machine, now."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import observing, provisioning, scanning, target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Section = tuple[list[Any], str]


def _running(folder: Path, sizes: Sequence[int]) -> Section:
    """Looking at a running VM, beside numastat -p."""
    program = target.build(folder)
    rows = [row for size in sizes for row in observing.compare(program, size)]
    return rows, observing.table(rows)


def _provisioning(folder: Path, sizes: Sequence[int]) -> Section:
    """Allocating memory, beside C and QEMU's preallocation."""
    program = provisioning.build(folder)
    qemu = shutil.which(provisioning.QEMU) is not None
    rows = [
        row
        for size in sizes
        for case in provisioning.cases(size)
        for row in provisioning.compare(program, case, qemu=qemu, repeats=provisioning.REPEATS)
    ]
    return rows, provisioning.table(rows)


def _scanning(folder: Path, sizes: Sequence[int]) -> Section:
    """Looking at memory that gmemd holds, beside the system calls alone."""
    program = scanning.build(folder)
    rows = [row for size in sizes for row in scanning.compare(program, size)]
    return rows, scanning.table(rows)


SECTIONS: dict[str, Callable[[Path, Sequence[int]], Section]] = {
    "running": _running,
    "scanning": _scanning,
    "provisioning": _provisioning,
}


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "section", nargs="*", metavar="SECTION", help=f"one of {', '.join(SECTIONS)}; all if none"
    )
    parser.add_argument(
        "--mib", type=int, nargs="+", default=[1024, 4096], help="sizes of the memory looked at"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    unknown = set(args.section) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}: {', '.join(SECTIONS)}")
    machine = f"{len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}"
    told: dict[str, object] = {"version": 1, "machine": machine}
    if not args.json:
        print(machine)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.section or SECTIONS:
            if sys.stderr.isatty():
                print(f"measuring: {name}", file=sys.stderr)
            rows, text = SECTIONS[name](Path(folder), args.mib)
            told[name] = [asdict(row) for row in rows]
            if not args.json:
                print(f"\n{SECTIONS[name].__doc__}\n{text}", flush=True)
    if args.json:
        print(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
