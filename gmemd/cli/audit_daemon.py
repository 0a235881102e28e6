"""An audit by the daemon, of a VM whose memory it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmemd.cli.output import console, print_json
from gmemd.cli.progress import progress_bar
from gmemd.client import Client
from gmemd.client.errors import AuditFailedError, NotAuditableError

if TYPE_CHECKING:
    from pathlib import Path

    from gmemd.client.types import Vm


def audit_by_daemon(socket: Path, name: str, *, as_json: bool) -> int:
    """Have the daemon audit, print what it saw, and return the exit code."""
    from gmemd.cli.audit import exit_code  # noqa: PLC0415  its caller

    client = Client(socket)
    try:
        vm: Any = _audit(client, name)
    except (NotAuditableError, AuditFailedError) as error:
        error.hint = error.hint or f"`gmemd status {name}` says what to do about it"
        raise
    if as_json:
        print_json(vm)
    else:
        _print(client, vm)
    return int(exit_code([vm]))


def _print(client: Client, vm: dict[str, Any]) -> None:
    """Print the VM as ``gmemd status VM`` does."""
    from gmemd.cli.vm_view import print_vm  # noqa: PLC0415  rich, to draw with

    nodes = client.list()["host_nodes"]
    print_vm(console(), vm, [node["id"] for node in nodes if node["memory"]], detailed=True)


def _audit(client: Client, name: str) -> Vm:
    """Call the daemon; at a terminal, show how far it is."""
    words = f"looking at the pages of {name}"
    with progress_bar(words) as note:
        if note is None:
            return client.audit(name)
        show = note
        return client.audit(name, progress=lambda looked_at, all_: show(looked_at / all_, words))
