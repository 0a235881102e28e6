"""Which region of the spec a registered piece is, and what is no part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.plan.errors import LayoutMismatchError
from gmemd.plan.model import Strategy
from gmemd.plan.registering import MOST_REGIONS, Offered, Taken, match_offered, missing
from gmemd.spec.model import Backend
from tests.unit.plan.specs import GIB, MIB, region, vm

if TYPE_CHECKING:
    from gmemd.host.model import Host
    from gmemd.plan.registering import Registration
    from gmemd.spec.model import VmSpec


def spec(*nodes: object) -> VmSpec:
    return vm(*nodes, source="register")


def lazy(size: int, nodes: set[int], **more: object) -> object:
    return region(size, nodes, prefault=False, **more)


def offered(
    node: int,
    size: int,
    *,
    offset: int = 0,
    file: int = 0,
    file_bytes: int = 1 << 40,
    backend: str = "guest_memfd",
    page_size: int = 4096,
) -> Offered:
    return Offered(
        guest_node=node,
        size_bytes=size,
        offset=offset,
        backend=Backend(backend),
        page_size=page_size,
        inode=(1, file),
        file_bytes=file_bytes,
    )


def each_of_its_own_file(*pieces: tuple[int, int]) -> list[Offered]:
    return [offered(node, size, file=n) for n, (node, size) in enumerate(pieces)]


def as_taken(found: tuple[Registration, ...]) -> list[Taken]:
    return [
        Taken(
            guest_node=one.plan.guest_node,
            index=one.plan.index,
            spec_index=one.spec_index,
            size_bytes=one.plan.size_bytes,
            offset=one.offered.offset,
            inode=one.offered.inode,
        )
        for one in found
    ]


def chosen(found: tuple[Registration, ...]) -> list[tuple[int, int, int]]:
    """Guest node, region of the spec, and number of each piece."""
    return [(one.plan.guest_node, one.spec_index, one.plan.index) for one in found]


def refused(host: Host, wanted: VmSpec, *pieces: Offered, taken: tuple[Taken, ...] = ()) -> str:
    with pytest.raises(LayoutMismatchError) as caught:
        match_offered(wanted, taken, pieces, host)
    return caught.value.in_one_line


def test_a_piece_is_planned_as_its_region_at_its_own_size(two_sockets: Host) -> None:
    wanted = spec(lazy(4 * GIB, {1}))
    (found,) = match_offered(wanted, [], [offered(0, 3 * GIB)], two_sockets)
    plan = found.plan
    assert (plan.size_bytes, plan.host_nodes, plan.policy) == (3 * GIB, {1}, "bind")
    assert (plan.strategy, plan.prefault, plan.demand) == (Strategy.INODE_POLICY, False, {})
    assert found.region is wanted.guest_nodes[0].regions[0]


def test_same_sizes_go_first_whatever_the_order(two_sockets: Host) -> None:
    wanted = spec((lazy(8 * GIB, {0}), lazy(4 * GIB, {1})), lazy(GIB, {1}))
    pieces = each_of_its_own_file((0, 4 * GIB), (1, GIB), (0, 8 * GIB))
    assert chosen(match_offered(wanted, [], pieces, two_sockets)) == [
        (0, 1, 0),
        (1, 0, 0),
        (0, 0, 1),
    ]


def test_a_guest_node_around_the_x86_hole_is_two_pieces_of_one_region(two_sockets: Host) -> None:
    wanted = spec(lazy(8 * GIB, {0}))
    pieces = [offered(0, 3 * GIB), offered(0, 5 * GIB, offset=3 * GIB)]
    assert chosen(match_offered(wanted, [], pieces, two_sockets)) == [(0, 0, 0), (0, 0, 1)]


def test_hotplugged_pieces_fill_what_is_missing_under_new_numbers(two_sockets: Host) -> None:
    wanted = spec((lazy(GIB, {0}), lazy(2 * GIB, {1})))
    first = match_offered(wanted, [], each_of_its_own_file((0, GIB), (0, GIB)), two_sockets)
    assert chosen(first) == [(0, 0, 0), (0, 1, 1)]
    taken = as_taken(first)
    assert missing(wanted, taken) == {0: GIB}
    later = match_offered(wanted, taken, [offered(0, GIB, file=7)], two_sockets)
    assert chosen(later) == [(0, 1, 2)]
    assert missing(wanted, [*taken, *as_taken(later)]) == {}


def test_a_removed_piece_makes_room_for_another(two_sockets: Host) -> None:
    wanted = spec(lazy(2 * GIB, {0}))
    pieces = each_of_its_own_file((0, GIB), (0, GIB))
    second = as_taken(match_offered(wanted, [], pieces, two_sockets))[1]
    again = match_offered(wanted, [second], [offered(0, GIB, file=5)], two_sockets)
    assert chosen(again) == [(0, 0, 2)]


def test_kinds_of_memory_tell_regions_apart(two_sockets: Host) -> None:
    wanted = spec((lazy(GIB, {0}), lazy(GIB, {1}, backend="memfd", page_size=2 * MIB)))
    huge = offered(0, GIB, backend="memfd", page_size=2 * MIB)
    (found,) = match_offered(wanted, [], [huge], two_sockets)
    assert found.spec_index == 1
    assert found.plan.strategy is Strategy.UNMANAGED


def test_nothing_registered_is_all_missing() -> None:
    assert missing(spec(region(GIB, {0}), region(2 * GIB, {1})), []) == {0: GIB, 1: 2 * GIB}


def test_an_unknown_guest_node(two_sockets: Host) -> None:
    message = refused(two_sockets, spec(lazy(GIB, {0})), offered(3, GIB))
    assert message == "vm has no guest node 3 (hint: the spec has 0)"


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (offered(0, 2 * GIB), "guest node 0: a piece of 2GiB is too much, of the spec's 1GiB 1GiB"),
        (
            offered(0, GIB, backend="memfd"),
            "guest node 0 is guest_memfd of 4KiB pages in the spec, memfd of 4KiB pages in the VMM",
        ),
        (offered(0, 4097), "guest node 0: a piece's size is 4097, it must be a multiple"),
        (offered(0, 0), "guest node 0: a piece's size is 0, it must"),
        (offered(0, -4096), "guest node 0: a piece's size is -4096, it must"),
        (offered(0, 4096, offset=512), "guest node 0: a piece's offset is 512, it must"),
        (offered(0, 4096, offset=-4096), "guest node 0: a piece's offset is -4096, it must"),
        (
            offered(0, MIB, offset=MIB, file_bytes=MIB),
            "guest node 0: a piece of 1MiB at 1MiB ends past its file, which has 1MiB",
        ),
    ],
)
def test_what_is_no_part_of_the_spec(two_sockets: Host, piece: Offered, message: str) -> None:
    assert refused(two_sockets, spec(lazy(GIB, {0})), piece).startswith(message)


def test_a_page_size_is_told_apart(two_sockets: Host) -> None:
    wanted = spec(lazy(GIB, {0}, backend="memfd", page_size=2 * MIB))
    assert "memfd of 2MiB pages in the spec, memfd of 4KiB pages in the VMM" in refused(
        two_sockets, wanted, offered(0, GIB, backend="memfd")
    )


def test_a_piece_across_two_regions_is_to_be_cut(two_sockets: Host) -> None:
    wanted = spec((lazy(GIB, {0}), lazy(GIB, {1})))
    assert "cut it where the spec's regions end" in refused(
        two_sockets, wanted, offered(0, 2 * GIB)
    )


def test_what_is_complete_takes_no_more(two_sockets: Host) -> None:
    wanted = spec(lazy(GIB, {0}))
    taken = tuple(as_taken(match_offered(wanted, [], [offered(0, GIB)], two_sockets)))
    message = refused(two_sockets, wanted, offered(0, GIB, file=1), taken=taken)
    assert "nothing is missing" in message


def test_bytes_of_a_file_are_registered_once(two_sockets: Host) -> None:
    wanted = spec(lazy(GIB, {0}), lazy(GIB, {1}))
    twice = (offered(0, GIB), offered(1, GIB))
    assert "the same bytes of one file" in refused(two_sockets, wanted, *twice)
    overlapping = (offered(0, GIB), offered(1, GIB, offset=GIB // 2))
    assert "overlap at 512MiB" in refused(two_sockets, wanted, *overlapping)
    taken = tuple(as_taken(match_offered(wanted, [], [offered(0, GIB)], two_sockets)))
    assert "needn't be offered again" in refused(two_sockets, wanted, offered(1, GIB), taken=taken)


def test_there_is_a_limit(two_sockets: Host) -> None:
    wanted = spec(lazy(GIB, {0}))
    pieces = [offered(0, 4096, offset=n * 4096) for n in range(MOST_REGIONS)]
    found = match_offered(wanted, [], pieces, two_sockets)
    assert len(found) == MOST_REGIONS
    one_more = offered(0, 4096, file=9)
    message = refused(two_sockets, wanted, one_more, taken=tuple(as_taken(found)))
    assert message.startswith("vm would have 1025 regions, at most 1024")


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    pieces=st.lists(st.integers(1, 8), max_size=12),
    batch=st.integers(1, 4),
)
def test_no_region_gets_more_than_it_has(
    two_sockets: Host, sizes: list[int], pieces: list[int], batch: int
) -> None:
    wanted = spec(tuple(lazy(size * MIB, {0}) for size in sizes))
    every = each_of_its_own_file(*((0, size * MIB) for size in pieces))
    taken: list[Taken] = []
    refused_bytes = 0
    for start in range(0, len(every), batch):
        mine = every[start : start + batch]
        try:
            taken += as_taken(match_offered(wanted, taken, mine, two_sockets))
        except LayoutMismatchError:
            refused_bytes += sum(piece.size_bytes for piece in mine)
    for index, size in enumerate(sizes):
        held = sum(piece.size_bytes for piece in taken if piece.spec_index == index)
        assert held <= size * MIB
    total = sum(piece.size_bytes for piece in taken)
    assert total + missing(wanted, taken).get(0, 0) == sum(sizes) * MIB
    assert total + refused_bytes == sum(pieces) * MIB
    assert len({piece.index for piece in taken}) == len(taken)


@given(pieces=st.lists(st.integers(1, 8), min_size=1, max_size=12), batch=st.integers(1, 4))
def test_one_region_takes_its_bytes_in_any_pieces(
    two_sockets: Host, pieces: list[int], batch: int
) -> None:
    wanted = spec(lazy(sum(pieces) * MIB, {0}))
    every = each_of_its_own_file(*((0, size * MIB) for size in pieces))
    taken: list[Taken] = []
    for start in range(0, len(every), batch):
        mine = every[start : start + batch]
        taken += as_taken(match_offered(wanted, taken, mine, two_sockets))
    assert missing(wanted, taken) == {}
