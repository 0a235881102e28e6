"""An audit by the daemon, of a VM whose memory it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmemd.cli.audit import DEFAULT_SAMPLE_PAGES
from gmemd.cli.output import console, print_json
from gmemd.cli.progress import progress_bar
from gmemd.client import Client
from gmemd.client.errors import AuditFailedError, NotAuditableError

if TYPE_CHECKING:
    import argparse

    from gmemd.client.types import AuditOptions, Vm


def audit_by_daemon(args: argparse.Namespace) -> int:
    """Have the daemon audit, print what it saw, and return the exit code."""
    from gmemd.cli.audit import exit_code, write_svg  # noqa: PLC0415  its caller

    client = Client(args.socket)
    name = args.vm
    try:
        vm: Any = _audit(client, name, _asked(args))
    except (NotAuditableError, AuditFailedError) as error:
        error.hint = error.hint or f"`gmemd status {name}` says what to do about it"
        raise
    if args.svg is not None:
        write_svg(args.svg, [vm])
    if args.format == "json":
        print_json(vm)
    else:
        _print(client, vm, where=args.where)
    return int(exit_code([vm]))


def _print(client: Client, vm: dict[str, Any], *, where: bool) -> None:
    """Print the VM as ``gmemd status VM`` does, and where its memory is if that was asked."""
    from gmemd.cli.vm_view import print_vm  # noqa: PLC0415  rich, to draw with

    nodes = client.list()["host_nodes"]
    print_vm(console(), vm, [node["id"] for node in nodes if node["memory"]], detailed=True)
    if where:
        from gmemd.cli.strip import print_where  # noqa: PLC0415  as above

        print_where(console(), vm)


def _asked(args: argparse.Namespace) -> AuditOptions:
    """What the command line asks for; where it says nothing, a sample."""
    if args.where:
        return {"where": True, "jobs": args.jobs}
    if args.full:
        return {"full": True, "jobs": args.jobs}
    if args.margin is not None:
        return {"margin": args.margin, "confidence": args.confidence}
    return {"sample_pages": args.sample or DEFAULT_SAMPLE_PAGES, "confidence": args.confidence}


def _audit(client: Client, name: str, asked: AuditOptions) -> Vm:
    """Call the daemon; at a terminal, show how far it is."""
    words = f"looking at the pages of {name}"
    with progress_bar(words) as note:
        if note is None:
            return client.audit(name, **asked)
        show = note

        def advance(looked_at: int, total: int) -> None:
            show(looked_at / total, words)

        return client.audit(name, progress=advance, **asked)
