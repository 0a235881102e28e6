"""A node that has only movable memory: ``python -m tests.lab run --variant movable``."""

from collections.abc import Callable

import pytest

from gmemd.kernel.bind import BindOutcome, bind_range
from gmemd.kernel.mempolicy import MemPolicy

pytestmark = pytest.mark.lab(variant="movable")

SIZE = 4 << 20
PAGES = SIZE // 4096
MOVABLE = frozenset({4})

Place = Callable[..., dict[int, int]]


@pytest.mark.parametrize("mode", ["bind", "preferred", "interleave"])
def test_guest_memfd_goes_elsewhere_and_it_is_told(
    guest_memfd: int, place: Place, mode: str
) -> None:
    result = bind_range(guest_memfd, 0, SIZE, MemPolicy(mode, MOVABLE), movable_only=MOVABLE)
    assert result.outcome is BindOutcome.MOVABLE_ONLY
    assert result.achieved == MemPolicy(mode, MOVABLE)
    assert result.effective_nodes == frozenset()
    assert result.dropped == {4: BindOutcome.MOVABLE_ONLY}
    assert "no requested node is left" in result.detail
    assert "unmovable" in result.remedy
    assert 4 not in place(guest_memfd, 0, SIZE)


def test_the_other_nodes_are_what_is_effective(guest_memfd: int, place: Place) -> None:
    policy = MemPolicy("bind", frozenset({2, 4}))
    result = bind_range(guest_memfd, 0, SIZE, policy, movable_only=MOVABLE)
    assert result.outcome is BindOutcome.MOVABLE_ONLY
    assert result.effective_nodes == {2}
    assert place(guest_memfd, 0, SIZE) == {2: PAGES}


def test_memfd_pages_are_movable_and_go_there(memfd: int, place: Place) -> None:
    result = bind_range(memfd, 0, SIZE, MemPolicy("bind", MOVABLE), movable_only=MOVABLE)
    assert result.ok
    assert result.effective_nodes == MOVABLE
    assert place(memfd, 0, SIZE, touch=True) == {4: PAGES}
