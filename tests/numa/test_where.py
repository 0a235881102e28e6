"""Where memory lies wrong, on four nodes: told to the page, of held memory and of running VMs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from gmemd.audit.locating import locate_vm
from gmemd.audit.vm import AuditedRegion
from gmemd.kernel.bind import bind_range
from gmemd.kernel.fallocate import allocate, punch_hole
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.kernel.pages import cachestat, move_pages_move
from gmemd.plan.layout import lay_out
from gmemd.spec.model import PolicyMode
from tests.numa.placing import MIB, PAGE, PlacedVm, region_spec
from tests.numa.running import Vm, addresses, block, gmemd_audit, numa_maps, started

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 * MIB
PATIENCE_SECONDS = 30
GIB = 1 << 30


def test_ranges_of_held_memory_are_those_that_were_bound_elsewhere() -> None:
    with PlacedVm(
        region_spec(PolicyMode.BIND, 1, size=SIZE), region_spec(PolicyMode.BIND, 2)
    ) as vm:
        bind_range(vm.fd, 16 * MIB, 4 * MIB, MemPolicy("bind", frozenset({3})))
        bind_range(vm.fd, 40 * MIB, 2 * MIB, MemPolicy("interleave", frozenset({0, 2})))
        allocate(vm.fd, 0, 48 * MIB)
        punch_hole(vm.fd, 17 * MIB, MIB)
        before = cachestat(vm.fd, 0, SIZE)
        regions = [AuditedRegion(region.fd, region.plan) for region in vm.regions]
        layout = lay_out([region.plan for region in vm.regions])
        first, second = locate_vm(vm.audit(), regions, layout=layout).regions
        assert cachestat(vm.fd, 0, SIZE) == before
        drift = vm.drift()
    assert first.where is not None
    assert [
        (found.gpa, found.offset, found.size_bytes, found.by_node)
        for found in first.where.misplaced
    ] == [
        (16 * MIB, 16 * MIB, 4 * MIB, {3: 3 * MIB}),
        (40 * MIB, 40 * MIB, 2 * MIB, {0: MIB, 2: MIB}),
    ]
    assert sum(found.misplaced_bytes for found in first.where.misplaced) == drift.misplaced_bytes
    (stretch,) = first.where.stretches
    cells = SIZE // stretch.cell_bytes
    assert [cell.by_node for cell in stretch.cells[: cells // 4]] == [{1: stretch.cell_bytes}] * (
        cells // 4
    )
    assert all(not cell.by_node for cell in stretch.cells[cells * 3 // 4 :])
    assert second.where is not None
    assert (second.where.stretches[0].gpa, second.where.misplaced) == (GIB, ())


def move_all(pid: int, addresses: range, *, node: int) -> None:
    """Move a process' pages; some may be busy for a moment."""
    left = list(addresses)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left:
        assert time.monotonic() < deadline
        found = move_pages_move(pid, left, [node] * len(left))
        left = [address for address, now in zip(left, found, strict=True) if now != node]


def test_a_running_vm_whose_pages_were_moved(tmp_path: Path) -> None:
    """The kernel's own count of the mapping says how much of it is elsewhere."""
    vm = Vm("moved", "tcg", (block("r0", 32, "bind", 1), block("r1", 48, "bind", 2)))
    picture = tmp_path / "moved.svg"
    with started([vm]) as qemus:
        qemu = qemus["moved"]
        start = addresses(qemu)["r1"] + 16 * MIB
        move_all(qemu.pid, range(start, start + 4 * MIB, PAGE), node=3)
        counted = {
            node: sum(held.get(node, 0) for held in numa_maps(qemu.pid).values()) for node in (2, 3)
        }
        told = gmemd_audit("moved", "--where", "--json", "--svg", str(picture))
        shown = gmemd_audit("--pid", str(qemu.pid), "--where")
    assert (told.exit_code, shown.exit_code) == (1, 1)
    (own,), (other,) = (node["regions"] for node in json.loads(told.stdout)["guest_nodes"])
    assert (own["where"]["misplaced"], own["where"]["more"]) == ([], 0)
    assert other["where"]["misplaced"] == [
        {
            "gpa": None,
            "offset": 16 * MIB,
            "size": 4 * MIB,
            "misplaced": 4 * MIB,
            "by_node": {"3": 4 * MIB},
        }
    ]
    assert counted[3] >= 4 * MIB
    held = [cell["by_node"].get("2", 0) for cell in other["where"]["stretches"][0]["cells"]]
    assert sum(held) == 44 * MIB <= counted[2]
    titles = [title.text for title in ET.parse(picture).iter("{http://www.w3.org/2000/svg}title")]  # noqa: S314  drawn here
    assert "+0x1000000, 4MiB: host node 3 4MiB, 4MiB misplaced" in titles
    assert "1  +0x1000000  +0x1400000  4MiB       4MiB  host 3" in shown.stdout
    strips = [line for line in shown.stdout.splitlines() if "+0x0  " in line]
    assert set(strips[0].split()[-1]) == {"1"}
    assert set(strips[1].split()[-1]) == {"2", "3"}
