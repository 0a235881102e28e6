"""Running VMs of real QEMU on the lab's nodes, what `gmemd audit` says, and what the kernel says.

Nothing here asks gmemd where memory is: QEMU tells its blocks' addresses, the kernel counts pages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import preloaded
from tests.qemu import Qemu, start_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MIB = 1 << 20
HUGE = 2 * MIB
NODES = Path("/sys/devices/system/node")
CGROUPS = Path("/sys/fs/cgroup")
KHUGEPAGED_SLEEP = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs")

# Name, page size, offset, used, total, address.
_BLOCK = re.compile(r"^ *(\S+) +\d+ [KMG]iB +(?:0x[0-9a-f]+ +){3}(0x[0-9a-f]+)\b", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A guest node's memory as it is asked for: the option that makes it, and what must come of it.

    ``backend`` is what gmemd is to call it. ``pages`` are MiB per host node; where there are none,
    the kernel is free in how much each of ``host_nodes`` gets.
    """

    name: str
    size_mib: int
    policy: str
    host_nodes: frozenset[int]
    option: str = ""
    backend: str = "anonymous"
    page_size: int = 4096
    pages: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Vm:
    """A VM to start: its guest nodes' memory in order, and whatever arguments it has besides."""

    name: str
    accel: str
    blocks: tuple[Block, ...]
    more: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    declared_by: str = "qemu command line"

    @property
    def arguments(self) -> list[str]:
        """The command line's memory."""
        words = list(self.more)
        if "-m" not in words:
            words += ["-m", f"{sum(block.size_mib for block in self.blocks)}M"]
        for number, block in enumerate(block for block in self.blocks if block.option):
            words += ["-object", block.option]
            words += ["-numa", f"node,nodeid={number},memdev={block.name}"]
        return words


def block(
    name: str,
    size_mib: int,
    policy: str,
    *nodes: int,
    kind: str = "ram",
    more: Sequence[str] = (),
    filled: bool = True,
    in_json: bool = False,
    **expected: Any,  # noqa: ANN401  the fields of a Block
) -> Block:
    """A backend with that policy; on one host node alone, all of it has to be there."""
    option = ",".join(
        [f"memory-backend-{kind}", f"id={name}", f"size={size_mib}M", f"policy={policy}"]
        + [f"host-nodes={node}" for node in nodes]
        + (["prealloc=on"] if filled else [])
        + list(more)
    )
    if in_json:
        wanted = {"qom-type": f"memory-backend-{kind}", "id": name, "size": size_mib * MIB}
        placed = {"policy": policy, "host-nodes": nodes, "prealloc": True}
        option = json.dumps({**wanted, **placed})
    expected.setdefault("backend", {"ram": "anonymous"}.get(kind, kind))
    if len(nodes) == 1:
        expected.setdefault("pages", {nodes[0]: size_mib})
    return Block(name, size_mib, policy, frozenset(nodes), option, **expected)


def in_cgroup(group: Path) -> tuple[str, ...]:
    """What starts a program in a cgroup."""
    return ("sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh")


@contextmanager
def cpuset(name: str, mems: str) -> Iterator[Path]:
    """A cgroup that may have memory of those nodes only."""
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    group = CGROUPS / name
    group.mkdir()
    (group / "cpuset.mems").write_text(mems)
    try:
        yield group
    finally:
        group.rmdir()


@contextmanager
def started(vms: Sequence[Vm]) -> Iterator[dict[str, Qemu]]:
    """All of them at once, by name: paused, their memory there."""
    with ExitStack() as stack, ThreadPoolExecutor(len(vms)) as pool:

        def start(vm: Vm) -> Qemu:
            starting = start_qemu(*vm.arguments, name=vm.name, accel=vm.accel, prefix=vm.prefix)
            return stack.enter_context(starting)

        yield {vm.name: qemu for vm, qemu in zip(vms, pool.map(start, vms), strict=True)}


@dataclass(frozen=True)
class Audited:
    """What one run of `gmemd audit` said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> Any:  # noqa: ANN401  JSON
        return json.loads(self.stdout)

    @property
    def vms(self) -> dict[str, Any]:
        """VMs by name."""
        found = {vm["vm"]: vm for vm in self.report["vms"]}
        assert len(found) == len(self.report["vms"])
        return found


def gmemd_audit(*arguments: str, prefix: Sequence[str] = ()) -> Audited:
    """Run ``gmemd audit`` as a process of its own."""
    if prefix:
        command = [*prefix, sys.executable, "-m", "gmemd", "audit", *arguments]
        done = subprocess.run(command, capture_output=True, check=False)
    else:
        done = preloaded.run("audit", *arguments)
    stderr = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in stderr, stderr
    return Audited(done.returncode, done.stdout.decode(), stderr)


def addresses(qemu: Qemu) -> dict[str, int]:
    """Where QEMU says that it has mapped its blocks of memory, by the blocks' names."""
    said = qemu.command("human-monitor-command", **{"command-line": "info ramblock"})
    return {name: int(address, 16) for name, address in _BLOCK.findall(said)}


def numa_maps(pid: int) -> dict[int, dict[int, int]]:
    """Bytes per host node of each mapping, by its address."""
    found = {}
    for line in Path(f"/proc/{pid}/numa_maps").read_text(errors="replace").splitlines():
        words = line.split()
        size = next((word for word in words if word.startswith("kernelpagesize_kB=")), "=4")
        page_size = int(size.partition("=")[2]) << 10
        pages = re.findall(r" N(\d+)=(\d+)", line)
        found[int(words[0], 16)] = {int(node): int(count) * page_size for node, count in pages}
    return found


def total(mappings: Mapping[int, Mapping[int, int]]) -> dict[int, int]:
    """Bytes per host node of all mappings together."""
    found: dict[int, int] = {}
    for by_node in mappings.values():
        for node, size in by_node.items():
            found[node] = found.get(node, 0) + size
    return found


def numastat(pid: int) -> dict[int, float]:
    """MiB per host node that numastat counts for a process, to two decimals."""
    done = subprocess.run(
        ["numastat", "-p", str(pid)],
        env={**os.environ, "NUMASTAT_WIDTH": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    header = next(line for line in done.stdout.splitlines() if "Node 0" in line)
    last = next(line for line in done.stdout.splitlines() if line.startswith("Total"))
    nodes = [int(node) for node in re.findall(r"Node (\d+)", header)]
    figures = [float(word) for word in last.split()[1:]]
    return dict(zip(nodes, figures[:-1], strict=True))


def by_node(figures: Mapping[str, int]) -> dict[int, int]:
    """Bytes per host node, from JSON."""
    return {int(node): size for node, size in figures.items() if size}


def without_heap(pid: int) -> int:
    """Bytes of all mappings but the heap, which a VMM's threads go on using."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text(errors="replace").splitlines()
    heap = {int(line.split()[0], 16) for line in lines if " heap " in line}
    counted = numa_maps(pid)
    return sum(total({at: held for at, held in counted.items() if at not in heap}).values())


@contextmanager
def nothing_collapsed() -> Iterator[None]:
    """The kernel makes no huge pages of what is there, which would fill holes with zeros."""
    KHUGEPAGED_SLEEP.write_text("3600000")
    try:
        yield
    finally:
        KHUGEPAGED_SLEEP.write_text("10000")
