"""When the order of mappings is not to be believed."""

from __future__ import annotations

import pytest

from gmemd.audit.model import RegionAudit
from gmemd.drift.rivals import as_unknown, misled
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.unit.drift.cases import MIB, make_host

HOST = make_host()


def plan(guest_node: int, *host_nodes: int) -> RegionPlan:
    return RegionPlan(
        vm="vm",
        guest_node=guest_node,
        index=0,
        size_bytes=256 * MIB,
        backend=Backend.ANONYMOUS,
        page_size=4096,
        policy=PolicyMode.BIND if host_nodes else PolicyMode.DEFAULT,
        host_nodes=frozenset(host_nodes),
        strategy=Strategy.UNMANAGED,
        reason="",
        prefault=False,
    )


def audit(guest_node: int, by_node: dict[int, int]) -> RegionAudit:
    return RegionAudit(guest_node, 0, 256 * MIB, 4096, sum(by_node.values()), by_node)


def judge(plans: list[RegionPlan], *by_node: dict[int, int]) -> bool:
    audits = {(number, 0): audit(number, held) for number, held in enumerate(by_node)}
    return misled(plans, audits, HOST, 0.01)


@pytest.mark.parametrize(
    ("by_node", "expected"),
    [
        (({0: 256}, {1: 256}), False),
        (({1: 256}, {0: 256}), True),
        (({1: 256}, {0: 200, 1: 1}), True),
        (({1: 256}, {1: 256}), False),
        (({2: 256}, {2: 256}), False),
        (({1: 128, 0: 128}, {0: 256}), False),
        (({}, {}), False),
    ],
)
def test_only_what_another_order_explains_is_doubted(
    by_node: tuple[dict[int, int], ...], *, expected: bool
) -> None:
    held = [{node: size * MIB for node, size in each.items()} for each in by_node]
    assert judge([plan(0, 0), plan(1, 1)], *held) is expected


def test_three_in_a_ring() -> None:
    ring = ({1: MIB}, {2: MIB}, {0: MIB})
    assert judge([plan(0, 0), plan(1, 1), plan(2, 2)], *ring)


def test_many_are_only_tried_backwards() -> None:
    plans = [plan(number, number % 4) for number in range(8)]
    backwards = [{(7 - number) % 4: MIB} for number in range(8)]
    assert judge(plans, *backwards)


def test_what_is_doubted_counts_as_unknown() -> None:
    doubted = as_unknown(audit(0, {0: MIB, 1: MIB}), 2)
    assert (doubted.by_node, doubted.unknown_bytes, doubted.resident_bytes) == (
        {},
        2 * MIB,
        2 * MIB,
    )
    assert "--full" in doubted.unknown_reason
