"""A node of movable memory only (the lab's variant): nothing for guest_memfd, fine for memfd."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gmemd.memory.errors import ProvisionError
from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend
from tests.numa.provisioning import bytes_by_node, difference, planned, provisioned, region, spec

pytestmark = pytest.mark.lab(variant="movable")

MOVABLE = 4


def test_guest_memfd_is_refused_and_not_put_elsewhere_in_silence() -> None:
    plan = planned(spec(region(64, {MOVABLE})))
    assert not plan.admitted
    before = bytes_by_node()
    with pytest.raises(ProvisionError) as caught, provisioned(plan):
        pass
    assert (caught.value.reason, caught.value.host_node) == ("policy", MOVABLE)
    assert "movable memory only" in caught.value.message
    assert "online_kernel" in str(caught.value.hint)
    assert not any(difference(bytes_by_node(), before).values())


def test_by_proxy_too_it_gets_nothing() -> None:
    plan = planned(spec(region(64, {MOVABLE})))
    by_proxy = replace(
        plan,
        regions=tuple(replace(one, strategy=Strategy.PROXY_ALLOCATION) for one in plan.regions),
    )
    with pytest.raises(ProvisionError) as caught, provisioned(by_proxy):
        pass
    assert (caught.value.reason, caught.value.host_node) == ("node-full", MOVABLE)


def test_a_memfd_is_placed_there() -> None:
    plan = planned(spec(region(64, {MOVABLE}, backend=Backend.MEMFD)))
    assert plan.admitted, plan.refusals
    before = bytes_by_node()
    with provisioned(plan):
        found = difference(bytes_by_node(), before)
    assert found.get(MOVABLE) == pytest.approx(64, abs=1)
