"""`gmemd status`: where every VM's memory is, and what to do about what isn't well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.output import console, print_json
from gmemd.client.blocking import DEFAULT_SOCKET, call
from gmemd.errors import Exit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

HELP = (
    "Shows every VM's guest nodes against the host nodes that hold their memory, as the daemon's "
    "last audit saw it. With a VM: also why it is as it is, its regions, and what can't be seen."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("vm", nargs="?", metavar="VM", help="this VM only, in detail")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help="exit with 3 if a VM failed, 1 if one drifts, 2 if a spec is broken, 5 if memory "
        "could not be seen (the first that holds)",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"the daemon's socket (default: {DEFAULT_SOCKET})",
    )


def run(args: argparse.Namespace) -> int:
    """Ask the daemon and print."""
    if args.vm is None:
        told = call(args.socket, "List")
        vms = told["vms"]
        if args.json:
            print_json(told)
        else:
            _print_all(told)
    else:
        vms = [call(args.socket, "Describe", vm=args.vm)["vm"]]
        if args.json:
            print_json(vms[0])
        else:
            _print_one(args.socket, vms[0])
    return int(exit_code(vms)) if args.exit_code else int(Exit.OK)


def exit_code(vms: Sequence[dict[str, Any]]) -> Exit:
    """What --exit-code exits with for these VMs."""
    drifts = [node["drift"] for vm in vms for node in vm["guest_nodes"] if node["drift"]]
    conditions = (
        (Exit.HOST, any(vm["state"] == "failed" and not vm["spec_error"] for vm in vms)),
        (Exit.DRIFT, any(drift["drifting"] for drift in drifts)),
        (Exit.USAGE, any(vm["spec_error"] for vm in vms)),
        (Exit.UNSEEN, any(drift["unknown"] for drift in drifts) or any(map(_hidden, vms))),
    )
    return next((code for code, holds in conditions if holds), Exit.OK)


def _hidden(vm: dict[str, Any]) -> bool:
    """Whether a VM's memory was not looked at, or isn't for the caller to see."""
    running = vm.get("running")
    unseen = running is not None and (vm["audit"] is None or running["unknown"] is not None)
    return unseen or bool(vm.get("public"))


def _print_all(told: dict[str, Any]) -> None:
    """Every VM: its headline, what is wrong, its matrix."""
    from gmemd.cli.vm_view import print_notice, print_vm  # noqa: PLC0415  rich, to draw with

    out = console()
    host_nodes = [node["id"] for node in told["host_nodes"] if node["memory"]]
    for vm in told["vms"]:
        print_vm(out, vm, host_nodes)
        out.print()
    unseen = told.get("unseen_processes")
    if not told["vms"]:
        out.print(
            "no VMs: none was found running, and vms.d has no spec"
            if unseen is not None
            else "no VMs: put a spec into vms.d, then `gmemd reload`"
        )
    if unseen:
        print_notice(
            out,
            f"{unseen} process{'' if unseen == 1 else 'es'} can't be looked into by the daemon and "
            "may hold VMs: it takes CAP_SYS_PTRACE, as gmemd.service.d/observe.conf gives",
        )
    if hidden := told.get("hidden_processes"):
        print_notice(out, f"there may be more VMs: {hidden}")
    if any(vm.get("public") for vm in told["vms"]):
        print_notice(
            out,
            "of some VMs you may see no more than their state: root and the owners that their "
            "specs name see all",
        )
    if not told["reload_successful"]:
        print_notice(out, f"the last reload was not successful: {told['reload_message']}")


def _print_one(socket: Path, vm: dict[str, Any]) -> None:
    """One VM in detail."""
    from gmemd.cli.vm_view import print_vm  # noqa: PLC0415  as above

    nodes = call(socket, "List")["host_nodes"]
    print_vm(console(), vm, [node["id"] for node in nodes if node["memory"]], detailed=True)
