"""A VM on screen: headline, what is wrong and what to do, matrix; in detail: its regions too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from gmemd.cli.figures import ago, nodes, percent, span
from gmemd.cli.matrix import has_rows, matrix_lines
from gmemd.cli.output import table
from gmemd.spec.problems import printable
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

STATE_STYLES = {
    "ready": "bold green",
    "degraded": "bold red",
    "failed": "bold red",
    "provisioning": "bold cyan",
    "releasing": "bold cyan",
    "waiting": "bold yellow",
}
BAR_CELLS = 20


def print_vm(
    out: Console,
    vm: Mapping[str, Any],
    host_nodes: Sequence[int],
    *,
    detailed: bool = False,
) -> None:
    """Print one VM, as the API's Describe gives it."""
    out.print(_headline(vm), soft_wrap=True)
    _print_labelled(out, _remarks(vm, detailed=detailed))
    if has_rows(vm):
        for drawn in matrix_lines(out, vm, host_nodes):
            out.print(drawn)
    if detailed:
        if vm["guest_nodes"]:
            out.print()
            out.print(_regions(vm))
        _print_labelled(out, _notes(vm))


def print_notice(out: Console, words: str) -> None:
    """Print what concerns more than one VM."""
    out.print(Text(words, style="bold yellow"))


def _headline(vm: Mapping[str, Any]) -> Text:
    """Name, state, source, since when; progress and age of the audit where there is one."""
    head = Text(printable(vm["vm"], longest=None), style="bold")
    head.append("  ")
    head.append(vm["state"], style=STATE_STYLES.get(vm["state"], ""))
    details = [vm["source"] or "no valid spec", f"since {_clock(vm['since'])}"]
    if vm.get("inline"):
        details.append("inline spec")
    if vm["running"] is not None:
        details.append(_process(vm["running"]))
    if vm.get("holder") is not None:
        details += _holder(vm["holder"], vm["running"])
    if vm["audit"] is not None:
        details.append(f"audited {ago(vm['audit']['started_timestamp'])}")
    if vm["spec_error"] and vm["source"]:
        details.append("spec file broken")
    head.append("  " + ", ".join(details), style="not bold")
    if vm["progress_ratio"] is not None and vm["state"] == "provisioning":
        head.append(f"  {_bar(vm['progress_ratio'])} {percent(vm['progress_ratio'])}", style="cyan")
    return head


def _process(running: Mapping[str, Any]) -> str:
    """The process that holds a running VM."""
    kind = {True: "KVM", False: "emulated", None: ""}[running["kvm"]]
    words = f"pid {running['pid']} {printable(running['program'])}"
    return f"{words} ({kind})" if kind else words


def _holder(holder: Mapping[str, Any], running: Mapping[str, Any] | None) -> Iterator[str]:
    """The process that has a VM's memory from the daemon, unless it was named already."""
    if not holder["alive"]:
        yield f"kept, pid {holder['pid']} is gone"
    elif running is None or running["pid"] != holder["pid"]:
        program = f" {printable(holder['program'])}" if holder["program"] else ""
        unit = f" ({printable(holder['unit'])})" if holder["unit"] else ""
        yield f"held by pid {holder['pid']}{program}{unit}"


def _clock(timestamp: float) -> str:
    """A time of today by the clock, another day's with its date."""
    then, today = time.localtime(timestamp), time.localtime()
    same_day = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def _bar(ratio: float) -> str:
    done = round(ratio * BAR_CELLS)
    return f"[{'#' * done}{'.' * (BAR_CELLS - done)}]"


def _remarks(vm: Mapping[str, Any], *, detailed: bool) -> Iterator[tuple[str, str]]:
    """Why the VM is in its state and what to do; in short, and unless it is told by the drift."""
    drifting = [node for node in vm["guest_nodes"] if node["drift"] and node["drift"]["drifting"]]
    if vm["message"] and not drifting:
        yield "why", vm["message"]
        if vm["hint"]:
            yield "hint", vm["hint"]
    for node in drifting:
        drift = node["drift"]
        detail = f": {drift['detail']}" if drift["detail"] else ""
        yield f"guest node {node['id']}", f"{drift['cause']}{detail}"
        if drift["remedy"]:
            yield "remedy" if detailed else "hint", drift["remedy"]
    if vm["running"] is not None and vm["running"]["declared_by"]:
        yield "declared by", vm["running"]["declared_by"]
    for warning in vm["warnings"]:
        yield "note", printable(warning, longest=None)


def _regions(vm: Mapping[str, Any]) -> Table:
    """The regions with their strategies."""
    drawn = table()
    for heading in ("guest\nnode", "region", "size"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for heading in ("memory", "policy", "strategy", "kernel holds"):
        drawn.add_column(heading, no_wrap=heading == "strategy")
    for node in vm["guest_nodes"]:
        for region in node["regions"]:
            policy = f"{region['policy']} {nodes(region['host_nodes'])}"
            drawn.add_row(
                str(node["id"]),
                str(region["index"]),
                format_size(region["size"]),
                f"{region['backend']} {format_size(region['page_size'])}",
                policy.removesuffix(" -"),
                region["strategy"],
                _kernel_policy(region, running=vm["running"] is not None),
            )
    return drawn


def _kernel_policy(region: Mapping[str, Any], *, running: bool) -> str:
    """What the kernel holds for the region: as read back, and what became of the request.

    Of a running VM it is read only where every page is looked at.
    """
    read = region["policy_read"]
    if region["resident"] is None or (running and read is None):
        return "-" if region["resident"] is None else "not read"
    words = []
    if read is not None:
        words.append(f"{read['mode']} {nodes(read['host_nodes'])}".removesuffix(" -"))
    if region["policy_outcome"] not in (None, "applied"):
        words.append(region["policy_outcome"])
    return ", ".join(words) or "no policy"


def _notes(vm: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Why the strategies are what they are, what can't be seen, and how the audit went."""
    for node in vm["guest_nodes"]:
        where = f"guest node {node['id']}"
        for reason in dict.fromkeys(region["reason"] for region in node["regions"]):
            if reason:
                yield where, reason
        drift = node["drift"]
        if drift and drift["unknown"]:
            why = drift["unknown_reason"] or "its host node could not be read"
            yield where, f"{format_size(drift['unknown'])} unseen: {why}"
    if vm["running"] is not None:
        yield from _running_notes(vm["running"])
    if vm.get("holder") is not None:
        yield "holder", _holder_words(vm["holder"])
    audit = vm["audit"]
    if audit is None:
        return
    left = vm["running"]["unmatched"] if vm["running"] is not None else []
    exact = audit["exact"] and not any(piece["sampled"] for piece in left)
    yield "audit", _audit_words(audit, exact=exact) + _sureness(vm)
    if audit["errors"]:
        words = ", ".join(f"{reason} {count}" for reason, count in audit["errors"].items())
        yield "audit", f"errors: {words}"
    if audit["counters"] is not None:
        words = ", ".join(
            f"host {node} {format_size(size)}" for node, size in audit["counters"].items()
        )
        yield "counters", f"{words} (cgroup {audit['counters_cgroup']}, all guest nodes together)"


def _running_notes(running: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the process belongs, and its memory that matches nothing declared."""
    yield "cgroup", printable(running["cgroup"], longest=None)
    for piece in running["unmatched"]:
        yield "unmatched", f"{format_size(piece['size'])}: {piece['why']}"


def _holder_words(holder: Mapping[str, Any]) -> str:
    """Who has the memory, and since when."""
    who = f"pid {holder['pid']}"
    if holder["program"]:
        who += f" {printable(holder['program'])}"
    if holder["unit"]:
        who += f" of {printable(holder['unit'], longest=None)}"
    if not holder["alive"]:
        return f"{who} is gone; its memory is kept for the next"
    return f"{who}, since {_clock(holder['since'])}"


def _audit_words(audit: Mapping[str, Any], *, exact: bool) -> str:
    """How much of the memory was looked at, what it took, and since when all of it was."""
    took = f"in {audit['duration_seconds']:.2g} s, {_cpu(audit)} of CPU time"
    verified, started = audit["verified_timestamp"], audit["started_timestamp"]
    if not exact:
        seen = f"; every page was seen since {_clock(verified)}" if verified is not None else ""
        return f"a sample of the pages {took}{seen}"
    if verified is not None and verified < started:
        return f"every resident page, seen since {_clock(verified)}"
    return f"every resident page {took}"


def _sureness(vm: Mapping[str, Any]) -> str:
    """What was asked of a sample beyond what all are."""
    from gmemd.audit.model import CONFIDENCE  # noqa: PLC0415  `gmemd status` starts without it

    regions = [region for node in vm["guest_nodes"] for region in node["regions"]]
    sample = next((region["sample"] for region in regions if region["sample"]), None)
    if sample is None or (sample["margin"] is None and sample["confidence"] == CONFIDENCE):
        return ""
    within = "" if sample["margin"] is None else f"shares to within {percent(sample['margin'])}, "
    return f"; {within}bounds that hold {100 * sample['confidence']:.4g}% of the time"


def _cpu(audit: Mapping[str, Any]) -> str:
    return span(audit["cpu_seconds"]) if audit["cpu_seconds"] >= 1 else "less than 1 s"


def _print_labelled(out: Console, lines: Iterator[tuple[str, str]]) -> None:
    """Print label and text; long text is wrapped beside its label."""
    if not out.is_terminal:
        for label, text in lines:
            out.print(f"  {label}: {text}", soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    for label, text in lines:
        grid.add_row(f"  {label}:", text)
    if grid.row_count:
        out.print(grid)
