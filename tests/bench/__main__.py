"""`python -m tests.bench`: what gmemd costs, on this machine, now."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import daemon, observing, provisioning, rows, scanning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.rows import Row, Step

SIZES_MIB = (1024, 4096, 16384)
READING = (
    "Ratio: gmemd's figure as a multiple of the other's, the median of repeats in turn; below 1 "
    "gmemd is the quicker."
)

SECTIONS: dict[str, Callable[[Path, Sequence[int]], list[Step]]] = {
    "scanning": scanning.steps,
    "running": observing.steps,
    "provisioning": provisioning.steps,
    "size": daemon.steps,
}


def main() -> int:
    """Measures and prints."""
    args = _arguments()
    sizes, left_out = rows.fitting(args.mib)
    measured: list[Row] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        chosen = list(dict.fromkeys(args.section)) or list(SECTIONS)
        steps = [step for name in chosen for step in SECTIONS[name](Path(folder), sizes)]
        for number, step in enumerate(steps):
            _tell(f"{number + 1} of {len(steps)}: {step.section}: {step.label}", begun)
            measured += step.run()
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    grown = rows.growths(measured)
    machine, load = rows.machine(), os.getloadavg()[0]
    if args.json:
        told = {
            "version": 1,
            "machine": machine,
            "load": load,
            "left_out_mib": left_out,
            "rows": [row.to_json() for row in measured],
            "growth": [growth.to_json() for growth in grown],
        }
        print(json.dumps(told, indent=2))
        return 0
    print(f"{machine}; load {load:.1f} at the end")
    if left_out:
        sizes_text = ", ".join(f"{size} MiB" for size in left_out)
        print(f"left out, as the memory that is available can't hold it: {sizes_text}")
    print(f"{READING}\n\n{rows.table(measured)}")
    if grown:
        print(f"\n{rows.growth_table(grown)}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "section", nargs="*", metavar="SECTION", help=f"one of {', '.join(SECTIONS)}; all if none"
    )
    parser.add_argument(
        "--mib", type=int, nargs="+", default=SIZES_MIB, help="sizes of the memory looked at"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    unknown = set(args.section) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}: {', '.join(SECTIONS)}")
    if min(args.mib) < 1:
        parser.error("a size is 1 MiB or more")
    return args


def _tell(what: str, begun: float) -> None:
    """Say what is being measured, where somebody watches."""
    if sys.stderr.isatty():
        seconds = time.monotonic() - begun
        print(f"\r\x1b[K{seconds:.0f} s, {what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
