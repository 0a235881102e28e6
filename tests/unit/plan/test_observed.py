"""A running VM as declared: names, guest nodes, what is expected where, what is left over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.host.vms.model import Piece, PieceKind, VmmProcess
from gmemd.plan.observed import is_no_vm, name_of, plan_observed, unique_names
from gmemd.spec.declared import BackendKind, Declaration, DeclaredBackend
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec
from tests.unit.drift.cases import make_host

if TYPE_CHECKING:
    from gmemd.host.model import Host

MIB = 1 << 20


@pytest.fixture
def four_nodes() -> Host:
    return make_host()


def vmm(
    *pieces: Piece,
    pid: int = 100,
    cgroup: str = "/",
    unit: str = "",
    mems: str = "0123",
    start: int = 5,
    argv: tuple[str, ...] = ("qemu-system-x86_64",),
) -> VmmProcess:
    return VmmProcess(
        pid=pid,
        start_ticks=start,
        started_timestamp=1.0,
        program="qemu-system-x86_64",
        argv=argv,
        kvm=True,
        cgroup=cgroup,
        unit=unit,
        mems=frozenset(map(int, mems)),
        pieces=pieces,
    )


def ram(address: int, size_mib: int) -> Piece:
    return Piece(PieceKind.ANONYMOUS, size_mib * MIB, 4096, address=address)


def backend(
    name: str, size_mib: int, *, node: int | None = 0, host_nodes: str = ""
) -> DeclaredBackend:
    return DeclaredBackend(
        name,
        BackendKind.RAM,
        size_mib * MIB,
        ((node, size_mib * MIB),),
        policy=PolicyMode.BIND if host_nodes else PolicyMode.DEFAULT,
        host_nodes=frozenset(map(int, host_nodes)),
    )


def declared(*backends: DeclaredBackend, name: str = "db-01", **more: object) -> Declaration:
    return replace(Declaration(vmm="qemu", name=name, backends=backends), **more)


@pytest.mark.parametrize(
    ("process", "name", "expected"),
    [
        (vmm(unit="db.service"), "from-vmm", "from-vmm"),
        (vmm(unit="machine-qemu\\x2d1\\x2ddb.scope"), "", "machine-qemu-1-db"),
        (vmm(cgroup="/kubepods/pod1/abc"), "", "abc"),
        (vmm(pid=77), "", "pid-77"),
    ],
)
def test_where_a_name_comes_from(process: VmmProcess, name: str, expected: str) -> None:
    assert name_of(process, Declaration(name=name)) == expected


def test_the_oldest_of_a_name_keeps_it() -> None:
    young, old = vmm(pid=10, start=900), vmm(pid=20, start=100)
    twice = [(young, Declaration(name="db")), (old, Declaration(name="db"))]
    assert unique_names(twice) == ["db@10", "db"]
    assert unique_names(twice, taken=["db"]) == ["db@10", "db@20"]


@pytest.mark.parametrize(
    ("argv", "none"),
    [
        (("qemu", "-machine", "none,accel=kvm:tcg"), True),
        (("qemu", "--machine", "type=none"), True),
        (("qemu", "-M", "none"), True),
        (("qemu", "-M", "nonesuch"), False),
        (("qemu", "-name", "none"), False),
    ],
)
def test_a_qemu_that_is_only_asked_what_it_can_do(argv: tuple[str, ...], *, none: bool) -> None:
    assert is_no_vm(vmm(argv=argv), Declaration(vmm="qemu")) is none


def test_backends_place_their_guest_nodes(four_nodes: Host) -> None:
    declaration = declared(
        backend("m0", 256, host_nodes="2"), backend("m1", 512, node=1, host_nodes="13")
    )
    vm = plan_observed("db-01", vmm(ram(0x1000, 512), ram(0x2000, 256)), declaration, four_nodes)
    assert vm.declared_by == "qemu command line"
    plans = {plan.guest_node: plan for plan in vm.plan.regions}
    assert (plans[0].policy, plans[0].host_nodes) == (PolicyMode.BIND, {2})
    assert (plans[1].size_bytes, plans[1].host_nodes) == (512 * MIB, {1, 3})
    assert plans[0].backend is Backend.ANONYMOUS
    assert vm.plan.spec.source is Source.OBSERVE
    assert [node.id for node in vm.plan.spec.guest_nodes] == [0, 1]
    assert [region.extents[0].piece.address for region in vm.regions] == [0x2000, 0x1000]


def test_a_cpuset_places_what_the_command_line_does_not(four_nodes: Host) -> None:
    declaration = declared(backend("pc.ram", 512), one_node=True)
    vm = plan_observed("db-01", vmm(ram(0x1000, 512), mems="01"), declaration, four_nodes)
    assert vm.declared_by == "cpuset.mems 0-1"
    (plan,) = vm.plan.regions
    assert (plan.policy, plan.host_nodes) == (PolicyMode.DEFAULT, {0, 1})


def test_a_cpuset_of_all_nodes_with_memory_declares_nothing(four_nodes: Host) -> None:
    declaration = declared(backend("pc.ram", 512))
    process = replace(vmm(ram(0x1000, 512)), mems=frozenset(range(64)))
    vm = plan_observed("db-01", process, declaration, four_nodes)
    assert vm.declared_by == ""
    assert vm.plan.regions[0].host_nodes == frozenset()


def test_a_hot_added_backend_is_unmatched_and_said_to_be(four_nodes: Host) -> None:
    process = vmm(ram(0x1000, 512), ram(0x2000, 128))
    vm = plan_observed("db-01", process, declared(backend("m0", 512)), four_nodes)
    (left,) = vm.unmatched
    assert left.piece.size_bytes == 128 * MIB
    assert "hot-added" in left.why


def test_what_is_declared_and_not_there_stays_declared(four_nodes: Host) -> None:
    declaration = declared(backend("m0", 512), backend("m1", 256, node=1, host_nodes="1"))
    vm = plan_observed("db-01", vmm(ram(0x1000, 512)), declaration, four_nodes)
    assert [plan.guest_node for plan in vm.plan.regions] == [0, 1]
    assert [node.id for node in vm.plan.spec.guest_nodes] == [0]
    assert vm.missing == ("m1 of the command line isn't found in memory: no mapping has its size",)


def test_one_block_of_several_guest_nodes_is_cut(four_nodes: Host) -> None:
    block = replace(backend("pc.ram", 384), parts=((0, 256 * MIB), (1, 128 * MIB)))
    vm = plan_observed("db-01", vmm(ram(0x1000, 384)), declared(block), four_nodes)
    extents = [(region.extents[0].offset, region.extents[0].length) for region in vm.regions]
    assert extents == [(0, 256 * MIB), (256 * MIB, 128 * MIB)]


def test_memory_of_no_guest_node_belongs_to_none(four_nodes: Host) -> None:
    vm = plan_observed(
        "db-01", vmm(ram(0x1000, 384)), declared(backend("shm", 384, node=None)), four_nodes
    )
    assert vm.regions == ()
    assert vm.unmatched == ()


def test_a_guest_with_one_node_has_all_that_is_large(four_nodes: Host) -> None:
    declaration = Declaration(vmm="firecracker", name="fc", one_node=True)
    process = vmm(ram(0x1000, 128), ram(0x90000000, 64), ram(0x1, 8), mems="1")
    vm = plan_observed("fc", process, declaration, four_nodes)
    assert [(plan.guest_node, plan.index, plan.size_bytes // MIB) for plan in vm.plan.regions] == [
        (0, 0, 128),
        (0, 1, 64),
    ]
    assert vm.plan.regions[0].host_nodes == {1}
    assert vm.unmatched == ()


def test_an_unknown_vmm_may_have_any_guest_nodes(four_nodes: Host) -> None:
    vm = plan_observed("x", vmm(ram(0x1000, 128)), Declaration(), four_nodes)
    assert vm.regions == ()
    assert len(vm.unmatched) == 1


def test_a_spec_outranks_the_command_line(four_nodes: Host) -> None:
    wanted = VmSpec(
        vm="db-01",
        source=Source.OBSERVE,
        drift_tolerance=0.05,
        guest_nodes=(
            GuestNode(
                id=0,
                regions=(
                    RegionSpec(
                        size_bytes=512 * MIB, host_nodes=frozenset({3}), policy=PolicyMode.BIND
                    ),
                ),
            ),
            GuestNode(id=7, regions=(RegionSpec(size_bytes=MIB),)),
        ),
    )
    vm = plan_observed(
        "db-01",
        vmm(ram(0x1000, 512)),
        declared(backend("m0", 512, host_nodes="0")),
        four_nodes,
        spec=wanted,
    )
    assert vm.declared_by == "its spec"
    assert vm.plan.regions[0].host_nodes == {3}
    assert vm.plan.spec.drift_tolerance == 0.05
    assert any("guest node 7" in note for note in vm.notes)


def test_a_spec_names_backends_that_the_command_line_gives_to_nobody(four_nodes: Host) -> None:
    regions = (
        RegionSpec(size_bytes=256 * MIB, host_nodes=frozenset({1}), policy=PolicyMode.BIND),
        RegionSpec(
            size_bytes=256 * MIB,
            host_nodes=frozenset({3}),
            policy=PolicyMode.BIND,
            memdev="extra",
        ),
    )
    wanted = VmSpec(
        vm="db-01", source=Source.ADOPT, guest_nodes=(GuestNode(id=0, regions=regions),)
    )
    vm = plan_observed(
        "db-01",
        vmm(ram(0x2000, 256), ram(0x1000, 256)),
        declared(backend("m0", 256), backend("extra", 256, node=None)),
        four_nodes,
        spec=wanted,
    )
    assert [(plan.guest_node, plan.host_nodes) for plan in vm.plan.regions] == [(0, {1}), (0, {3})]


def test_a_vm_that_cant_be_looked_into_keeps_what_it_declares(four_nodes: Host) -> None:
    process = replace(vmm(), blocked="not permitted", hint="be root")
    vm = plan_observed("db-01", process, declared(backend("m0", 512, host_nodes="2")), four_nodes)
    assert vm.regions == ()
    assert vm.missing == ()
