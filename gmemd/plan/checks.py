"""A spec against the host's make-up: what it names that isn't there, or that gmemd can't use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.spec.model import SMALL_PAGE, Backend, PolicyMode, RegionSpec, Source
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.host.model import Host
    from gmemd.spec.model import VmSpec

_SPREAD = frozenset({PolicyMode.INTERLEAVE, PolicyMode.WEIGHTED_INTERLEAVE})
_UNTOLD = frozenset({PolicyMode.DEFAULT, PolicyMode.LOCAL})

MOST_CREATED = 253
"""Regions of a VM that gmemd makes, each a file of its own (SCM_MAX_FD in linux/net/scm.h)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What stands against a spec here, or (not ``fatal``) should be known about it.

    ``region`` is the guest node and index of the region that it is about; None for the whole VM.
    """

    reason: str
    message: str
    hint: str
    host_nodes: frozenset[int]
    page_size: int = SMALL_PAGE
    fatal: bool = True
    region: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def check_against_host(spec: VmSpec, host: Host) -> list[str]:
    """Return what makes the spec impossible on the host, each with its way out; [] if nothing."""
    return [str(finding) for finding in findings(spec, host) if finding.fatal]


def findings(spec: VmSpec, host: Host) -> list[Finding]:
    """Return all findings, fatal or not, in the spec's order; figures of memory are no part.

    Of a VM that is only observed: whether the nodes exist. It is neither placed nor prefaulted.
    """
    found = []
    if spec.source is Source.CREATE:
        found = [*_backend_findings(spec, host), *_count_findings(spec)]
    look = _node_findings if spec.source is Source.OBSERVE else _region_findings
    for guest_node in spec.guest_nodes:
        for index, region in enumerate(guest_node.regions):
            title = region_title(spec, guest_node.id, index)
            found += [
                replace(finding, region=(guest_node.id, index))
                for finding in look(title, region, host)
            ]
    return found


def region_title(spec: VmSpec, guest_node: int, index: int) -> str:
    """Name a region in a message; its index only where the guest node has more than one."""
    several = any(node.id == guest_node and len(node.regions) > 1 for node in spec.guest_nodes)
    return f"guest node {guest_node} region {index}" if several else f"guest node {guest_node}"


def _node_findings(title: str, region: RegionSpec, host: Host) -> Iterator[Finding]:
    """Nodes that can hold no memory at all."""
    online = {node.id: node for node in host.nodes}
    unknown = region.host_nodes - online.keys()
    if unknown:
        yield _unknown_nodes(title, frozenset(unknown), host)
    empty = frozenset(n for n in region.host_nodes & online.keys() if not online[n].has_memory)
    if empty:
        yield Finding(
            "memoryless-node",
            f"{title}: host {_nodes(empty)} {_have(empty)} no memory",
            f"nodes with memory are {_with_memory(host)}",
            empty,
        )


def _region_findings(title: str, region: RegionSpec, host: Host) -> Iterator[Finding]:
    yield from _policy_findings(title, region, host)
    yield from _node_findings(title, region, host)
    online = {node.id: node for node in host.nodes}
    empty = frozenset(n for n in region.host_nodes & online.keys() if not online[n].has_memory)
    outside = (region.host_nodes & online.keys()) - empty - host.cpuset.mems
    if outside:
        yield Finding(
            "cpuset",
            f"{title}: host {_nodes(outside)} {_are(outside)} outside gmemd's own cpuset, which "
            f"allows memory of nodes {format_nodeset(host.cpuset.mems) or 'none'} only",
            "lift AllowedMemoryNodes= of gmemd's unit and slice, or cpuset.mems of its cgroup",
            frozenset(outside),
        )
    usable = region.host_nodes & online.keys() - empty
    if region.backend is Backend.GUEST_MEMFD:
        yield from _movable_findings(title, region, usable, host)
    yield from _page_size_findings(title, region, host)
    if region.prefault:
        yield from _cpu_findings(title, usable, host)


def _policy_findings(title: str, region: RegionSpec, host: Host) -> Iterator[Finding]:
    if region.prefault and region.policy in _UNTOLD and not region.host_nodes:
        yield Finding(
            "no-node-named",
            f"{title}: prefault with policy {region.policy} needs to know where",
            "name host_nodes, or leave prefault out",
            frozenset(),
        )
    weighted = host.features.get("weighted_interleave")
    if region.policy is PolicyMode.WEIGHTED_INTERLEAVE and (
        weighted is not None and weighted.supported is False
    ):
        yield Finding(
            "policy-unsupported",
            f"{title}: this kernel has no weighted-interleave",
            "use policy: interleave",
            region.host_nodes,
        )


def _unknown_nodes(title: str, unknown: frozenset[int], host: Host) -> Finding:
    offline = unknown & host.possible_nodes
    state = "not online" if offline == unknown else "not there"
    return Finding(
        "no-such-node",
        f"{title}: host {_nodes(unknown)} {_are(unknown)} {state}",
        f"online nodes with memory are {_with_memory(host)}",
        unknown,
    )


def _movable_findings(
    title: str, region: RegionSpec, usable: frozenset[int], host: Host
) -> Iterator[Finding]:
    """guest_memfd is unmovable: a node of ZONE_MOVABLE alone can't hold it."""
    movable = frozenset(n.id for n in host.nodes if n.id in usable and n.movable_only)
    if not movable:
        return
    every = movable == usable
    fatal = region.policy in _SPREAD or (region.policy is PolicyMode.BIND and every)
    rest = format_nodeset(usable - movable)
    outcome = (
        f"its pages can only come from nodes {rest}"
        if not fatal and not every
        else "the kernel would put its pages on other nodes in silence"
    )
    yield Finding(
        "movable-only",
        f"{title}: host {_nodes(movable)} {_have(movable)} only movable memory (ZONE_MOVABLE), "
        f"which guest_memfd can't use: {outcome}",
        "use backend: memfd, name other nodes, or online the node's memory as online_kernel",
        movable,
        fatal=fatal,
    )


def _page_size_findings(title: str, region: RegionSpec, host: Host) -> Iterator[Finding]:
    if region.page_size in (SMALL_PAGE, host.page_size):
        return
    supported = {size for node in host.nodes for size in node.hugepages}
    if region.page_size not in supported:
        sizes = ", ".join(format_size(size) for size in sorted(supported)) or "none"
        yield Finding(
            "page-size-unsupported",
            f"{title}: this host has no huge pages of {format_size(region.page_size)}",
            f"page sizes here are {format_size(host.page_size)} and, for huge pages, {sizes}",
            region.host_nodes,
            region.page_size,
        )


def _cpu_findings(title: str, usable: frozenset[int], host: Host) -> Iterator[Finding]:
    barred = frozenset(
        node.id
        for node in host.nodes
        if node.id in usable and node.cpus and not node.cpus & host.cpuset.cpus
    )
    if barred:
        yield Finding(
            "cpuset-cpus",
            f"{title}: gmemd may run on no CPU of host {_nodes(barred)}, so it is prefaulted "
            "from another node, more slowly",
            "lift AllowedCPUs= of gmemd's unit and slice, or cpuset.cpus of its cgroup",
            barred,
            fatal=False,
        )


def _backend_findings(spec: VmSpec, host: Host) -> Iterator[Finding]:
    """What creating guest_memfd needs of the host; asked once for the VM."""
    regions = [region for node in spec.guest_nodes for region in node.regions]
    if all(region.backend is not Backend.GUEST_MEMFD for region in regions):
        return
    for name in ("guest_memfd", "guest_memfd_mmap"):
        feature = host.features.get(name)
        if feature is None or feature.supported is None:
            yield Finding(
                "feature-unknown",
                f"whether this host has {name} was not found out",
                feature.remedy if feature is not None else "",
                frozenset(),
                fatal=False,
            )
        elif not feature.supported:
            yield Finding(
                "feature-missing",
                f"{_LACKING[name]}: {feature.detail}",
                f"{feature.remedy + '; or ' if feature.remedy else ''}use backend: memfd",
                frozenset(),
            )
            return


def _count_findings(spec: VmSpec) -> Iterator[Finding]:
    count = sum(len(node.regions) for node in spec.guest_nodes)
    if count > MOST_CREATED:
        yield Finding(
            "too-many-regions",
            f"{spec.vm} has {count} regions, and its VMM can be handed {MOST_CREATED} at most: one "
            "message carries no more file descriptors (SCM_MAX_FD)",
            "make larger regions",
            frozenset(),
        )


_LACKING = {
    "guest_memfd": "guest_memfd can't be had on this host",
    "guest_memfd_mmap": "guest_memfd can't be mapped on this host, so no VMM could use it",
}


def _with_memory(host: Host) -> str:
    return format_nodeset(node.id for node in host.nodes if node.has_memory) or "none"


def _nodes(nodes: frozenset[int]) -> str:
    return f"{'node' if len(nodes) == 1 else 'nodes'} {format_nodeset(nodes)}"


def _are(nodes: frozenset[int]) -> str:
    return "is" if len(nodes) == 1 else "are"


def _have(nodes: frozenset[int]) -> str:
    return "has" if len(nodes) == 1 else "have"
