"""Specs, written down short."""

from __future__ import annotations

from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec

GIB = 1 << 30
MIB = 1 << 20


def region(
    size_bytes: int,
    nodes: set[int] | None = None,
    policy: str = "bind",
    *,
    backend: str = "guest_memfd",
    page_size: int = 4096,
    prefault: bool = True,
) -> RegionSpec:
    return RegionSpec(
        size_bytes=size_bytes,
        host_nodes=frozenset(nodes or ()),
        policy=PolicyMode(policy),
        backend=Backend(backend),
        page_size=page_size,
        prefault=prefault,
    )


def vm(
    *guest_nodes: RegionSpec | tuple[RegionSpec, ...], name: str = "vm", source: str = "create"
) -> VmSpec:
    return VmSpec(
        vm=name,
        source=Source(source),
        guest_nodes=tuple(
            GuestNode(id=number, regions=regions if isinstance(regions, tuple) else (regions,))
            for number, regions in enumerate(guest_nodes)
        ),
    )
