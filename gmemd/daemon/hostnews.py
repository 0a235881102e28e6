"""What becomes of the host while the daemon runs: nodes come and go, limits are set. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.host.verdict import panic_warning
from gmemd.plan.checks import findings
from gmemd.spec.nodeset import format_nodeset

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from gmemd.host.model import Host
    from gmemd.plan.checks import Finding
    from gmemd.spec.model import VmSpec

_WITHOUT_MEMORY = frozenset({"no-such-node", "memoryless-node"})
_OUT_OF_REACH = _WITHOUT_MEMORY | {"cpuset"}


def make_up(host: Host) -> Hashable:
    """Give what of a host decides where memory may be, and changes by somebody's hand alone."""
    sizes = tuple((node.id, node.placeable_bytes, node.movable_bytes) for node in host.nodes)
    return sizes, host.cpuset, host.panic_on_oom


def news(before: Host | None, host: Host) -> Iterator[str]:
    """Tell what is to be known of a host that was ``before``, or is seen for the first time."""
    if (before is None or before.panic_on_oom != host.panic_on_oom) and panic_warning(host):
        yield panic_warning(host)
    if before is None:
        return
    was, now = _with_memory(before), _with_memory(host)
    if was != now:
        yield (
            f"host nodes with memory were {format_nodeset(was) or 'none'}, and are "
            f"{format_nodeset(now) or 'none'} now"
        )
    if before.cpuset.mems != host.cpuset.mems:
        yield (
            f"gmemd's own cpuset allowed memory of nodes {format_nodeset(before.cpuset.mems)}, and "
            f"allows {format_nodeset(host.cpuset.mems) or 'none'} now"
        )
    if before.cpuset.cpus != host.cpuset.cpus:
        yield (
            f"gmemd's own cpuset allowed CPUs {format_nodeset(before.cpuset.cpus)}, and allows "
            f"{format_nodeset(host.cpuset.cpus)} now"
        )


def out_of_reach(spec: VmSpec, host: Host) -> tuple[Finding, ...]:
    """Give the host nodes of a VM with memory that are gone by now, or that gmemd may not use."""
    return tuple(found for found in findings(spec, host) if found.reason in _OUT_OF_REACH)


def is_without_memory(finding: Finding) -> bool:
    """Whether it is of nodes on which nobody can have memory, and not only gmemd."""
    return finding.reason in _WITHOUT_MEMORY


def _with_memory(host: Host) -> frozenset[int]:
    return frozenset(node.id for node in host.nodes if node.has_memory)
