"""`gmemd host`: the host's nodes and kernel features, what works here, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.figures import nodes
from gmemd.cli.lines import print_line
from gmemd.cli.output import console, print_json, table
from gmemd.errors import Exit
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from gmemd.host.model import Feature, Host, HostNode
    from gmemd.host.verdict import Verdict

HELP = "Show this host's NUMA nodes and kernel features: what works here, and what to do if not."
_JSON_VERSION = 1
_SIGNS = {True: "✓", False: "✗", None: "?"}
_ASCII_SIGNS = {True: "yes", False: "no ", None: "?  "}
_STYLES = {True: "", False: "red", None: "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's own arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--host", type=Path, metavar="DIR", help="a recorded host in place of this one"
    )
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="write this host to DIR, for --host elsewhere"
    )


def run(args: argparse.Namespace) -> int:
    """Show the host, or record it; 3 where gmemd can place nothing on it."""
    from gmemd.host.reading import LIVE_ROOT, read_host  # noqa: PLC0415  heavy: probes the kernel
    from gmemd.host.verdict import judge  # noqa: PLC0415  as above

    root = args.host or LIVE_ROOT
    host = read_host(root)
    verdict = judge(host)
    if args.record:
        from gmemd.host.record import record  # noqa: PLC0415  as above

        written = record(args.record, host, root)
        console(stderr=True).print(f"{written} files written to {args.record}")
    if args.json:
        print_json(host_to_json(host, verdict))
    elif not args.record:
        _show(host, verdict)
    return int(Exit.OK if verdict.able else Exit.HOST)


def host_to_json(host: Host, verdict: Verdict) -> dict[str, Any]:
    """The host as `gmemd host --json` prints it; sizes in bytes."""
    from gmemd.host.recorded import features_to_json  # noqa: PLC0415  as above

    return {
        "version": _JSON_VERSION,
        "able": verdict.able,
        "verdict": verdict.text,
        "kernel_release": host.kernel_release,
        "page_size": host.page_size,
        "cpuset": {
            "mems": format_nodeset(host.cpuset.mems),
            "cpus": format_nodeset(host.cpuset.cpus),
        },
        "panic_on_oom": host.panic_on_oom,
        "possible_nodes": format_nodeset(host.possible_nodes),
        "nodes": [_node_to_json(node) for node in host.nodes],
        "features": features_to_json(host.features),
    }


def _node_to_json(node: HostNode) -> dict[str, Any]:
    return {
        "id": node.id,
        "cpus": format_nodeset(node.cpus),
        "distances": {str(other): figure for other, figure in node.distances.items()},
        "memory": node.total_bytes,
        "free": node.free_bytes,
        "placeable": node.placeable_bytes,
        "placeable_available": node.placeable_available_bytes,
        "placeable_free": node.placeable_free_bytes,
        "movable": node.movable_bytes,
        "movable_available": node.movable_available_bytes,
        "movable_only": node.movable_only,
        "interleave_weight": node.interleave_weight,
        "hugepages": [
            {
                "page_size": pool.page_size,
                "total": pool.total,
                "free": pool.free,
                "surplus": pool.surplus,
            }
            for pool in node.hugepages.values()
        ],
    }


def _show(host: Host, verdict: Verdict) -> None:
    out = console()
    out.print(verdict.text, style="bold green" if verdict.able else "bold red")
    out.print(f"Linux {host.kernel_release}{_of_cpuset(host)}")
    out.print()
    _show_nodes(out, host)
    _show_remarks(out, host)
    out.print()
    _show_features(out, host)


def _of_cpuset(host: Host) -> str:
    """The limits of gmemd itself, where they leave out any node or CPU of the host."""
    cpus = frozenset(cpu for node in host.nodes for cpu in node.cpus)
    with_memory = frozenset(node.id for node in host.nodes if node.has_memory)
    limits = []
    if with_memory - host.cpuset.mems:
        limits.append(f"memory of nodes {nodes(host.cpuset.mems)}")
    if cpus - host.cpuset.cpus:
        limits.append(f"CPUs {format_nodeset(host.cpuset.cpus) or '-'}")
    return f"; gmemd itself may use {' and '.join(limits)} only" if limits else ""


def _show_nodes(out: Console, host: Host) -> None:
    drawn = table()
    movable = any(node.movable_bytes for node in host.nodes)
    weighted = any(node.interleave_weight != 1 for node in host.nodes)
    sizes = sorted(
        {size for node in host.nodes for size, pool in node.hugepages.items() if pool.total}
    )
    drawn.add_column("node", justify="right")
    drawn.add_column("CPUs")
    for heading in ("memory", "placeable", "available", "free"):
        drawn.add_column(heading, justify="right")
    if movable:
        drawn.add_column("movable", justify="right")
    for size in sizes:
        drawn.add_column(f"{format_size(size)} pages", justify="right")
    if weighted:
        drawn.add_column("weight", justify="right")
    drawn.add_column("distances")
    for node in host.nodes:
        cells = [str(node.id), format_nodeset(node.cpus) or "none"]
        cells += _memory_cells(node)
        if movable:
            cells.append(_movable_cell(node))
        cells += [_pool_cell(node, size) for size in sizes]
        if weighted:
            cells.append(str(node.interleave_weight))
        cells.append(" ".join(f"{other}:{far}" for other, far in node.distances.items()))
        drawn.add_row(*cells)
    out.print(drawn)
    print_line(
        out,
        "what guest_memfd can have (DMA32 and Normal zones); available: now, above the "
        "watermarks, clean page cache included; free: without it",
        label="placeable: ",
        style="dim",
    )


def _memory_cells(node: HostNode) -> list[str]:
    if not node.has_memory:
        return ["none", "-", "-", "-"]
    return [
        format_size(node.total_bytes),
        format_size(node.placeable_bytes) if node.placeable_bytes else "none",
        format_size(node.placeable_available_bytes),
        format_size(node.placeable_free_bytes),
    ]


def _movable_cell(node: HostNode) -> str:
    if not node.movable_bytes:
        return "-"
    return f"{format_size(node.movable_available_bytes)} of {format_size(node.movable_bytes)}"


def _pool_cell(node: HostNode, size: int) -> str:
    pool = node.hugepages.get(size)
    return f"{pool.free} of {pool.total} free" if pool is not None and pool.total else "-"


def _show_remarks(out: Console, host: Host) -> None:
    """What the nodes' figures mean where that isn't plain to see."""
    from gmemd.host.verdict import panic_warning  # noqa: PLC0415  as above

    if len([node for node in host.nodes if node.has_memory]) == 1:
        out.print("One node has all memory: there is nothing to choose between on this host.")
    if warning := panic_warning(host):
        out.print(warning)
    for node in host.nodes:
        if node.movable_only:
            out.print(
                f"Node {node.id} has movable memory only: guest_memfd can't use it, memfd can; "
                "to change that, online its memory as online_kernel."
            )


def _show_features(out: Console, host: Host) -> None:
    from gmemd.host.verdict import MEANINGS  # noqa: PLC0415  as above

    width = max((len(name) for name in host.features), default=0)
    said: set[str] = set()
    for feature in host.features.values():
        _show_feature(out, feature, width, MEANINGS.get(feature.name, ""))
        if feature.supported:
            continue
        # What several features lack for one reason is explained below the first of them.
        for label, text in (("seen: ", feature.detail), ("do: ", feature.remedy)):
            if text and text not in said:
                print_line(out, text, indent=width + 4, label=label)
        said |= {feature.detail, feature.remedy}
    if not host.features:
        out.print("No features are recorded.")


def _show_feature(out: Console, feature: Feature, width: int, meaning: str) -> None:
    signs = _SIGNS if out.encoding.lower().startswith("utf") else _ASCII_SIGNS
    print_line(
        out,
        meaning,
        label=f"{signs[feature.supported]} {feature.name:{width}}  ",
        style=_STYLES[feature.supported],
    )
