"""Who allocates next: as many threads as there are CPUs, those of the VM with the least left."""

from __future__ import annotations

import select
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from gmemd.memory.turns import Seat, Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPUS = frozenset({0, 1})
ELSEWHERE = frozenset({2, 3})


@pytest.fixture
def sit() -> Iterator[Callable[..., Seat]]:
    """Seats that share one set of turns."""
    turns = Turns()
    with ExitStack() as seats:

        def make(left: int, *, cpus: frozenset[int] = CPUS, n_threads: int = 2) -> Seat:
            return seats.enter_context(turns.seat(cpus, n_threads, lambda: left))

        yield make


def is_told(seat: Seat) -> bool:
    poll = select.poll()
    poll.register(seat.fd, select.POLLIN)
    return bool(poll.poll(0))


def test_alone_it_has_a_chunk_for_each_thread_and_more_that_lie_ready(
    sit: Callable[..., Seat],
) -> None:
    alone = sit(100)
    assert [alone.take() for _ in range(4)] == [True] * 4
    assert alone.working == 2


def test_no_more_threads_allocate_than_there_are_cpus(sit: Callable[..., Seat]) -> None:
    first, second = sit(100), sit(10)
    assert first.take()
    assert second.take()
    assert not second.take(), "both CPUs are taken"
    first.give_back()
    assert second.take()


def test_what_lies_ready_takes_no_cpu_from_another(sit: Callable[..., Seat]) -> None:
    first, second = sit(100, n_threads=1), sit(100, n_threads=1)
    assert first.take()
    assert first.take()
    assert second.take()


def test_the_turn_is_whose_the_least_is_left(sit: Callable[..., Seat]) -> None:
    large, small, larger = sit(100), sit(10), sit(1000)
    assert large.take()
    assert large.take()
    assert not small.take()
    assert not larger.take()
    large.give_back()
    assert is_told(small)
    assert is_told(larger)
    assert not large.take(), "a smaller one waits"
    assert not larger.take(), "a smaller one waits"
    assert small.take()
    large.give_back()
    small.rest()
    assert large.take(), "nobody smaller waits any more"


def test_nothing_is_laid_ready_while_another_waits(sit: Callable[..., Seat]) -> None:
    small, large = sit(10), sit(100)
    assert small.take()
    assert small.take()
    assert not large.take()
    assert not small.take()


def test_of_two_alike_the_first_goes_first(sit: Callable[..., Seat]) -> None:
    holder, first, second = sit(1), sit(10), sit(10)
    assert holder.take()
    assert holder.take()
    assert not second.take()
    assert not first.take()
    holder.give_back()
    assert not second.take()
    assert first.take()


def test_other_cpus_are_other_turns(sit: Callable[..., Seat]) -> None:
    here, there, both = sit(100), sit(100, cpus=ELSEWHERE), sit(100, cpus=CPUS | ELSEWHERE)
    assert here.take()
    assert here.take()
    assert there.take()
    assert there.take()
    assert not both.take()
    there.give_back()
    assert is_told(both)
    both.clear()
    assert not is_told(both)
    assert both.take()


def test_whoever_leaves_gives_all_back() -> None:
    turns = Turns()
    with turns.seat(CPUS, 1, lambda: 5) as stays:
        with turns.seat(CPUS, 2, lambda: 1) as leaves:
            assert leaves.take()
            assert leaves.take()
            assert not stays.take()
        assert is_told(stays)
        assert stays.take()


def test_a_wait_ends_with_a_turn_or_when_it_is_cancelled(sit: Callable[..., Seat]) -> None:
    cancel = threading.Event()
    holder, waits = sit(100, n_threads=1, cpus=frozenset({0})), sit(10, cpus=frozenset({0}))
    assert holder.take()
    timer = threading.Timer(0.05, holder.give_back)
    timer.start()
    assert waits.wait(cancel)
    timer.join()
    cancel.set()
    assert not holder.wait(cancel)
