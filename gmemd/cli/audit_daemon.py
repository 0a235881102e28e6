"""An audit by the daemon, of a VM whose memory it holds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gmemd.cli.output import console, print_json
from gmemd.client.blocking import CallError, call
from gmemd.errors import Exit

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_SECONDS = 1.0
_UNSEEN_ERRORS = frozenset({"NotAuditable", "AuditFailed"})


def audit_by_daemon(socket: Path, name: str, *, as_json: bool) -> int:
    """Have the daemon audit, print what it saw, and return the exit code."""
    from gmemd.cli.audit import exit_code  # noqa: PLC0415  its caller

    try:
        vm = _audit(socket, name)
    except CallError as error:
        if error.error in _UNSEEN_ERRORS:
            error.exit_code = Exit.UNSEEN
            error.hint = error.hint or f"`gmemd status {name}` says what to do about it"
        raise
    if as_json:
        print_json(vm)
    else:
        _print(socket, vm)
    return int(exit_code([vm]))


def _print(socket: Path, vm: dict[str, Any]) -> None:
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
