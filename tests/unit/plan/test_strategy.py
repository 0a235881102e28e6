from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.plan.model import Strategy
from gmemd.plan.strategy import choose_strategy
from tests.unit.plan.specs import GIB, MIB, region

if TYPE_CHECKING:
    from gmemd.host.model import Host
    from gmemd.plan.strategy import Choice
    from gmemd.spec.model import RegionSpec


def choose(asked: RegionSpec, host: Host, *, received: bool = False) -> Choice:
    return choose_strategy(asked, host, received=received)


def test_guest_memfd_by_inode_policy_where_the_kernel_keeps_it(two_sockets: Host) -> None:
    assert choose(region(GIB, {0}), two_sockets).strategy is Strategy.INODE_POLICY
    lazy = choose(region(GIB, {0}, prefault=False), two_sockets)
    assert (lazy.strategy, lazy.prefault) == (Strategy.INODE_POLICY, False)


def test_proxy_allocation_on_a_kernel_that_drops_policies(before_inode_policy: Host) -> None:
    choice = choose(region(GIB, {0}), before_inode_policy)
    assert choice.strategy is Strategy.PROXY_ALLOCATION
    assert choice.reason.startswith("this kernel drops a guest_memfd's policy")


def test_without_prefault_such_a_kernel_leaves_it_unmanaged_and_says_so(
    before_inode_policy: Host,
) -> None:
    choice = choose(region(GIB, {0}, prefault=False), before_inode_policy)
    assert choice.strategy is Strategy.UNMANAGED
    assert "set prefault: true" in choice.warning


def test_memfd_keeps_its_policy_on_every_kernel(before_inode_policy: Host, no_kvm: Host) -> None:
    for host in (before_inode_policy, no_kvm):
        choice = choose(region(GIB, {0}, backend="memfd"), host)
        assert choice.strategy is Strategy.INODE_POLICY


def test_hugetlb_is_allocated_whole_beforehand_whatever_the_spec_says(two_sockets: Host) -> None:
    huge = region(GIB, {0}, backend="memfd", page_size=2 * MIB, prefault=False)
    choice = choose(huge, two_sockets)
    assert (choice.strategy, choice.prefault) == (Strategy.PROXY_ALLOCATION, True)


def test_received_hugetlb_is_allocated_beforehand_only_where_the_spec_says_so(
    two_sockets: Host,
) -> None:
    huge = region(GIB, {0}, backend="memfd", page_size=2 * MIB, prefault=False)
    choice = choose(huge, two_sockets, received=True)
    assert (choice.strategy, choice.prefault) == (Strategy.UNMANAGED, False)
    assert choice.reason.startswith("hugetlb memory keeps no policy")
    prefaulted = huge.model_copy(update={"prefault": True})
    choice = choose(prefaulted, two_sockets, received=True)
    assert (choice.strategy, choice.prefault) == (Strategy.PROXY_ALLOCATION, True)


def test_received_guest_memfd_is_bound_where_the_kernel_keeps_its_policy(
    two_sockets: Host, before_inode_policy: Host
) -> None:
    lazy = region(GIB, {0}, prefault=False)
    assert choose(lazy, two_sockets, received=True).strategy is Strategy.INODE_POLICY
    assert choose(lazy, before_inode_policy, received=True).strategy is Strategy.UNMANAGED


def test_default_sets_nothing(two_sockets: Host) -> None:
    lazy = choose(region(GIB, {0}, "default", prefault=False), two_sockets)
    assert lazy.strategy is Strategy.UNMANAGED
    assert choose(region(GIB, {0}, "default"), two_sockets).strategy is Strategy.PROXY_ALLOCATION
    assert choose(region(GIB, {0}, "local"), two_sockets).strategy is Strategy.INODE_POLICY
