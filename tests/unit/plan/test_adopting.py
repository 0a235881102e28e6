"""What is taken of a running VMM, and where gmemd refuses to guess."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.host.vms.model import Piece, PieceKind, VmmProcess
from gmemd.plan.adopting import plan_adoption
from gmemd.plan.errors import AmbiguousError, LayoutMismatchError
from gmemd.plan.model import Strategy
from gmemd.plan.observed import plan_observed
from gmemd.spec.declared import BackendKind, Declaration, DeclaredBackend
from gmemd.spec.model import Backend
from gmemd.spec.vmm.qemu import read_qemu
from tests.unit.plan.specs import MIB, region, vm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.host.model import Host
    from gmemd.plan.adopting import Adoption
    from gmemd.spec.model import RegionSpec, VmSpec

QEMU = ("qemu-system-x86_64", "-name", "db", "-nodefaults")
PID = 4242


def memfd(size_mib: int, fd: int, address: int, *, page_size: int = 4096, offset: int = 0) -> Piece:
    """A shared mapping of a memfd that has the number 100 + fd."""
    return Piece(
        PieceKind.MEMFD,
        size_mib * MIB,
        page_size,
        address=address,
        shared=True,
        file=PieceKind.MEMFD,
        offset=offset,
        inode=(0, 1, 100 + fd),
        path="/memfd:memory-backend-memfd (deleted)",
        fds=(fd,),
    )


def guest_memfd(size_mib: int, fd: int, inode: int) -> Piece:
    return Piece(
        PieceKind.GUEST_MEMFD,
        size_mib * MIB,
        4096,
        shared=True,
        file=PieceKind.GUEST_MEMFD,
        inode=(0, 9, inode),
        path="[kvm-gmem]",
        fds=(fd,),
    )


def anonymous(size_mib: int, address: int) -> Piece:
    return Piece(PieceKind.ANONYMOUS, size_mib * MIB, 4096, address=address)


def qemu(*words: str) -> Declaration:
    return read_qemu([*QEMU, *words])


def nodes(*sizes_mib: int, kind: str = "memfd", more: str = "") -> Declaration:
    """A QEMU with a backend ramN for each guest node."""
    words = ["-m", f"{sum(sizes_mib)}M"]
    for number, size in enumerate(sizes_mib):
        words += ["-object", f"memory-backend-{kind},id=ram{number},size={size}M{more}"]
        words += ["-numa", f"node,nodeid={number},memdev=ram{number}"]
    return qemu(*words)


def wanted(*regions: RegionSpec | tuple[RegionSpec, ...]) -> VmSpec:
    return vm(*regions, name="db", source="adopt")


def of(size_mib: int, host_node: int, backend: str = "memfd", **more: object) -> RegionSpec:
    asked = region(size_mib * MIB, {host_node}, backend=backend, prefault=False)
    return asked.model_copy(update=more)


def adopt(
    host: Host,
    spec: VmSpec,
    declaration: Declaration,
    *pieces: Piece,
    policies: Mapping[int, tuple[str, frozenset[int]]] | None = None,
) -> Adoption:
    process = VmmProcess(
        pid=PID,
        start_ticks=1,
        started_timestamp=1.0,
        program="qemu-system-x86_64",
        argv=QEMU,
        kvm=True,
        cgroup="/",
        unit="",
        mems=frozenset({0, 1}),
        pieces=pieces,
    )
    seen = plan_observed("db", process, declaration, host, policies=policies, spec=spec)
    return plan_adoption(seen, spec, declaration, host)


def taken(adoption: Adoption) -> list[tuple[int, int, int, int, int]]:
    """Guest node, region of the spec, descriptor, offset and MiB of each."""
    return [
        (
            one.plan.guest_node,
            one.spec_index,
            one.fd,
            one.offset // MIB,
            one.plan.size_bytes // MIB,
        )
        for one in adoption.regions
    ]


def test_memfds_are_their_guest_nodes(two_sockets: Host) -> None:
    spec = wanted(of(512, 0), of(256, 1))
    found = adopt(
        two_sockets, spec, nodes(512, 256), memfd(256, 12, 0x7000), memfd(512, 11, 0x9000)
    )
    assert taken(found) == [(0, 0, 11, 0, 512), (1, 0, 12, 0, 256)]
    assert found.left == ()
    first = found.regions[0]
    assert first.inode == (0, 1, 111)
    assert first.memdev == "ram0"
    assert (first.plan.host_nodes, first.plan.policy) == ({0}, "bind")
    assert (first.plan.strategy, first.plan.prefault) == (Strategy.INODE_POLICY, False)


def test_equal_sizes_are_told_by_two_orders_that_agree(two_sockets: Host) -> None:
    spec = wanted(of(256, 0), of(256, 1))
    found = adopt(
        two_sockets, spec, nodes(256, 256), memfd(256, 12, 0x7000), memfd(256, 11, 0x9000)
    )
    assert taken(found) == [(0, 0, 11, 0, 256), (1, 0, 12, 0, 256)]


def test_orders_that_disagree_are_not_guessed_from(two_sockets: Host) -> None:
    spec = wanted(of(256, 0), of(256, 1))
    with pytest.raises(AmbiguousError, match="orders of descriptors and of addresses differ") as e:
        adopt(two_sockets, spec, nodes(256, 256), memfd(256, 11, 0x7000), memfd(256, 12, 0x9000))
    assert [(c.pid, c.guest_node, c.size_bytes) for c in e.value.candidates] == [
        (PID, 0, 256 * MIB),
        (PID, 1, 256 * MIB),
    ]
    assert e.value.candidates[0].what == f"memfd at 0x7000, descriptor 11 of process {PID}"


def test_policies_tell_where_orders_do_not(two_sockets: Host) -> None:
    spec = wanted(of(256, 1), of(256, 0))
    declaration = qemu(
        "-m", "512M",
        "-object", "memory-backend-memfd,id=a,size=256M,policy=bind,host-nodes=0",
        "-object", "memory-backend-memfd,id=b,size=256M,policy=bind,host-nodes=1",
        "-numa", "node,nodeid=0,memdev=a",
        "-numa", "node,nodeid=1,memdev=b",
    )  # fmt: skip
    found = adopt(
        two_sockets,
        spec,
        declaration,
        memfd(256, 11, 0x7000),
        memfd(256, 12, 0x9000),
        policies={0x7000: ("bind", frozenset({1})), 0x9000: ("bind", frozenset({0}))},
    )
    assert taken(found) == [(0, 0, 12, 0, 256), (1, 0, 11, 0, 256)]


def test_equal_policies_tell_nothing(two_sockets: Host) -> None:
    spec = wanted(of(256, 0), of(256, 1))
    declaration = nodes(256, 256, more=",policy=bind,host-nodes=0")
    both = ("bind", frozenset({0}))
    with pytest.raises(AmbiguousError):
        adopt(
            two_sockets,
            spec,
            declaration,
            memfd(256, 11, 0x7000),
            memfd(256, 12, 0x9000),
            policies={0x7000: both, 0x9000: both},
        )


def test_one_mapping_too_many_is_not_guessed_from(two_sockets: Host) -> None:
    spec = wanted(of(256, 0), of(256, 1))
    pieces = [memfd(256, fd, 0x9000 - fd) for fd in (11, 12, 13)]
    with pytest.raises(AmbiguousError, match="3 mappings have the size of ram0, ram1") as caught:
        adopt(two_sockets, spec, nodes(256, 256), *pieces)
    assert len(caught.value.candidates) == 3


def test_anonymous_memory_is_left(two_sockets: Host) -> None:
    declaration = qemu(
        "-m", "768M",
        "-object", "memory-backend-ram,id=a,size=512M",
        "-object", "memory-backend-memfd,id=b,size=256M",
        "-numa", "node,nodeid=0,memdev=a",
        "-numa", "node,nodeid=1,memdev=b",
    )  # fmt: skip
    found = adopt(
        two_sockets,
        wanted(of(512, 0), of(256, 1)),
        declaration,
        anonymous(512, 0x9000),
        memfd(256, 12, 0x7000),
    )
    assert taken(found) == [(1, 0, 12, 0, 256)]
    (left,) = found.left
    assert (left.guest_node, left.size_bytes) == (0, 512 * MIB)
    assert left.why == "anonymous memory can only be observed"


def test_what_is_left_keeps_its_region(two_sockets: Host) -> None:
    declaration = qemu(
        "-m", "512M",
        "-object", "memory-backend-ram,id=a,size=256M",
        "-object", "memory-backend-memfd,id=b,size=256M",
        "-device", "pc-dimm,memdev=a,node=0",
        "-device", "pc-dimm,memdev=b,node=0",
        "-numa", "node,nodeid=0",
        "-machine", "memory-backend=c",
        "-object", "memory-backend-memfd,id=c,size=512M",
    )  # fmt: skip
    spec = wanted((of(256, 0), of(256, 1), of(512, 0)))
    found = adopt(
        two_sockets,
        spec,
        declaration,
        anonymous(256, 0x9000),
        memfd(256, 12, 0x7000),
        memfd(512, 13, 0x5000),
    )
    assert taken(found) == [(0, 1, 12, 0, 256), (0, 2, 13, 0, 512)]
    assert [one.plan.index for one in found.regions] == [0, 1]


def test_nothing_but_anonymous_memory_is_refused_with_a_way_out(two_sockets: Host) -> None:
    with pytest.raises(LayoutMismatchError, match="anonymous memory can only be obs") as caught:
        adopt(two_sockets, wanted(of(512, 0)), qemu("-m", "512M"), anonymous(512, 0x9000))
    assert "memory-backend-memfd" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": PieceKind.ANONYMOUS, "shared": False}, "a private copy of a file can only"),
        ({"kind": PieceKind.FILE, "file": PieceKind.FILE}, "a file that has a name can only"),
        ({"fds": ()}, "the VMM has no descriptor of its memfd open"),
    ],
)
def test_other_memory_is_left(two_sockets: Host, change: dict[str, object], why: str) -> None:
    anything = DeclaredBackend("ram1", BackendKind.ANY, 256 * MIB, ((1, 256 * MIB),))
    declaration = nodes(512)
    declaration = replace(declaration, backends=(*declaration.backends, anything))
    odd = replace(memfd(256, 12, 0x7000), **change)
    spec = wanted(of(512, 0), of(256, 1))
    found = adopt(two_sockets, spec, declaration, memfd(512, 11, 0x9000), odd)
    assert taken(found) == [(0, 0, 11, 0, 512)]
    assert found.left[0].why.startswith(why)


def test_a_mapping_that_madvise_has_split_is_one_range(two_sockets: Host) -> None:
    halves = (
        memfd(128, 11, 0x9000),
        replace(memfd(384, 11, 0x9000 + 128 * MIB), offset=128 * MIB),
    )
    found = adopt(two_sockets, wanted(of(512, 0)), nodes(512), *halves)
    assert taken(found) == [(0, 0, 11, 0, 512)]


def test_one_file_of_several_guest_nodes_is_cut(two_sockets: Host) -> None:
    whole = DeclaredBackend(
        "", BackendKind.MEMFD, 768 * MIB, ((0, 512 * MIB), (1, 256 * MIB)), shared=True
    )
    declaration = Declaration(vmm="cloud-hypervisor", backends=(whole,))
    found = adopt(two_sockets, wanted(of(512, 0), of(256, 1)), declaration, memfd(768, 9, 0x9000))
    assert taken(found) == [(0, 0, 9, 0, 512), (1, 0, 9, 512, 256)]


def test_confidential_memory_is_taken_and_what_is_shared_beside_it_left(two_sockets: Host) -> None:
    spec = wanted(of(512, 0, "guest_memfd"), of(256, 1, "guest_memfd"))
    found = adopt(
        two_sockets,
        spec,
        nodes(512, 256),
        memfd(512, 11, 0x9000),
        memfd(256, 13, 0x7000),
        guest_memfd(512, 12, 50),
        guest_memfd(256, 14, 51),
    )
    assert taken(found) == [(0, 0, 12, 0, 512), (1, 0, 14, 0, 256)]
    assert {one.plan.backend for one in found.regions} == {Backend.GUEST_MEMFD}
    assert found.left[0].why == "memfd of ram0 beside what the spec names"


@pytest.mark.parametrize(("inodes", "told"), [((50, 51), True), ((51, 50), False)])
def test_equal_guest_memfds_are_told_by_descriptors_and_inodes(
    two_sockets: Host, inodes: tuple[int, int], *, told: bool
) -> None:
    spec = wanted(of(256, 0, "guest_memfd"), of(256, 1, "guest_memfd"))
    pieces = (
        memfd(256, 11, 0x9000),
        memfd(256, 13, 0x7000),
        guest_memfd(256, 12, inodes[0]),
        guest_memfd(256, 14, inodes[1]),
    )
    if told:
        found = adopt(two_sockets, spec, nodes(256, 256), *pieces)
        assert taken(found) == [(0, 0, 12, 0, 256), (1, 0, 14, 0, 256)]
        return
    with pytest.raises(AmbiguousError):
        adopt(two_sockets, spec, nodes(256, 256), *pieces)


def test_a_backend_is_named_where_the_command_line_gives_it_to_nobody(two_sockets: Host) -> None:
    declaration = qemu(
        "-m", "512M", "-machine", "memory-backend=ram0",
        "-object", "memory-backend-memfd,id=ram0,size=512M",
        "-object", "memory-backend-memfd,id=extra,size=256M",
    )  # fmt: skip
    spec = wanted((of(256, 1, memdev="extra"), of(512, 0)))
    found = adopt(two_sockets, spec, declaration, memfd(512, 11, 0x9000), memfd(256, 12, 0x7000))
    assert taken(found) == [(0, 1, 11, 0, 512), (0, 0, 12, 0, 256)]


def test_hot_added_memory_is_found_by_its_name_and_size(two_sockets: Host) -> None:
    spec = wanted((of(512, 0), of(256, 1, memdev="dimm1")))
    found = adopt(two_sockets, spec, nodes(512), memfd(512, 11, 0x9000), memfd(256, 15, 0x7000))
    assert taken(found) == [(0, 0, 11, 0, 512), (0, 1, 15, 0, 256)]


def test_hot_added_memory_of_equal_sizes_is_not_guessed(two_sockets: Host) -> None:
    spec = wanted((of(512, 0), of(256, 1, memdev="dimm1")))
    with pytest.raises(AmbiguousError, match="dimm1 was added later, and could be any of 2"):
        adopt(
            two_sockets,
            spec,
            nodes(512),
            memfd(512, 11, 0x9000),
            memfd(256, 15, 0x7000),
            memfd(256, 16, 0x5000),
        )


def test_a_name_that_nothing_has(two_sockets: Host) -> None:
    spec = wanted((of(512, 0), of(256, 1, memdev="dimm1")))
    with pytest.raises(LayoutMismatchError, match="dimm1 is no memory backend") as caught:
        adopt(two_sockets, spec, nodes(512), memfd(512, 11, 0x9000))
    assert caught.value.hint == "its backends are ram0"
    assert caught.value.guest_node == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (wanted(of(256, 0)), "guest node 0 is 256MiB in the spec, 512MiB in the VMM"),
        (wanted(of(1024, 0)), "guest node 0 is 1GiB in the spec, 512MiB in the VMM"),
        (wanted(of(512, 0), of(256, 1)), "guest node 1 is 256MiB in the spec, not in the VMM"),
        (
            wanted(of(512, 0, "guest_memfd")),
            "guest node 0 is guest_memfd of 4KiB pages in the spec",
        ),
        (wanted(of(512, 0, page_size=2 * MIB)), "memfd of 2MiB pages in the spec, memfd of 4KiB"),
        (
            wanted((of(256, 0, memdev="ram0"), of(256, 0))),
            "ram0 has 256MiB in the spec, 512MiB in the VMM",
        ),
    ],
)
def test_a_vmm_that_is_not_as_the_spec_says(two_sockets: Host, spec: VmSpec, message: str) -> None:
    with pytest.raises(LayoutMismatchError, match=message):
        adopt(two_sockets, spec, nodes(512), memfd(512, 11, 0x9000))


def test_guest_nodes_that_the_spec_leaves_out(two_sockets: Host) -> None:
    with pytest.raises(LayoutMismatchError, match="guest node 1 is not in the spec, 256MiB in"):
        adopt(
            two_sockets,
            wanted(of(512, 0)),
            nodes(512, 256),
            memfd(512, 11, 0x9000),
            memfd(256, 12, 0x7000),
        )


def test_a_name_of_another_guest_node(two_sockets: Host) -> None:
    spec = wanted(of(512, 0, memdev="ram1"), of(256, 1, memdev="ram0"))
    with pytest.raises(LayoutMismatchError, match="ram0 is guest node 0's by the VMM's"):
        adopt(
            two_sockets,
            spec,
            nodes(512, 256),
            memfd(512, 11, 0x9000),
            memfd(256, 12, 0x7000),
        )


def test_backends_that_are_not_there_are_left(two_sockets: Host) -> None:
    spec = wanted(of(512, 0), of(256, 1))
    found = adopt(two_sockets, spec, nodes(512, 256), memfd(512, 11, 0x9000))
    (left,) = found.left
    assert left.guest_node == 1
    assert left.why == "ram1 isn't found in the VMM: no mapping has its size"


def test_a_guest_whose_memory_nobody_declared(two_sockets: Host) -> None:
    declaration = Declaration(vmm="firecracker", one_node=True)
    spec = wanted((of(512, 0), of(256, 1)))
    pieces = (memfd(512, 11, 0x9000), memfd(256, 12, 0x7000), anonymous(64, 0x1000))
    found = adopt(two_sockets, spec, declaration, *pieces)
    assert taken(found) == [(0, 0, 11, 0, 512), (0, 1, 12, 0, 256)]
    with pytest.raises(LayoutMismatchError, match="guest node 0 is 768MiB in the spec, 512MiB in"):
        adopt(two_sockets, spec, declaration, memfd(512, 11, 0x9000))


def test_it_ends_where_nothing_was_found(two_sockets: Host) -> None:
    with pytest.raises(LayoutMismatchError, match="isn't found in the VMM"):
        adopt(two_sockets, wanted(of(512, 0)), nodes(512))
