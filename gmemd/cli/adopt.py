"""``gmemd adopt``: have the memory of a VM that runs already placed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.output import console, print_json
from gmemd.client.blocking import DEFAULT_SOCKET, call
from gmemd.errors import Exit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HELP = (
    "Has the daemon take the guest_memfds and memfds of a running VMM and set the policies that "
    "the VM's spec names, for what is allocated from then on. Nothing that is there already moves."
)

_UNMANAGED = "unmanaged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("vm", metavar="VM", help="a VM whose spec says source: adopt")
    parser.add_argument(
        "--pid", type=int, metavar="PID", help="its VMM (default: what the spec's match finds)"
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
    """Adopt and print; 3 where no policy could be set for some of the memory."""
    given = {} if args.pid is None else {"pid": args.pid}
    placed = call(args.socket, "Adopt", vm=args.vm, **given)
    if args.json:
        print_json({"version": 1, **placed})
    else:
        _print(placed)
    unmanaged = any(region["strategy"] == _UNMANAGED for region in placed["regions"])
    return int(Exit.HOST if unmanaged else Exit.OK)


def _print(placed: Mapping[str, Any]) -> None:
    """What was taken and what became of it."""
    from gmemd.cli.figures import nodes  # noqa: PLC0415  --json and --help need none of these
    from gmemd.cli.lines import print_line  # noqa: PLC0415  as above
    from gmemd.cli.output import table  # noqa: PLC0415  as above
    from gmemd.spec.sizes import format_size  # noqa: PLC0415  as above

    out = console()
    why = f": {placed['message']}" if placed["message"] else ""
    print_line(out, f"{placed['vm']}: {placed['state']}, pid {placed['pid']}{why}")
    drawn = table()
    for heading in ("guest node", "region", "size", "resident before"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for heading in ("memory", "policy", "strategy"):
        drawn.add_column(heading, no_wrap=True)
    for region in placed["regions"]:
        drawn.add_row(
            str(region["guest_node"]),
            str(region["index"]),
            format_size(region["size"]),
            format_size(region["resident"]),
            f"{region['backend']} {format_size(region['page_size'])}",
            f"{region['policy']} {nodes(region['host_nodes'])}".removesuffix(" -"),
            region["strategy"],
        )
    if placed["regions"]:
        out.print(drawn)
    for region in placed["regions"]:
        label = f"guest node {region['guest_node']}: "
        for words in (region["reason"], *region["warnings"]):
            if words:
                print_line(out, words, indent=2, label=label)
    for warning in placed["warnings"]:
        print_line(out, warning, indent=2, label="note: ")
