"""For every mode and every hand that makes pages: they are where the policy says.

By gmemd's audit, and by a count of the test's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend, PolicyMode
from tests.numa.placing import (
    HANDS,
    PAGE,
    PAGES,
    SIZE,
    PlacedVm,
    counted,
    plain_vcpu,
    region_spec,
    running_on,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
HOME = 1  # the node on whose CPUs the hands work

# Policy, host nodes, and the share of each node in what should come of it.
MODES: dict[str, tuple[PolicyMode, tuple[int, ...], dict[int, float]]] = {
    "default": (PolicyMode.DEFAULT, (HOME,), {HOME: 1.0}),
    "default, nothing expected": (PolicyMode.DEFAULT, (), {HOME: 1.0}),
    "local": (PolicyMode.LOCAL, (HOME,), {HOME: 1.0}),
    "preferred": (PolicyMode.PREFERRED, (2,), {2: 1.0}),
    "preferred-many": (PolicyMode.PREFERRED_MANY, (2, 3), {3: 1.0}),
    "bind": (PolicyMode.BIND, (3,), {3: 1.0}),
    "bind to the nearest of two": (PolicyMode.BIND, (2, 3), {3: 1.0}),
    "interleave": (PolicyMode.INTERLEAVE, (0, 1, 2, 3), dict.fromkeys(range(4), 0.25)),
    "weighted-interleave": (PolicyMode.WEIGHTED_INTERLEAVE, (0, 2), {0: 0.75, 2: 0.25}),
}


@pytest.fixture
def _weights() -> Iterator[None]:
    """Node 0 weighs three times what the others do."""
    files = [WEIGHTS / f"node{node}" for node in range(4)]
    before = [file.read_text() for file in files]
    for node, file in enumerate(files):
        file.write_text("3" if node == 0 else "1")
    yield
    for file, weight in zip(files, before, strict=True):
        file.write_text(weight)


def test_every_mode_is_tried() -> None:
    assert {mode for mode, _, _ in MODES.values()} == set(PolicyMode)


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("name", MODES)
def test_pages_are_where_the_policy_says(name: str, hand: str) -> None:
    policy, host_nodes, shares = MODES[name]
    with running_on(HOME), PlacedVm(region_spec(policy, *host_nodes)) as vm:
        HANDS[hand](vm)
        counts = counted(vm.fd)
        (seen,) = vm.audit().regions
        drift = vm.drift()
    assert sum(counts.values()) == SIZE
    for node in counts.keys() | shares.keys():
        off = abs(counts.get(node, 0) - shares.get(node, 0.0) * SIZE)
        assert off <= 4 * PAGE, (counts, shares)
    assert seen.by_node == counts
    assert (seen.unknown_bytes, seen.errors, seen.exact) == (0, {}, True)
    assert drift.by_node == counts
    assert (drift.placed_bytes, drift.misplaced_bytes) == (SIZE, 0)
    assert drift.policy_match is True
    assert not drift.drifting


@pytest.mark.parametrize("hand", ["host touch", "fallocate", "plain vcpu"])
@pytest.mark.parametrize("name", ["bind", "interleave", "preferred"])
def test_memfds_are_placed_alike(name: str, hand: str) -> None:
    policy, host_nodes, shares = MODES[name]
    region = region_spec(policy, *host_nodes, backend=Backend.MEMFD)
    with running_on(HOME), PlacedVm(region) as vm:
        HANDS[hand](vm)
        counts = counted(vm.fd)
        drift = vm.drift()
    assert set(counts) == set(shares)
    assert drift.by_node == counts
    assert not drift.drifting


def test_a_prefaulted_vm_serves_another_process_guest_without_a_page_more() -> None:
    region = region_spec(PolicyMode.BIND, 2, prefault=True)
    with PlacedVm(region) as vm:
        assert counted(vm.fd) == {2: SIZE}
        plain_vcpu(vm)
        assert counted(vm.fd) == {2: SIZE}
        drift = vm.drift()
    assert vm.regions[0].strategy is Strategy.INODE_POLICY
    assert drift.resident_bytes == PAGES * PAGE
    assert not drift.drifting
