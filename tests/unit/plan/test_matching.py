"""Which mapping is which declared backend: told, or not told, and never guessed."""

from __future__ import annotations

import pytest

from gmemd.host.vms.model import Piece, PieceKind
from gmemd.plan.matching import Match, Matching, match_backends
from gmemd.spec.declared import BackendKind, DeclaredBackend
from gmemd.spec.model import PolicyMode

MIB = 1 << 20
PAGE = 4096
HUGE = 2 * MIB


def backend(
    name: str,
    size_mib: int = 256,
    *,
    kind: BackendKind = BackendKind.RAM,
    node: int = 0,
    host_node: int | None = None,
    shared: bool | None = None,
    page_size: int | None = None,
    path: str = "",
) -> DeclaredBackend:
    return DeclaredBackend(
        name,
        kind,
        size_mib * MIB,
        ((node, size_mib * MIB),),
        policy=PolicyMode.DEFAULT if host_node is None else PolicyMode.BIND,
        host_nodes=frozenset() if host_node is None else frozenset({host_node}),
        shared=shared,
        page_size=page_size,
        path=path,
    )


def anonymous(address: int, size_mib: int = 256) -> Piece:
    return Piece(PieceKind.ANONYMOUS, size_mib * MIB, PAGE, address=address)


def memfd(
    address: int,
    fd: int,
    size_mib: int = 256,
    *,
    shared: bool = True,
    page_size: int = PAGE,
    path: str = "/memfd:memory-backend-memfd (deleted)",
    file: PieceKind = PieceKind.MEMFD,
) -> Piece:
    return Piece(
        file if shared else PieceKind.ANONYMOUS,
        size_mib * MIB,
        page_size,
        address=address,
        shared=shared,
        file=file,
        inode=(0, 1, 1000 + fd),
        path=path,
        fds=(fd,),
    )


def told(matching: Matching) -> dict[str, tuple[int | None, str]]:
    return {match.backend.id: (match.pieces[0].address, match.how) for match in matching.matches}


def test_sizes_that_differ_tell() -> None:
    found = match_backends(
        [backend("m0", 256), backend("m1", 512, node=1)],
        [anonymous(0x1000, 512), anonymous(0x900000000, 256)],
    )
    assert told(found) == {"m0": (0x900000000, "size"), "m1": (0x1000, "size")}
    assert not found.missing
    assert not found.unmatched


def test_equal_sizes_go_by_address_from_high_to_low() -> None:
    found = match_backends(
        [backend("m0"), backend("m1", node=1), backend("m2", node=2)],
        [anonymous(0x1000), anonymous(0x20000000), anonymous(0x40000000)],
    )
    assert [match.pieces[0].address for match in found.matches] == [0x40000000, 0x20000000, 0x1000]
    assert {match.how for match in found.matches} == {"order of addresses"}
    assert {match.rivals for match in found.matches} == {1}


def test_equal_memfds_go_by_descriptor_whatever_their_addresses() -> None:
    found = match_backends(
        [backend("m0", kind=BackendKind.MEMFD), backend("m1", kind=BackendKind.MEMFD, node=1)],
        [memfd(0x40000000, 12), memfd(0x1000, 11)],
    )
    assert told(found) == {
        "m0": (0x1000, "order of descriptors"),
        "m1": (0x40000000, "order of descriptors"),
    }


def test_policies_outrank_order() -> None:
    backends = [backend("m0", host_node=0), backend("m1", node=1, host_node=1)]
    pieces = [anonymous(0x1000), anonymous(0x40000000)]
    held = {0x1000: ("bind", frozenset({0})), 0x40000000: ("bind", frozenset({1}))}
    assert told(match_backends(backends, pieces, held)) == {
        "m0": (0x1000, "policy"),
        "m1": (0x40000000, "policy"),
    }


def test_policies_that_are_not_the_declared_ones_tell_nothing() -> None:
    backends = [backend("m0", host_node=0), backend("m1", node=1, host_node=1)]
    pieces = [anonymous(0x1000), anonymous(0x40000000)]
    held = dict.fromkeys((0x1000, 0x40000000), ("default", frozenset[int]()))
    assert {how for _, how in told(match_backends(backends, pieces, held)).values()} == {
        "order of addresses"
    }


def test_preferring_one_node_has_two_spellings() -> None:
    many = DeclaredBackend(
        "m0",
        BackendKind.RAM,
        MIB * 256,
        ((0, 256 * MIB),),
        policy=PolicyMode.PREFERRED_MANY,
        host_nodes=frozenset({1}),
    )
    held = {0x1000: ("preferred", frozenset({1})), 0x40000000: ("default", frozenset[int]())}
    found = match_backends([many, backend("m1")], [anonymous(0x1000), anonymous(0x40000000)], held)
    assert told(found) == {"m0": (0x1000, "policy"), "m1": (0x40000000, "policy")}


def test_one_mapping_more_than_backends_is_never_guessed() -> None:
    pieces = [anonymous(0x1000), anonymous(0x20000000), anonymous(0x40000000)]
    found = match_backends([backend("m0"), backend("m1", node=1)], pieces)
    assert not found.matches
    assert [missing.id for missing, _ in found.missing] == ["m0", "m1"]
    assert [piece for piece, _ in found.unmatched] == pieces
    assert all("3 mappings have the size of m0, m1" in why for _, why in found.unmatched)


def test_policies_tell_the_declared_ones_from_a_hot_added_one() -> None:
    pieces = [anonymous(0x1000), anonymous(0x20000000), anonymous(0x40000000)]
    held = {
        0x1000: ("default", frozenset[int]()),
        0x20000000: ("bind", frozenset({1})),
        0x40000000: ("bind", frozenset({0})),
    }
    found = match_backends(
        [backend("m0", host_node=0), backend("m1", node=1, host_node=1)], pieces, held
    )
    assert told(found) == {"m0": (0x40000000, "policy"), "m1": (0x20000000, "policy")}
    assert [piece.address for piece, _ in found.unmatched] == [0x1000]


def test_a_hot_added_size_stays_unmatched() -> None:
    found = match_backends([backend("m0")], [anonymous(0x1000), anonymous(0x40000000, 128)])
    assert told(found) == {"m0": (0x1000, "size")}
    assert [(piece.size_bytes, why) for piece, why in found.unmatched] == [(128 * MIB, "")]


def test_small_pieces_are_the_vmms_own() -> None:
    found = match_backends([backend("m0")], [anonymous(0x1000), anonymous(0x40000000, 16)])
    assert not found.unmatched


def test_a_backend_without_memory_is_missed() -> None:
    found = match_backends([backend("m0"), backend("m1", 512)], [anonymous(0x1000)])
    assert [(missing.id, why) for missing, why in found.missing] == [
        ("m1", "no mapping has its size")
    ]


def test_memory_split_by_madvise_is_put_together() -> None:
    pieces = [
        anonymous(0x10000000, 8),  # a thread's stack, right below
        anonymous(0x10000000 + 8 * MIB, 100),
        anonymous(0x10000000 + 108 * MIB, 156),
    ]
    found = match_backends([backend("m0")], pieces)
    (match,) = found.matches
    assert [piece.size_bytes // MIB for piece in match.pieces] == [100, 156]


def test_two_ways_to_put_it_together_are_none() -> None:
    pieces = [anonymous(0x10000000 + n * 128 * MIB, 128) for n in range(3)]
    found = match_backends([backend("m0")], pieces)
    assert not found.matches
    assert len(found.unmatched) == 3


@pytest.mark.parametrize(
    ("path", "mapped"),
    [
        ("/dev/hugepages", "/dev/hugepages/qemu_back_mem.m0.AbC123 (deleted)"),
        ("/dev/hugepages/", "/dev/hugepages/qemu_back_mem._objects_m0.AbC123 (deleted)"),
        ("/mnt/guest.img", "/mnt/guest.img"),
        ("/proc/self/fd/7", "/memfd:whatever (deleted)"),
    ],
)
def test_files_are_told_by_their_names(path: str, mapped: str) -> None:
    wanted = backend("m0", kind=BackendKind.FILE, path=path)
    other = backend("m1", kind=BackendKind.FILE, path="/elsewhere", node=1)
    mine = memfd(0x1000, 7, path=mapped, file=PieceKind.FILE, page_size=HUGE)
    found = match_backends([other, wanted], [mine])
    assert told(found) == {"m0": (0x1000, "path")}


def test_a_private_memfd_is_its_backends_and_no_plain_ram() -> None:
    found = match_backends(
        [backend("ram"), backend("fd", kind=BackendKind.MEMFD, shared=False, node=1)],
        [memfd(0x1000, 7, shared=False), anonymous(0x40000000)],
    )
    assert told(found) == {"ram": (0x40000000, "size"), "fd": (0x1000, "size")}


def test_shared_ram_is_a_file_of_the_kernels() -> None:
    found = match_backends(
        [backend("m0", shared=True)],
        [anonymous(0x1000), memfd(0x40000000, 3, path="/dev/zero (deleted)")],
    )
    assert told(found) == {"m0": (0x40000000, "size")}


@pytest.mark.parametrize(("asked", "page_size"), [(None, PAGE), (0, HUGE), (HUGE, HUGE)])
def test_page_sizes_tell_memfds_apart(asked: int | None, page_size: int) -> None:
    wanted = backend("m0", kind=BackendKind.MEMFD, page_size=asked)
    found = match_backends(
        [wanted], [memfd(0x1000, 3, page_size=PAGE), memfd(0x40000000, 4, page_size=HUGE)]
    )
    assert told(found)["m0"][0] == (0x1000 if page_size == PAGE else 0x40000000)


def test_a_file_mapped_twice_counts_once() -> None:
    found = match_backends(
        [backend("m0", kind=BackendKind.MEMFD)], [memfd(0x1000, 3), memfd(0x40000000, 3)]
    )
    assert told(found) == {"m0": (0x1000, "size")}
    assert not found.unmatched


def guest_memfd(fd: int, size_mib: int = 256) -> Piece:
    return Piece(PieceKind.GUEST_MEMFD, size_mib * MIB, PAGE, shared=True, fds=(fd,))


def test_guest_memfds_stand_beside_the_backends_memory() -> None:
    found = match_backends(
        [backend("m0"), backend("m1", node=1)],
        [anonymous(0x1000), anonymous(0x40000000), guest_memfd(9), guest_memfd(8)],
    )
    pairs = [
        (match.backend.id, match.pieces[0].kind, match.pieces[0].fds) for match in found.matches
    ]
    assert pairs == [
        ("m0", PieceKind.ANONYMOUS, ()),
        ("m0", PieceKind.GUEST_MEMFD, (8,)),
        ("m1", PieceKind.ANONYMOUS, ()),
        ("m1", PieceKind.GUEST_MEMFD, (9,)),
    ]


def test_a_guest_memfd_of_another_size_is_unmatched() -> None:
    found = match_backends([backend("m0")], [anonymous(0x1000), guest_memfd(9, 64)])
    assert [piece.kind for piece, _ in found.unmatched] == [PieceKind.GUEST_MEMFD]


def test_every_piece_is_matched_once_at_most() -> None:
    pieces = [anonymous(0x1000 + n * 0x20000000) for n in range(4)]
    found = match_backends([backend(f"m{n}", node=n) for n in range(4)], pieces)
    matches: list[Match] = list(found.matches)
    assert len({match.pieces[0].address for match in matches}) == 4
