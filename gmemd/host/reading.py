"""Reads the host: nodes, distances, zones, hugepage pools, own cpuset, from /sys and /proc."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.host.errors import HostError
from gmemd.host.model import Cpuset, Feature, Host, HostNode, HugepagePool
from gmemd.host.recorded import Record, read_record
from gmemd.host.zones import NodeZones, placeable
from gmemd.kernel.procfs.meminfo import read_node_meminfo
from gmemd.kernel.procfs.text import (
    ProcfsError,
    parse_id_list,
    parse_number,
    read_id_list,
    read_lines,
    read_number,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

NODES = "sys/devices/system/node"
WEIGHTS = "sys/kernel/mm/mempolicy/weighted_interleave"
PANIC_ON_OOM = "proc/sys/vm/panic_on_oom"
POOLS = "sys/kernel/mm/hugepages"
LIVE_ROOT = Path("/")

_NO_ZONES = NodeZones(0, 0, 0, 0, 0)


def read_host(root: Path = LIVE_ROOT, *, probe: bool = True) -> Host:
    """Return the machine below ``root``: this one, or a tree that ``gmemd host --record`` wrote.

    Features are probed on this machine and read from the record otherwise; ``probe=False`` leaves
    them out. Raises HostError or ProcfsError.
    """
    live = root == LIVE_ROOT
    nodes_directory = root / NODES
    if not nodes_directory.is_dir():
        raise HostError(
            f"{nodes_directory}: no such directory",
            hint="the kernel is built without NUMA, or /sys isn't mounted"
            if live
            else "a tree that `gmemd host --record DIR` wrote is expected here",
        )
    record = None if live else read_record(root)
    page_size = os.sysconf("SC_PAGESIZE") if record is None else record.page_size
    online = read_id_list(nodes_directory / "online")
    zones = placeable(root, page_size=page_size)
    nodes = tuple(_read_node(root, node, online, zones) for node in sorted(online))
    possible = nodes_directory / "possible"
    return Host(
        nodes=nodes,
        features=_features(record) if probe else {},
        cpuset=read_cpuset(root),
        possible_nodes=read_id_list(possible) if possible.exists() else online,
        kernel_release=read_text(root / "proc/sys/kernel/osrelease").strip(),
        page_size=page_size,
        hugepages_reserved=_read_reserved(root),
        panic_on_oom=_read_panic_on_oom(root),
    )


def read_cpuset(root: Path = LIVE_ROOT) -> Cpuset:
    """Return gmemd's own effective cpuset, from /proc/self/status. Raises ProcfsError."""
    path = root / "proc/self/status"
    allowed: dict[str, frozenset[int]] = {}
    for line in read_lines(path):
        key, _, value = line.partition(":")
        if key in ("Mems_allowed_list", "Cpus_allowed_list"):
            allowed[key] = parse_id_list(value, str(path))
    for key in ("Mems_allowed_list", "Cpus_allowed_list"):
        if key not in allowed:
            raise ProcfsError(str(path), f"holds no {key}")
    return Cpuset(allowed["Mems_allowed_list"], allowed["Cpus_allowed_list"])


def _features(record: Record | None) -> Mapping[str, Feature]:
    """Return the record's features; this machine's are probed, by system calls."""
    if record is not None:
        return record.features
    from gmemd.host.features import probe_features  # noqa: PLC0415  a record needs no system call

    return probe_features()


def _read_node(
    root: Path, node: int, online: frozenset[int], zones: Mapping[int, NodeZones]
) -> HostNode:
    directory = root / NODES / f"node{node}"
    meminfo = read_node_meminfo(node, root)
    found = zones.get(node, _NO_ZONES)
    weight = root / WEIGHTS / f"node{node}"
    return HostNode(
        id=node,
        cpus=read_id_list(directory / "cpulist"),
        distances=_read_distances(directory / "distance", online),
        total_bytes=meminfo["MemTotal"],
        free_bytes=meminfo["MemFree"],
        placeable_bytes=found.placeable_bytes,
        placeable_available_bytes=found.placeable_available_bytes,
        placeable_free_bytes=found.placeable_free_bytes,
        movable_bytes=found.movable_bytes,
        movable_available_bytes=found.movable_available_bytes,
        hugepages=_read_pools(directory / "hugepages"),
        interleave_weight=read_number(weight) if weight.exists() else 1,
    )


def _read_distances(path: Path, online: frozenset[int]) -> Mapping[int, int]:
    """Distance by node number; the file has one figure per online node, ascending."""
    figures = [parse_number(word, str(path)) for word in read_text(path).split()]
    if len(figures) != len(online):
        raise ProcfsError(str(path), f"has {len(figures)} distances for {len(online)} online nodes")
    return dict(zip(sorted(online), figures, strict=True))


def _read_pools(directory: Path) -> Mapping[int, HugepagePool]:
    """Return the node's pools by page size in bytes; a memoryless node has none."""
    return {
        page_size: HugepagePool(
            page_size=page_size,
            total=read_number(pool / "nr_hugepages"),
            free=read_number(pool / "free_hugepages"),
            surplus=read_number(pool / "surplus_hugepages"),
        )
        for page_size, pool in _pool_directories(directory)
    }


def _read_reserved(root: Path) -> Mapping[int, int]:
    """Huge pages of each size that mappings have reserved and not yet touched, host-wide."""
    return {
        page_size: read_number(pool / "resv_hugepages")
        for page_size, pool in _pool_directories(root / POOLS)
    }


def _read_panic_on_oom(root: Path) -> int:
    """0 in records of before it was among their files."""
    path = root / PANIC_ON_OOM
    return read_number(path) if path.exists() else 0


def _pool_directories(directory: Path) -> list[tuple[int, Path]]:
    """Page size in bytes and directory of each pool, smallest first."""
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise ProcfsError(str(directory), os.strerror(error.errno or 0)) from error
    found = []
    for name in names:
        size = name.removeprefix("hugepages-").removesuffix("kB")
        if name == f"hugepages-{size}kB":
            found.append((parse_number(size, str(directory)) * 1024, directory / name))
    return sorted(found)
