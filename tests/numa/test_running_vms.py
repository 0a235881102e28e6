"""`gmemd audit --all` of real, unmodified QEMU on four nodes, held against the kernel's counts."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.audit.observed import Effort, read_policies
from gmemd.daemon.observing import Finder, FoundVm, observe
from gmemd.host.reading import read_host
from gmemd.plan.observed import plan_observed
from tests.numa.provisioning import bytes_by_node, huge_pages
from tests.numa.running import (
    HUGE,
    MIB,
    Block,
    Vm,
    addresses,
    block,
    by_node,
    cpuset,
    gmemd_audit,
    in_cgroup,
    nothing_collapsed,
    numa_maps,
    numastat,
    started,
    total,
    without_heap,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.qemu import Qemu

TRIALS = 120
TRIES = 5
SMALL_SAMPLE = 64
LOADED_MIB = 24
LEAST_MIB = 32


def definitions(group: Path, folder: Path) -> list[Vm]:
    """Every kind of memory that a VM may have; KVM and emulation by turns."""
    huge = {"kind": "memfd", "page_size": HUGE, "more": ("hugetlb=on", "hugetlbsize=2M")}
    path = f"mem-path={folder}"
    private = {"more": ("share=off",), "backend": "anonymous"}
    room = ("-m", f"{LEAST_MIB}M,slots=4,maxmem=256M")
    image = f"loader,file={folder}/image,addr=0x1000000,force-raw=on"
    return [
        Vm("ram-two", "kvm", (block("r0", 32, "bind", 1), block("r1", 48, "bind", 2))),
        Vm(
            "ram-four",
            "tcg",
            (
                block("r0", 24, "bind", 3, in_json=True),
                block("r1", 24, "preferred", 2),
                block("r2", 24, "interleave", 0, 1, in_json=True, pages={0: 12, 1: 12}),
                block("r3", 24, "bind", 1, 2),
            ),
        ),
        Vm(
            "memfd-shared",
            "kvm",
            (
                block("f0", 32, "bind", 2, kind="memfd"),
                block("f1", 32, "interleave", 1, 3, kind="memfd", pages={1: 16, 3: 16}),
            ),
        ),
        Vm(
            "memfd-private",
            "tcg",
            (
                block("f0", 32, "bind", 1, kind="memfd", **private),
                block("f1", 32, "bind", 3, kind="memfd", **private),
            ),
        ),
        Vm("huge", "kvm", (block("h0", 16, "bind", 2, **huge), block("h1", 16, "bind", 3, **huge))),
        Vm(
            "file",
            "tcg",
            (
                block("d0", 16, "bind", 0, kind="file", more=(path, "share=on")),
                block("d1", 16, "bind", 2, kind="file", more=(path,), backend="anonymous"),
            ),
        ),
        Vm(
            "no-numa",
            "kvm",
            (Block("pc.ram", 512, "default", frozenset({3}), pages={3: 512}),),
            more=("-m", "512M", "-overcommit", "mem-lock=on"),
            prefix=in_cgroup(group),
            declared_by="cpuset.mems 3",
        ),
        Vm("hot-other-size", "tcg", (block("r0", LEAST_MIB, "bind", 1),), more=room),
        Vm("hot-same-size", "kvm", (block("r0", LEAST_MIB, "bind", 0),), more=room),
        Vm("twin-a", "tcg", (block("r0", 32, "bind", 0), block("r1", 32, "bind", 2))),
        Vm("twin-b", "kvm", (block("r0", 32, "bind", 2), block("r1", 32, "bind", 1))),
        Vm(
            "with-holes",
            "tcg",
            (block("f0", 96, "bind", 2, kind="memfd", filled=False, pages={2: LOADED_MIB}),),
            more=("-device", image),
        ),
    ]


NAMES = [vm.name for vm in definitions(Path(), Path())]
HOT = {"hot-other-size": (48, 3), "hot-same-size": (32, 2)}
"""MiB that are hot-added, and the host node that they are bound to."""
UNTOLD = "hot-same-size"
"""The VM of which a sample can't tell which of two mappings is the declared one."""


class Running:
    """All VMs, and what was said of them while nothing changed."""

    def __init__(self, vms: list[Vm], qemus: dict[str, Qemu]) -> None:
        self.vms = {vm.name: vm for vm in vms}
        self.qemus = qemus
        self.addresses = {name: addresses(qemu) for name, qemu in qemus.items()}
        self.before = self._state()
        self.full = gmemd_audit("--all", "--full", "--json")
        self.sampled = gmemd_audit("--all", "--json")
        self.after = self._state()

    def _state(self) -> dict[str, Any]:
        """What the kernel counts: of the guests' memory, of all of it, of all files in memory."""
        counted = {name: numa_maps(qemu.pid) for name, qemu in self.qemus.items()}
        guests = {
            name: {known: held[self.addresses[name][known]] for known in self.known(name)}
            for name, held in counted.items()
        }
        processes = {name: without_heap(qemu.pid) for name, qemu in self.qemus.items()}
        return {"guests": guests, "processes": processes, "files": bytes_by_node("Shmem")}

    def known(self, name: str) -> list[str]:
        """The blocks that are a VM's guest nodes, and what was hot-added."""
        blocks = [told.name for told in self.vms[name].blocks]
        return [*blocks, *(["hot"] if name in HOT else [])]

    def guest_bytes(self, name: str, block: str) -> dict[int, int]:
        """Bytes per host node of a block of a VM's memory, as the kernel counts them."""
        found: dict[int, int] = self.before["guests"][name][block]
        return found

    def found(self, name: str) -> FoundVm:
        vm = Finder().find_pid(self.qemus[name].pid)
        assert vm is not None
        return vm


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    folder = Path("/dev/shm/gmemd-test")  # noqa: S108  a file system in memory, that no one else has
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(folder.rmdir)
        image = folder / "image"
        image.write_bytes(bytes([1]) * LOADED_MIB * MIB)
        stack.callback(image.unlink)
        stack.enter_context(nothing_collapsed())
        for node in (2, 3):
            stack.enter_context(huge_pages(node, 8))
        vms = definitions(stack.enter_context(cpuset("gmemd-no-numa", "3")), folder)
        qemus = stack.enter_context(started(vms))
        for name, (size_mib, host_node) in HOT.items():
            hot_add(qemus[name], size_mib=size_mib, host_node=host_node)
        yield Running(vms, qemus)


def hot_add(qemu: Qemu, *, size_mib: int, host_node: int) -> None:
    """Memory that no command line tells of."""
    wanted = {"qom-type": "memory-backend-ram", "id": "hot", "size": size_mib * MIB}
    placed = {"host-nodes": [host_node], "policy": "bind", "prealloc": True}
    qemu.command("object-add", **wanted, **placed)
    qemu.command("device_add", driver="pc-dimm", id="dimm", memdev="hot", node=0)


def test_every_vm_is_found_and_none_drifts(running: Running) -> None:
    for audited in (running.full, running.sampled):
        assert sorted(audited.vms) == sorted(NAMES)
        assert audited.stderr == ""
        assert audited.report["unseen_processes"] == 0
        assert [name for name, vm in audited.vms.items() if vm["drifting"]] == []
        for name, vm in audited.vms.items():
            assert vm["running"]["pid"] == running.qemus[name].pid
            assert vm["running"]["kvm"] == (running.vms[name].accel == "kvm")
            assert vm["running"]["declared_by"] == running.vms[name].declared_by
    assert running.full.exit_code == 0
    assert running.sampled.exit_code == 5  # one guest node's memory can't be told without a policy


@pytest.mark.parametrize("name", NAMES)
def test_guest_nodes_are_those_declared(running: Running, name: str) -> None:
    vm = running.full.vms[name]
    assert vm["warnings"] == []
    regions = [region for node in vm["guest_nodes"] for region in node["regions"]]
    assert [node["id"] for node in vm["guest_nodes"]] == list(range(len(regions)))
    for region, wanted in zip(regions, running.vms[name].blocks, strict=True):
        told = (region["policy"], frozenset(region["host_nodes"]), region["backend"])
        assert told == (wanted.policy, wanted.host_nodes, wanted.backend)
        assert (region["size"], region["page_size"]) == (wanted.size_mib * MIB, wanted.page_size)
        assert region["resident"] is not None


@pytest.mark.parametrize("read", [True, False], ids=["with policies", "without"])
@pytest.mark.parametrize("name", NAMES)
def test_each_guest_node_is_given_the_block_that_qemu_says(
    running: Running,
    name: str,
    read: bool,  # noqa: FBT001  a parameter of pytest's
) -> None:
    found = running.found(name)
    held = read_policies(found.vmm) if read else {}
    policies = {address: (policy.mode, policy.nodes) for address, policy in held.items()}
    vm = plan_observed(name, found.vmm, found.declaration, read_host(), policies=policies)
    blocks = running.addresses[name]
    wanted = [(number, blocks[told.name]) for number, told in enumerate(running.vms[name].blocks)]
    unmatched = {blocks["hot"]} if name in HOT else set()
    if name == UNTOLD and not read:
        unmatched.add(blocks["r0"])
        wanted = []
    given = [(region.plan.guest_node, region.extents[0].piece.address) for region in vm.regions]
    assert given == wanted
    assert {left.piece.address for left in vm.unmatched} == unmatched


@pytest.mark.parametrize("name", NAMES)
def test_a_full_audits_bytes_are_the_kernels(running: Running, name: str) -> None:
    drifts = [node["drift"] for node in running.full.vms[name]["guest_nodes"]]
    for drift, wanted in zip(drifts, running.vms[name].blocks, strict=True):
        assert by_node(drift["by_node"]) == running.guest_bytes(name, wanted.name)
        assert drift["by_node_lower"] == drift["by_node_upper"] == drift["by_node"]
        assert (drift["sampled"], drift["unknown"], drift["misplaced"]) == (False, 0, 0)
        assert drift["drift_ratio"] == 0
        if wanted.policy != "default":
            assert drift["policy_match"] is True
        assert drift["resident"] == sum(by_node(drift["by_node"]).values())
        if wanted.pages:
            assert by_node(drift["by_node"]) == {n: m * MIB for n, m in wanted.pages.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_full_audit_agrees_with_numastat(running: Running, name: str) -> None:
    """What numastat counts is what gmemd does, and the VMM's own mappings, to its two decimals."""
    vm, pid = running.full.vms[name], running.qemus[name].pid
    ours = Counter[int]()
    for node in vm["guest_nodes"]:
        ours.update(by_node(node["drift"]["by_node"]))
    for piece in vm["running"]["unmatched"]:
        ours.update(by_node(piece["by_node"]))
    for _ in range(TRIES):
        counted, stat = numa_maps(pid), numastat(pid)
        if numa_maps(pid) == counted:
            break
    guest = {running.addresses[name][block] for block in running.known(name)}
    own = total({address: held for address, held in counted.items() if address not in guest})
    for node, figure in stat.items():
        assert figure == pytest.approx((ours[node] + own.get(node, 0)) / MIB, abs=0.01)


@pytest.mark.parametrize(("name", "size_mib", "node"), [(n, *hot) for n, hot in HOT.items()])
def test_hot_added_memory_is_told_and_never_guessed(
    running: Running, name: str, size_mib: int, node: int
) -> None:
    (piece,) = running.full.vms[name]["running"]["unmatched"]
    assert piece["size"] == size_mib * MIB
    assert by_node(piece["by_node"]) == {node: size_mib * MIB} == running.guest_bytes(name, "hot")
    assert running.full.report["summary"]["unmatched"] == sum(mib for mib, _ in HOT.values()) * MIB


def test_of_two_mappings_that_look_alike_a_sample_believes_none(running: Running) -> None:
    vm = running.sampled.vms[UNTOLD]
    (node,) = vm["guest_nodes"]
    assert node["drift"] is None
    assert len(vm["running"]["unmatched"]) == 2
    for piece in vm["running"]["unmatched"]:
        assert piece["why"] == ("2 mappings have the size of r0, and nothing tells which is its")
    (warning,) = vm["warnings"]
    assert "r0 of the command line isn't found in memory" in warning
    assert "`gmemd audit --full`" in warning
    assert vm["running"]["unknown"] == "unmatched"


def test_samples_hold_the_truth(running: Running) -> None:
    """Of intervals at 95 %, 120 times: fewer than 85 % with the truth is a fault, not chance."""
    host = read_host()
    for name, guest_node in (("with-holes", 0), ("memfd-shared", 1), ("ram-four", 2)):
        found = running.found(name)
        wanted = running.vms[name].blocks[guest_node]
        truth = running.guest_bytes(name, wanted.name)
        held = Counter[int]()
        for trial in range(TRIALS):
            status = observe(found, host, Effort(SMALL_SAMPLE, Random(trial)))
            assert status.drift is not None
            drift = status.drift.guest_nodes[guest_node]
            assert drift.sampled
            for node, size in truth.items():
                lower, upper = drift.by_node_lower.get(node, 0), drift.by_node_upper.get(node, 0)
                assert lower < upper <= wanted.size_mib * MIB
                held[node] += lower <= size <= upper
        assert set(held) == set(truth)
        assert min(held.values()) >= TRIALS * 0.85, (name, held)


def test_the_commands_sample_is_near_the_truth(running: Running) -> None:
    """Six standard deviations of 4,096 pages and more than that of 32 MiB in huge pages."""
    for name, vm in running.sampled.vms.items():
        for node, wanted in zip(vm["guest_nodes"], running.vms[name].blocks, strict=True):
            if name == UNTOLD:
                continue
            drift, truth = node["drift"], running.guest_bytes(name, wanted.name)
            assert set(by_node(drift["by_node"])) == set(truth)
            for host_node, size in truth.items():
                assert drift["by_node"][str(host_node)] == pytest.approx(
                    size, abs=0.05 * node["memory"]
                )
            small = node["memory"] // node["regions"][0]["page_size"] <= 4096
            assert drift["sampled"] != small


def test_nothing_was_allocated(running: Running) -> None:
    assert running.after == running.before
    assert running.guest_bytes("with-holes", "f0") == {2: LOADED_MIB * MIB}


def test_one_vm_by_its_name_and_by_its_pid(running: Running) -> None:
    named = gmemd_audit("twin-b", "--full", "--json")
    by_pid = gmemd_audit("--pid", str(running.qemus["twin-b"].pid), "--full", "--json")
    for audited in (named, by_pid):
        assert audited.exit_code == 0, audited
        assert audited.report["vm"] == "twin-b"
        assert audited.report["guest_nodes"] == running.full.vms["twin-b"]["guest_nodes"]


def test_as_text(running: Running) -> None:
    text = gmemd_audit("--all", "--full").stdout
    for name, vm in running.vms.items():
        pid, kind = running.qemus[name].pid, "KVM" if vm.accel == "kvm" else "emulated"
        head = rf"^{name}  ready  observe, since \S+, pid {pid} qemu-system-x86_64 \({kind}\), "
        said = rf"audited \d+ s ago\n  declared by: {vm.declared_by}$"
        assert re.search(head + said, text, re.MULTILINE), text
    assert text.splitlines()[-1] == (
        "12 VMs, 1.1GiB resident, 1.1GiB placed, 0B misplaced (0%), 80MiB unmatched"
    )
    assert " 12MiB 50%   12MiB 50% " in text
    assert "!" not in text


def test_as_metrics(running: Running) -> None:
    audited = gmemd_audit("--all", "--format", "prometheus", "--full")
    assert audited.exit_code == 0
    subprocess.run(["promtool", "check", "metrics"], input=audited.stdout, text=True, check=True)
    for name, vm in running.vms.items():
        for number, wanted in enumerate(vm.blocks):
            for node, size in running.guest_bytes(name, wanted.name).items():
                labels = f'guest_node="{number}",host_node="{node}",vm="{name}"'
                line = f"gmemd_guest_node_memory_bytes{{{labels}}} "
                (value,) = re.findall(f"^{re.escape(line)}(.*)$", audited.stdout, re.MULTILINE)
                assert float(value) == size
