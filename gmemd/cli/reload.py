"""`gmemd reload`: make the daemon read its VM specs again, and say what that changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.output import print_json
from gmemd.client.blocking import DEFAULT_SOCKET, call
from gmemd.errors import Exit

if TYPE_CHECKING:
    import argparse

HELP = (
    "Makes the daemon read its configuration and VM specs again. A broken file leaves its VM's "
    "last good version in force; it is named, and the exit code is 2."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"the daemon's socket (default: {DEFAULT_SOCKET})",
    )


def run(args: argparse.Namespace) -> int:
    """Ask for the reload and print its outcome."""
    result = call(args.socket, "Reload")
    if args.json:
        print_json({"version": 1, **result})
    else:
        _print(result)
    return int(Exit.OK if result["successful"] else Exit.USAGE)


def _print(result: dict[str, Any]) -> None:
    """What changed to stdout, what is broken to stderr."""
    for word in ("added", "changed", "removed", "pending"):
        for vm in result[word]:
            print(f"{word}: {vm}")
    for note in result["notes"]:
        print(f"note: {note}")
    print(f"{result['unchanged']} unchanged")
    if result["pending"]:
        print("pending changes wait for the memory's release: see `gmemd status VM`")
    for problem in result["problems"]:
        place = problem["file"]
        if problem["line"]:
            place += f":{problem['line']}:{problem['column']}"
        key = f"{problem['key']}: " if problem["key"] else ""
        got = f" (got {problem['value']})" if problem["value"] is not None else ""
        print(f"gmemd: {place}: {key}{problem['message']}{got}", file=sys.stderr)
        if problem["hint"]:
            print(f"hint: {problem['hint']}", file=sys.stderr)
