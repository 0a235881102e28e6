"""A scan is exact whatever made the pages, and makes none itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel.audit.conftest import MIB, PAGE, Memory

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 512 * MIB
PAGES = SIZE // PAGE

# Runs of pages (first, count) that make up 1 %, 50 % and 100 % of the region, scattered.
PATTERNS = {
    "1 %": [(first, 1) for first in range(37, PAGES, 100)],
    "50 %": [(first, 8) for first in range(0, PAGES, 16)],
    "100 %": [(0, PAGES)],
}


def refill(memory: Memory, first: int, count: int) -> None:
    """Touched, punched and made again by another hand."""
    memory.touch(first, count)
    memory.punch(first, count)
    memory.allocate(first, (count + 1) // 2)
    memory.guest_write(first, count)


MAKERS: dict[str, Callable[[Memory, int, int], None]] = {
    "touched": Memory.touch,
    "fallocated": Memory.allocate,
    "guest-faulted": Memory.guest_write,
    "punched and refilled": refill,
}


@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("share", PATTERNS)
def test_exact_and_nothing_allocated(
    make_memory: Callable[[int], Memory], share: str, how: str
) -> None:
    memory = make_memory(SIZE)
    for first, count in PATTERNS[share]:
        MAKERS[how](memory, first, count)
    expected = sum(count for _, count in PATTERNS[share])
    before = memory.cached()
    found = memory.scan()
    assert memory.cached() == before == expected
    assert found.resident_bytes == expected * PAGE
    assert sum(found.by_node.values()) == expected * PAGE
    assert found.pages_seen == expected
    assert (found.unknown_bytes, found.errors, found.exact) == (0, {}, True)


def test_what_was_punched_is_not_resident(make_memory: Callable[[int], Memory]) -> None:
    memory = make_memory(16 * MIB)
    memory.touch(0, 4096)
    memory.punch(0, 4096)
    memory.guest_write(4000, 3)
    assert memory.scan().resident_bytes == 3 * PAGE
    assert memory.cached() == 3


SMALL = 1024
runs = st.tuples(
    st.sampled_from(["touch", "allocate", "guest_write", "punch"]),
    st.integers(0, SMALL - 1),
    st.integers(1, 300),
)


@pytest.fixture
def small(make_memory: Callable[[int], Memory]) -> Memory:
    return make_memory(SMALL * PAGE)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(runs, max_size=40), window_pages=st.sampled_from([1, 7, 512, 513, 8192]))
def test_any_pattern_is_seen_page_by_page(
    small: Memory, steps: list[tuple[str, int, int]], window_pages: int
) -> None:
    small.punch(0, SMALL)
    expected: set[int] = set()
    for kind, first, longest in steps:
        count = min(longest, SMALL - first)
        getattr(small, kind)(first, count)
        if kind == "punch":
            expected.difference_update(range(first, first + count))
        else:
            expected.update(range(first, first + count))
    found = small.scan(window_bytes=window_pages * PAGE)
    assert found.resident_bytes == sum(found.by_node.values()) == len(expected) * PAGE
    assert found.errors == {}
    assert {page for page in range(SMALL) if small.cached(page, 1)} == expected
    # What was seen once, with its page tables gone again, is seen the same again.
    assert small.scan() == found
