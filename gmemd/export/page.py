"""The plain page at `/`: version, where the metrics are, and each VM's state at a glance."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmemd.export.snapshot import Snapshot, VmStatus

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #b3261e; --busy: #8a6100; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --busy: #f0c05a; --good: #7ddb9c; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { text-align: left; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ready { color: var(--good); } .failed, .drift { color: var(--bad); font-weight: 600; }
.degraded, .waiting, .provisioning, .releasing { color: var(--busy); }
"""

_GIB = 1 << 30
_MIB = 1 << 20


def render_page(snapshot: Snapshot) -> str:
    """The page as HTML; nothing in it is loaded from elsewhere."""
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>gmemd</title><style>{_STYLE}</style></head><body>",
            "<h1>gmemd</h1>",
            f"<p>version {escape(snapshot.version)} &middot; ",
            '<a href="/metrics">metrics</a></p>',
            *_reload_note(snapshot),
            *_table(snapshot.vms),
            "</body></html>",
            "",
        )
    )


def _reload_note(snapshot: Snapshot) -> tuple[str, ...]:
    if snapshot.reload_successful:
        return ()
    message = escape(snapshot.reload_message)
    return (f'<p class="failed">The last reload failed. {message}</p>',)


def _table(vms: tuple[VmStatus, ...]) -> tuple[str, ...]:
    if not vms:
        return ("<p>No VMs are known: none was found running, and vms.d holds no specs.</p>",)
    return (
        '<div class="table"><table>',
        "<caption>VMs; <code>gmemd status</code> here shows where their memory is</caption>",
        '<thead><tr><th>VM</th><th>state</th><th class="number">size</th>',
        '<th class="number">resident</th><th class="number">misplaced</th>',
        "<th>what is known</th></tr></thead><tbody>",
        *(_row(vm) for vm in vms),
        "</tbody></table></div>",
    )


def _row(vm: VmStatus) -> str:
    size = sum(vm.size_bytes_of(node) for node in vm.guest_nodes)
    drifts = vm.drift.guest_nodes if vm.drift is not None else None
    resident = sum(node.resident_bytes for node in drifts) if drifts is not None else None
    misplaced = sum(node.misplaced_bytes for node in drifts) if drifts is not None else None
    mark = " drift" if vm.drifting else ""
    return (
        f'<tr><td>{escape(vm.vm)}</td><td class="{vm.state}">{vm.state}</td>'
        f'<td class="number">{_bytes(size or None)}</td><td class="number">{_bytes(resident)}</td>'
        f'<td class="number{mark}">{_bytes(misplaced)}</td><td>{escape(_said(vm))}</td></tr>'
    )


def _said(vm: VmStatus) -> str:
    """One line about the VM: its message, else its drift's cause, else how well it is."""
    if vm.message:
        return vm.message
    if vm.drifting and vm.drift is not None:
        nodes = [node for node in vm.drift.guest_nodes if node.drifting]
        return "; ".join(
            f"guest node {node.guest_node} drifts: {node.detail or node.cause or 'cause unknown'}"
            for node in nodes
        )
    if vm.drift is None:
        return "not audited yet"
    if vm.running is not None and not vm.running.declared_by:
        return "nothing declares where it should be"
    return "placed as specified" if vm.running is None else "placed as declared"


def _bytes(size: int | None) -> str:
    """Bytes for a reader's eye, in IEC units with one decimal at most."""
    if size is None:
        return "&ndash;"
    if size >= _GIB:
        return f"{size / _GIB:.1f} GiB".replace(".0 ", " ")
    if size >= _MIB:
        return f"{size / _MIB:.1f} MiB".replace(".0 ", " ")
    return f"{size / 1024:.0f} KiB" if size else "0"
