"""``gmemd release``: give a VM's memory back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.cli.output import print_json
from gmemd.client.blocking import DEFAULT_SOCKET, call
from gmemd.errors import Exit

if TYPE_CHECKING:
    import argparse

HELP = (
    "Has the daemon give back a VM's memory, or let go of what it adopted or what was registered. "
    "Memory that a process holds is that process's to release, unless forced."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("vm", metavar="VM", help="the VM")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even from the process that holds it: what that has mapped it keeps, and the daemon "
        "knows of it no more",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"the daemon's socket (default: {DEFAULT_SOCKET})",
    )


def run(args: argparse.Namespace) -> int:
    """Release and print the state that the VM is in then."""
    given = {"force": True} if args.force else {}
    released = call(args.socket, "Release", vm=args.vm, **given)
    if args.json:
        print_json({"version": 1, **released})
    else:
        print(f"{released['vm']}: its memory was given back")
    return int(Exit.OK)
