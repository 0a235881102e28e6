"""`python -m tests.bench`: what gmemd costs, on this machine, now."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.bench.observing import compare, table
from tests.bench.target import build


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--mib", type=int, nargs="+", default=[1024, 4096], help="sizes of the processes looked at"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for mebibytes in args.mib:
            if sys.stderr.isatty():
                print(f"looking at {mebibytes} MiB", file=sys.stderr)
            rows += compare(program, mebibytes)
    print(json.dumps([row.to_json() for row in rows], indent=2) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
