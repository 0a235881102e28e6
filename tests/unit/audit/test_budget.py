"""A share of a CPU: spent, paid back by time, made up for, and forgiven."""

from __future__ import annotations

import pytest

from gmemd.audit.budget import CREDIT_SECONDS, CpuBudget


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_spent_is_waited_for() -> None:
    clock = Clock()
    budget = CpuBudget(0.01, clock=clock)
    assert budget.wait_seconds() == 0
    budget.spend(0.1)
    assert budget.wait_seconds() == pytest.approx(10)
    clock.now += 4
    budget.spend(0.02)
    assert budget.wait_seconds() == pytest.approx(8)
    assert budget.spent_seconds == pytest.approx(0.12)


def test_what_was_not_used_is_made_up_for_a_while() -> None:
    clock = Clock()
    budget = CpuBudget(0.01, clock=clock)
    clock.now += 1000
    budget.spend(0.01 * CREDIT_SECONDS)
    assert budget.wait_seconds() == pytest.approx(0)
    budget.spend(0.01)
    assert budget.wait_seconds() == pytest.approx(1)


def test_a_part_is_spent_of_the_whole_too_and_waits_for_itself_alone() -> None:
    clock = Clock()
    whole = CpuBudget(0.01, clock=clock)
    part = CpuBudget(0.005, part_of=whole, clock=clock)
    part.spend(0.01)
    assert (part.wait_seconds(), whole.wait_seconds()) == (pytest.approx(2), pytest.approx(1))
    whole.spend(0.1)
    assert (part.wait_seconds(), whole.wait_seconds()) == (pytest.approx(2), pytest.approx(11))


def test_a_part_is_there_whatever_is_spent_of_the_whole_and_may_have_what_is_left() -> None:
    clock = Clock()
    whole = CpuBudget(0.01, clock=clock)
    part = CpuBudget(0.005, part_of=whole, or_spare=True, clock=clock)
    part.spend(0.01)
    assert part.wait_seconds() == pytest.approx(1)  # as long as the whole takes
    whole.spend(1)
    assert part.wait_seconds() == pytest.approx(2)  # and never longer than the part does


def test_another_share_is_that_of_what_is_to_be_paid_too() -> None:
    clock = Clock()
    budget = CpuBudget(0.01, clock=clock)
    budget.spend(1)
    budget.resize(1.0)
    assert budget.wait_seconds() == pytest.approx(1)
