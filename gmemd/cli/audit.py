"""``gmemd audit``: one audit of a VM now, and what it saw."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.figures import nodes, span
from gmemd.cli.matrix import matrix_lines
from gmemd.cli.output import console, print_json
from gmemd.daemon.client import DEFAULT_SOCKET, CallError, call
from gmemd.errors import Exit
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from rich.console import Console

HELP = """Have the daemon look at every page of a VM now, and print where the pages are, guest node
by host node, with what drifts, why, and what to do about it. Nothing is moved or allocated."""

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
        print_audit(console(), vm)
    return int(exit_code_of(vm))


def exit_code_of(vm: Mapping[str, Any]) -> Exit:
    """Return the verdict on an audited VM's JSON; drift outranks what could not be seen."""
    if vm["drifting"]:
        return Exit.DRIFT
    drifts = [guest_node["drift"] for guest_node in vm["guest_nodes"]]
    if vm["audit"] is None or any(drift is None or drift["unknown"] for drift in drifts):
        return Exit.UNSEEN
    return Exit.OK


def print_audit(out: Console, vm: Mapping[str, Any]) -> None:
    """Print an audited VM: the matrix, the audit's cost, then what each guest node calls for."""
    out.print(f"{vm['vm']}: {vm['state']}" + (f" ({vm['message']})" if vm["message"] else ""))
    for table in matrix_lines(out, vm):
        out.print(table)
    for line in audit_lines(vm):
        out.print(line)


def audit_lines(vm: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines below the matrix: how it was seen, then per guest node what is wrong."""
    audit = vm["audit"]
    if audit is not None:
        exact = "every page" if audit["exact"] else "an estimate"
        yield (
            f"audited in {span(audit['duration_seconds'])} "
            f"({audit['cpu_seconds']:.2g} s of CPU), {exact}"
        )
        yield from (f"audit error: {word} x {n}" for word, n in audit["errors"].items())
        if audit["counters"]:
            counted = audit["counters"].items()
            held = ", ".join(f"{format_size(size)} on node {node}" for node, size in counted)
            yield f"cgroup {audit['counters_cgroup']} pays for {held}"
    for guest_node in vm["guest_nodes"]:
        yield from _guest_node_lines(guest_node)


def _guest_node_lines(guest_node: Mapping[str, Any]) -> Iterator[str]:
    """Return what is wrong with a guest node: cause, policy, remedy, what wasn't seen."""
    drift = guest_node["drift"]
    if drift is None:
        return
    prefix = f"guest node {guest_node['id']}"
    if drift["drifting"]:
        yield f"{prefix} drifts: {drift['cause']}: {drift['detail']}"
        for region in guest_node["regions"]:
            read = region["policy_read"]
            if drift["policy_match"] is False and read is not None:
                held = f"{read['mode']} {nodes(read['host_nodes'])}"
                yield f"  region {region['index']}: the kernel holds {held}"
        yield f"  remedy: {drift['remedy']}"
    if drift["unknown"]:
        yield f"{prefix}: {format_size(drift['unknown'])} unseen: {drift['unknown_reason']}"


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
