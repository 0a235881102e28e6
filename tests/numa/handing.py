"""A daemon on the lab's nodes, whose memory goes to VMMs or is theirs, and what it says of it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.client import Client
from tests.numa.provisioning import bytes_by_node, difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.client.types import Vm
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")


def write_spec(daemon: Daemon, vm: str, *guest_nodes: str, **keys: str) -> None:
    """A spec of guest nodes in the short form (without ``id`` and braces)."""
    lines = ["version: 1", f"vm: {vm}", *(f"{key}: {value}" for key, value in keys.items())]
    lines.append("guest_nodes:")
    lines += [f"  - {{id: {number}, {node}}}" for number, node in enumerate(guest_nodes)]
    (daemon.vms / f"{vm}.yaml").write_text("\n".join(lines) + "\n")


def bound(mebibytes: int, node: int, more: str = "") -> str:
    """A guest node of that size, bound to a host node."""
    return f"memory: {mebibytes}MiB, host_nodes: {node}, policy: bind{more}"


def audited(daemon: Daemon, vm: str) -> Vm:
    """The VM after an audit of this moment."""
    return Client(daemon.socket).audit(vm)


def seen(vm: Vm) -> list[dict[int, int]]:
    """MiB by host node of each guest node, as the daemon says."""
    found = []
    for node in vm["guest_nodes"]:
        drift = node["drift"]
        assert drift is not None, node
        assert drift["placed"] + drift["misplaced"] + drift["unknown"] == drift["resident"]
        found.append(in_mib(drift["by_node"]))
    return found


def in_mib(by_node: dict[str, int]) -> dict[int, int]:
    """Whole MiB by node; nodes without any left out."""
    assert all(size % MIB == 0 for size in by_node.values()), by_node
    return {int(node): size // MIB for node, size in by_node.items() if size}


class Unevictable:
    """MiB of guest_memfd by node that are there since it was made, by the kernel's own account."""

    def __init__(self) -> None:
        self._before = bytes_by_node("Unevictable")

    def grown(self) -> dict[int, int]:
        return difference(bytes_by_node("Unevictable"), self._before)


@contextmanager
def cgroup(name: str, *controllers: str, **files: str) -> Iterator[Path]:
    """A cgroup with those controllers, for a process that is gone at the end."""
    (CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in controllers))
    group = CGROUPS / name
    group.mkdir()
    for file, value in files.items():
        (group / file.replace("_", ".")).write_text(value)
    try:
        yield group
    finally:
        group.rmdir()
