import errno
import os

import pytest

from gmemd.kernel.bind import BindOutcome, bind_range, keeps_inode_policy, read_policy
from gmemd.kernel.errors import KernelError, injected_failure
from gmemd.kernel.kvm import KvmVm
from gmemd.kernel.memfd import create_memfd
from gmemd.kernel.mempolicy import RELATIVE_NODES, STATIC_NODES, MemPolicy

ZERO = frozenset({0})
MIB = 1 << 20
DEFAULT = MemPolicy("default")

POLICIES = [
    MemPolicy("local"),
    MemPolicy("preferred", ZERO),
    MemPolicy("preferred-many", ZERO),
    MemPolicy("bind", ZERO),
    MemPolicy("interleave", ZERO),
    MemPolicy("weighted-interleave", ZERO),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_policy_is_set_on_its_range_alone_and_reset(memfd: int, policy: MemPolicy) -> None:
    result = bind_range(memfd, 4 * MIB, 4 * MIB, policy)
    assert result.ok
    assert result.outcome is BindOutcome.APPLIED
    assert result.achieved == policy
    assert result.effective_nodes == policy.nodes
    assert read_policy(memfd, 4 * MIB) == read_policy(memfd, 8 * MIB - 1) == policy
    assert read_policy(memfd, 4 * MIB - 1) == read_policy(memfd, 8 * MIB) == DEFAULT
    assert bind_range(memfd, 4 * MIB, 4 * MIB, DEFAULT).ok
    assert read_policy(memfd, 4 * MIB) == DEFAULT


def test_a_default_that_another_mapping_changed_is_set_nevertheless(memfd: int) -> None:
    """The no-op trap: the kernel compares with the mapping's policy, not with the inode's."""
    for _ in range(2):
        assert bind_range(memfd, 0, MIB, MemPolicy("bind", ZERO)).ok
        assert bind_range(memfd, 0, MIB, DEFAULT).ok
        assert read_policy(memfd, 0) == DEFAULT


@pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
def test_a_guest_memfd_of_a_kernel_without_inode_policies(guest_memfd: int) -> None:
    result = bind_range(guest_memfd, 0, MIB, MemPolicy("bind", ZERO))
    if keeps_inode_policy(guest_memfd):
        assert result.ok
        return
    assert not result.ok
    assert result.outcome is BindOutcome.NOT_KEPT
    assert result.achieved == DEFAULT
    assert result.effective_nodes == frozenset()
    assert "6.19" in result.remedy


def test_the_probe_leaves_no_trace(fd: int, memfd: int) -> None:
    keeps_inode_policy(fd)
    assert read_policy(fd, 0) == DEFAULT
    assert read_policy(fd, os.fstat(fd).st_size) == DEFAULT
    assert keeps_inode_policy(memfd)


@pytest.mark.needs("kvm", "guest_memfd")
def test_an_unmappable_guest_memfd(vm: KvmVm) -> None:
    fd = vm.create_guest_memfd(MIB, 0)
    result = bind_range(fd, 0, MIB, MemPolicy("bind", ZERO))
    assert (result.outcome, result.achieved) == (BindOutcome.UNMAPPABLE, None)
    assert read_policy(fd, 0) is None
    assert not keeps_inode_policy(fd)
    os.close(fd)


def test_hugetlb_keeps_none(huge_fd: int) -> None:
    result = bind_range(huge_fd, 0, 2 * MIB, MemPolicy("bind", ZERO))
    assert result.outcome is BindOutcome.HUGETLB
    assert "proxy-allocation" in result.remedy
    assert read_policy(huge_fd, 0) is None
    assert not keeps_inode_policy(huge_fd)


@pytest.mark.parametrize("flags", [0, STATIC_NODES], ids=["plain", "static"])
def test_an_offline_node_is_told(memfd: int, flags: int) -> None:
    result = bind_range(memfd, 0, MIB, MemPolicy("bind", frozenset({0, 1000}), flags))
    assert result.outcome is BindOutcome.NARROWED_OFFLINE
    assert result.effective_nodes == ZERO
    assert result.dropped == {1000: BindOutcome.NARROWED_OFFLINE}
    assert result.detail == "node 1000 is offline or without memory"


def test_no_node_left_is_told_too(memfd: int) -> None:
    result = bind_range(memfd, 0, MIB, MemPolicy("interleave", frozenset({1000, 1001})))
    assert result.outcome is BindOutcome.NARROWED_OFFLINE
    assert result.achieved is None
    assert result.effective_nodes == frozenset()
    assert "no requested node is left" in result.detail


def test_a_preferred_policy_takes_its_lowest_node(memfd: int) -> None:
    result = bind_range(memfd, 0, MIB, MemPolicy("preferred", frozenset({0, 1000})))
    assert result.ok
    assert result.effective_nodes == ZERO


def test_relative_nodes_fold_onto_the_allowed_ones(memfd: int) -> None:
    result = bind_range(memfd, 0, MIB, MemPolicy("bind", frozenset({0, 1}), RELATIVE_NODES))
    assert result.ok
    assert 0 in result.effective_nodes


@pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
def test_movable_only_nodes_matter_to_guest_memfd_alone(memfd: int, guest_memfd: int) -> None:
    bind = MemPolicy("bind", ZERO)
    assert bind_range(memfd, 0, MIB, bind, movable_only=ZERO).ok
    result = bind_range(guest_memfd, 0, MIB, bind, movable_only=ZERO)
    if keeps_inode_policy(guest_memfd):
        assert result.outcome is BindOutcome.MOVABLE_ONLY
        assert result.effective_nodes == frozenset()


def test_a_home_node_is_accepted_where_it_can_be(memfd: int) -> None:
    result = bind_range(memfd, 0, MIB, MemPolicy("bind", ZERO), home_node=0)
    assert result.ok
    assert result.home_node == 0
    with pytest.raises(KernelError, match="set_mempolicy_home_node: EOPNOTSUPP"):
        bind_range(memfd, 0, MIB, MemPolicy("interleave", ZERO), home_node=0)


def test_an_unknown_mode_is_refused_by_the_kernel(fd: int) -> None:
    with pytest.raises(KernelError) as caught:
        bind_range(fd, 0, MIB, MemPolicy("mode-999", ZERO))
    assert (caught.value.call, caught.value.errno) == ("mbind", errno.EINVAL)


def test_a_range_of_four_tebibytes() -> None:
    fd = create_memfd("sparse", 4 << 40)
    result = bind_range(fd, 0, 4 << 40, MemPolicy("bind", ZERO))
    assert result.ok
    assert read_policy(fd, (4 << 40) - 1) == MemPolicy("bind", ZERO)
    assert os.fstat(fd).st_blocks == 0
    os.close(fd)


def test_a_filtered_call_names_seccomp(memfd: int) -> None:
    with injected_failure("mbind", errno.EPERM), pytest.raises(KernelError) as caught:
        bind_range(memfd, 0, MIB, MemPolicy("bind", ZERO))
    assert "seccomp" in str(caught.value.hint)
    assert bind_range(memfd, 0, MIB, MemPolicy("bind", ZERO)).ok
