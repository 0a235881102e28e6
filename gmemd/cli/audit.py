"""``gmemd audit``: one audit of a VM now, and what it saw."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.output import console, print_json
from gmemd.daemon.client import DEFAULT_SOCKET, CallError, call
from gmemd.errors import Exit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HELP = (
    "Has the daemon look at every page of a VM now, and shows where they are, guest node by host "
    "node, with what drifts, why, and what to do about it. Nothing is moved or allocated."
)

_PATIENCE_SECONDS = 1.0
_UNSEEN_ERRORS = frozenset({"NotAuditable", "AuditFailed"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("vm", metavar="VM", help="the VM, by the name of its spec")
    parser.add_argument("--json", action="store_true", help="print JSON, as status VM --json does")
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help="the daemon's socket (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Audit, print, and tell by the exit code: 1 drift, 5 part of it could not be seen."""
    try:
        vm = _audit(args.socket, args.vm)
    except CallError as error:
        if error.error in _UNSEEN_ERRORS:
            error.exit_code = Exit.UNSEEN
        raise
    if args.json:
        print_json(vm)
    else:
        _print(args.socket, vm)
    return int(exit_code_of(vm))


def exit_code_of(vm: Mapping[str, Any]) -> Exit:
    """Return the verdict on an audited VM's JSON; drift outranks what could not be seen."""
    if vm["drifting"]:
        return Exit.DRIFT
    drifts = [guest_node["drift"] for guest_node in vm["guest_nodes"]]
    if vm["audit"] is None or any(drift is None or drift["unknown"] for drift in drifts):
        return Exit.UNSEEN
    return Exit.OK


def _print(socket: Path, vm: Mapping[str, Any]) -> None:
    """Print the VM as ``gmemd status VM`` does."""
    from gmemd.cli.vm_view import print_vm  # noqa: PLC0415  rich, to draw with

    nodes = call(socket, "List")["host_nodes"]
    print_vm(console(), vm, [node["id"] for node in nodes if node["memory"]], detailed=True)


def _audit(socket: Path, name: str) -> dict[str, Any]:
    """Call the daemon; at a terminal, an audit that takes a while shows that it is at work."""
    results: list[dict[str, Any]] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            results.append(call(socket, "Audit", vm=name)["vm"])
        except Exception as error:  # noqa: BLE001  raised again below, in the caller's thread
            failures.append(error)

    # A daemon thread: Ctrl-C ends the command while the daemon's answer is still awaited.
    asking = threading.Thread(target=ask, name="audit", daemon=True)
    asking.start()
    asking.join(_PATIENCE_SECONDS)
    if asking.is_alive():
        errors = console(stderr=True)
        if errors.is_terminal:
            with errors.status(f"looking at the pages of {name}"):
                asking.join()
        asking.join()
    if failures:
        raise failures[0]
    return results[0]
