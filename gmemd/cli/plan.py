"""`gmemd plan`: what would be placed where, and whether it fits. Changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gmemd.cli.figures import nodes
from gmemd.cli.lines import print_line
from gmemd.cli.output import console, print_json, table
from gmemd.errors import Exit, GmemdError
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from gmemd.host.model import Host
    from gmemd.plan.model import Refusal, RegionPlan, VmPlan
    from gmemd.plan.outlook import NodeOutlook
    from gmemd.spec.model import VmSpec
    from gmemd.spec.problems import Problem

HELP = """Show what would be placed where, and whether it fits, for the VMs of the given files or
directories (without any: of the configured ones). Nothing is changed."""
_JSON_VERSION = 1
_STYLES = {"fits": "green", "observed": "green", "refused": "red", "waiting": "yellow"}
_HOLDING = frozenset({"provisioning", "ready", "degraded", "releasing"})
_DAEMON_PATIENCE_SECONDS = 10.0


class Daemon(NamedTuple):
    """What a running daemon has done already: promised bytes by node, and VMs with memory."""

    committed: Mapping[int, int]
    placed_vms: frozenset[str]
    note: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's own arguments."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="VM specs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--host", type=Path, metavar="DIR", help="plan for a recorded host (gmemd host --record)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the daemon's configuration, for its reserve"
    )


def run(args: argparse.Namespace) -> int:
    """Plan and print; 2 for a bad spec, 3 where something doesn't fit."""
    # What follows is heavy, and `gmemd --help` imports this module.
    from gmemd.host.reading import LIVE_ROOT, read_host  # noqa: PLC0415
    from gmemd.plan.admission import Reserve  # noqa: PLC0415
    from gmemd.plan.outlook import outlook  # noqa: PLC0415
    from gmemd.plan.planning import plan_all  # noqa: PLC0415
    from gmemd.spec.config import load_config  # noqa: PLC0415

    config = load_config(args.config)
    specs, problems = _load(args.files, config.vms_directories)
    for problem in problems:
        print(f"gmemd: {problem}", file=sys.stderr)
        if problem.hint:
            print(f"hint: {problem.hint}", file=sys.stderr)
    if not specs and problems:
        return int(Exit.USAGE)
    host = read_host(args.host or LIVE_ROOT)
    daemon = Daemon({}, frozenset()) if args.host else _ask_daemon(config.socket)
    reserve = Reserve(config.admission.reserve_ratio, config.admission.reserve_bytes)
    new = [spec for spec in specs if spec.vm not in daemon.placed_vms]
    placed = [spec.vm for spec in specs if spec.vm in daemon.placed_vms]
    plans = plan_all(new, host, committed=daemon.committed, reserve=reserve)
    after = outlook(plans, host, committed=daemon.committed, reserve=reserve)
    if args.json:
        print_json(plans_to_json(plans, placed, after))
    else:
        _show(console(), plans, placed, after, host=host, note=daemon.note)
    if problems:
        return int(Exit.USAGE)
    return int(Exit.OK if all(plan.admitted for plan in plans) else Exit.HOST)


def plans_to_json(
    plans: Sequence[VmPlan], placed: Sequence[str], after: Sequence[NodeOutlook]
) -> dict[str, Any]:
    """The plans as `gmemd plan --json` prints them; sizes in bytes."""
    return {
        "version": _JSON_VERSION,
        "fits": all(plan.admitted for plan in plans),
        "vms": [_plan_to_json(plan) for plan in plans],
        "placed_already": list(placed),
        "host_nodes": [
            {
                "id": node.id,
                "placeable_available": node.available_bytes,
                "placeable_free": node.free_bytes,
                "movable_available": node.movable_available_bytes,
                "committed": node.committed_bytes,
                "reserve": node.reserve_bytes,
                "demand": node.demand_bytes,
                "demand_hugepages": _by_number(node.demand_hugepages),
                "left": node.left_bytes,
                "left_movable": node.left_movable_bytes,
            }
            for node in after
        ],
    }


def _plan_to_json(plan: VmPlan) -> dict[str, Any]:
    return {
        "vm": plan.spec.vm,
        "file": plan.spec.path,
        "source": str(plan.spec.source),
        "verdict": _verdict(plan),
        "regions": [
            {
                "guest_node": region.guest_node,
                "index": region.index,
                "size": region.size_bytes,
                "backend": str(region.backend),
                "page_size": region.page_size,
                "policy": str(region.policy),
                "host_nodes": sorted(region.host_nodes),
                "prefault": region.prefault,
                "strategy": str(region.strategy),
                "reason": region.reason,
                "demand": _by_number(region.demand),
            }
            for region in plan.regions
        ],
        "refusals": [_refusal_to_json(refusal) for refusal in plan.refusals],
        "warnings": list(plan.warnings),
    }


def _refusal_to_json(refusal: Refusal) -> dict[str, Any]:
    return {
        "reason": refusal.reason,
        "message": refusal.message,
        "hint": refusal.hint,
        "host_nodes": sorted(refusal.host_nodes),
        "page_size": refusal.page_size,
        "needed": refusal.needed_bytes,
        "available": refusal.available_bytes,
        "committed": refusal.committed_bytes,
        "reserve": refusal.reserve_bytes,
    }


def _by_number(figures: Mapping[int, int]) -> dict[str, int]:
    return {str(key): figures[key] for key in sorted(figures)}


def _load(paths: Sequence[Path], configured: Sequence[Path]) -> tuple[list[VmSpec], list[Problem]]:
    """Load the specs of the files and directories, and what is wrong with any of them."""
    from gmemd.spec.loading import load_directory, load_spec  # noqa: PLC0415  as above
    from gmemd.spec.problems import Problem, SpecError  # noqa: PLC0415  as above

    specs: dict[str, VmSpec] = {}
    problems: list[Problem] = []
    for directories in [[path] for path in paths if path.is_dir()] if paths else [configured]:
        loaded = load_directory(directories)
        specs |= {spec.vm: spec for spec in loaded.specs}
        problems += loaded.problems
    for path in (path for path in paths if not path.is_dir()):
        try:
            spec = load_spec(path)
        except SpecError as error:
            problems += error.problems
            continue
        first = specs.setdefault(spec.vm, spec)
        if first.path != spec.path:
            message = f"names the VM that {first.path} names too"
            problems.append(Problem(str(path), 0, 0, "vm", spec.vm, message))
    return list(specs.values()), problems


def _ask_daemon(socket: Path) -> Daemon:
    """Ask a running daemon what it promised; nothing where none runs."""
    from gmemd.client.blocking import NoDaemonError, call  # noqa: PLC0415  as above

    try:
        reply = call(socket, "List", timeout_seconds=_DAEMON_PATIENCE_SECONDS)
    except NoDaemonError:
        return Daemon({}, frozenset())
    except GmemdError as error:
        note = f"what the running daemon has promised isn't counted: {error.message}"
        return Daemon({}, frozenset(), note)
    return Daemon(
        {node["id"]: node["committed"] for node in reply["host_nodes"]},
        frozenset(
            vm["vm"] for vm in reply["vms"] if vm["state"] in _HOLDING and not vm.get("running")
        ),
    )


def _verdict(plan: VmPlan) -> str:
    if not plan.admitted:
        return "refused"
    if plan.spec.source == "observe":
        return "observed"
    return "fits" if plan.regions else "waiting"


def _show(
    out: Console,
    plans: Sequence[VmPlan],
    placed: Sequence[str],
    after: Sequence[NodeOutlook],
    *,
    host: Host,
    note: str,
) -> None:
    out.print(_headline(plans), style=f"bold {'green' if _all_fit(plans) else 'red'}")
    if note:
        print_line(out, note, label="warning: ", style="yellow")
    for plan in plans:
        out.print()
        _show_vm(out, plan)
    for vm in placed:
        out.print()
        out.print(f"{vm}: has its memory already; `gmemd status {vm}` shows where")
    if any(plan.regions for plan in plans):
        out.print()
        _show_nodes(out, after, host)


def _all_fit(plans: Sequence[VmPlan]) -> bool:
    return all(plan.admitted for plan in plans)


def _headline(plans: Sequence[VmPlan]) -> str:
    verdicts = [_verdict(plan) for plan in plans]
    acting = [plan for plan in plans if _verdict(plan) not in ("waiting", "observed")]
    fitting = [plan for plan in acting if plan.admitted]
    observed, waiting = verdicts.count("observed"), verdicts.count("waiting")
    also = f"; {observed} only observed" if observed else ""
    also += f"; {waiting} waiting for a VMM" if waiting else ""
    if not acting:
        return f"nothing to place{also}"
    if len(fitting) < len(acting):
        refused = [plan.spec.vm for plan in acting if not plan.admitted]
        return f"{len(refused)} of {len(acting)} VMs refused: {', '.join(refused)}{also}"
    return f"{'it fits' if len(acting) == 1 else f'all {len(acting)} VMs fit'}{also}"


def _show_vm(out: Console, plan: VmPlan) -> None:
    from gmemd.spec.model import waiting_reason  # noqa: PLC0415  pydantic

    style = _STYLES[_verdict(plan)]
    out.print(f"{plan.spec.vm}: {_verdict(plan)}", style=f"bold {style}")
    if reason := waiting_reason(plan.spec):
        print_line(out, f"it {reason}", indent=2)
    if plan.regions:
        out.print(_regions_table(plan.regions))
    for reason, guest_nodes in _reasons(plan.regions).items():
        print_line(out, reason, indent=2, label=f"guest node {nodes(guest_nodes)}: ")
    for refusal in plan.refusals:
        print_line(out, refusal.message, indent=2, label="refused: ", style="red")
        if refusal.hint:
            print_line(out, refusal.hint, indent=2, label="hint: ")
    for warning in plan.warnings:
        print_line(out, warning, indent=2, label="warning: ", style="yellow")


def _reasons(regions: Iterable[RegionPlan]) -> dict[str, set[int]]:
    """Each strategy's reason once, with the guest nodes that it speaks of."""
    reasons: dict[str, set[int]] = {}
    for region in regions:
        lazily = "" if region.prefault else ", not prefaulted"
        reason = f"{region.strategy}{lazily}: {region.reason}"
        reasons.setdefault(reason, set()).add(region.guest_node)
    return reasons


def _regions_table(regions: Sequence[RegionPlan]) -> Any:  # noqa: ANN401  rich's, not imported here
    drawn = table()
    several = any(region.index for region in regions)
    drawn.add_column("guest node", justify="right", min_width=5)
    if several:
        drawn.add_column("region", justify="right")
    drawn.add_column("size", justify="right")
    drawn.add_column("backend", no_wrap=True)
    drawn.add_column("policy", overflow="fold")
    drawn.add_column("strategy", no_wrap=True)
    drawn.add_column("takes from host node", overflow="fold")
    for region in regions:
        cells = [str(region.guest_node)]
        if several:
            cells.append(str(region.index))
        cells += [
            format_size(region.size_bytes),
            f"{region.backend}{_pages(region)}",
            f"{region.policy} {nodes(region.host_nodes)}",
            str(region.strategy),
            "  ".join(f"{n}: {format_size(size)}" for n, size in sorted(region.demand.items()))
            or "-",
        ]
        drawn.add_row(*cells)
    return drawn


def _pages(region: RegionPlan) -> str:
    return f" {format_size(region.page_size)}" if region.page_size > 4096 else ""  # noqa: PLR2004


def _show_nodes(out: Console, after: Sequence[NodeOutlook], host: Host) -> None:
    movable = any(node.movable_available_bytes for node in after)
    drawn = table(title="host nodes, were all that fit placed")
    drawn.add_column("node", justify="right")
    for heading in ("available", "free", "committed", "reserve", "asked", "left"):
        drawn.add_column(heading, justify="right")
    if movable:
        drawn.add_column("movable", justify="right")
        drawn.add_column("left for memfd", justify="right")
    sizes = sorted({size for node in after for size in node.demand_hugepages})
    for size in sizes:
        drawn.add_column(f"{format_size(size)} pages", justify="right")
    for node in after:
        cells = [
            str(node.id),
            *(
                format_size(figure)
                for figure in (
                    node.available_bytes,
                    node.free_bytes,
                    node.committed_bytes,
                    node.reserve_bytes,
                    node.demand_bytes,
                    node.left_bytes,
                )
            ),
        ]
        if movable:
            cells += [
                format_size(node.movable_available_bytes),
                format_size(node.left_movable_bytes),
            ]
        cells += [_pool_cell(node, size, host) for size in sizes]
        drawn.add_row(*cells)
    out.print(drawn)


def _pool_cell(node: NodeOutlook, size: int, host: Host) -> str:
    there = host.node(node.id)
    pool = there.hugepages.get(size) if there is not None else None
    free = pool.free if pool is not None else 0
    return f"{node.demand_hugepages.get(size, 0) // size} of {free} free"
