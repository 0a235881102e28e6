import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.mempolicy import (
    NUMA_BALANCING,
    RELATIVE_NODES,
    STATIC_NODES,
    MemPolicy,
    allowed_mems,
    get_policy_at,
    get_task_policy,
    mbind,
    set_home_node,
    set_task_policy,
)

ZERO = frozenset({0})
LENGTH = 1 << 20

POLICIES = [
    MemPolicy("default"),
    MemPolicy("local"),
    MemPolicy("preferred", ZERO),
    MemPolicy("bind", ZERO),
    MemPolicy("interleave", ZERO),
    MemPolicy("preferred-many", ZERO),
    MemPolicy("weighted-interleave", ZERO),
    MemPolicy("bind", ZERO, STATIC_NODES),
    MemPolicy("bind", ZERO, RELATIVE_NODES),
    MemPolicy("bind", ZERO, NUMA_BALANCING),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_of_a_mapping_reads_back(memfd: int, policy: MemPolicy) -> None:
    with Mapping(memfd, 0, LENGTH) as window:
        mbind(window.address, LENGTH, policy)
        assert get_policy_at(window.address) == policy


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_of_the_task_reads_back(policy: MemPolicy) -> None:
    before = get_task_policy()
    try:
        set_task_policy(policy)
        assert get_task_policy() == policy
    finally:
        set_task_policy(before)


@pytest.mark.parametrize(
    "policy",
    [
        MemPolicy("mode-999", ZERO),
        MemPolicy("bind"),
        MemPolicy("default", ZERO),
        MemPolicy("local", ZERO),
        MemPolicy("bind", frozenset({1023})),
        MemPolicy("bind", ZERO, STATIC_NODES | RELATIVE_NODES),
    ],
    ids=str,
)
def test_what_the_kernel_refuses_is_an_error(memfd: int, policy: MemPolicy) -> None:
    with Mapping(memfd, 0, LENGTH) as window, pytest.raises(KernelError) as caught:
        mbind(window.address, LENGTH, policy)
    assert (caught.value.call, caught.value.errno_name) == ("mbind", "EINVAL")
    assert caught.value.hint


def test_the_highest_node_numbers_of_a_mask_reach_the_kernel(memfd: int) -> None:
    """A mask with a bit lost would be empty, and bind refuses an empty one."""
    with Mapping(memfd, 0, LENGTH) as window:
        for high in (63, 64, 127, 1023):
            mbind(window.address, LENGTH, MemPolicy("bind", frozenset({0, high}), STATIC_NODES))
            assert 0 in get_policy_at(window.address).nodes


def test_own_nodes_are_allowed() -> None:
    assert 0 in allowed_mems()


def test_reading_an_unmapped_address_is_an_error(memfd: int) -> None:
    with Mapping(memfd, 0, LENGTH) as window:
        address = window.address
    with pytest.raises(KernelError) as caught:
        get_policy_at(address)
    assert caught.value.errno_name == "EFAULT"


def test_a_home_node_goes_with_bind_alone(memfd: int) -> None:
    with Mapping(memfd, 0, LENGTH) as window:
        mbind(window.address, LENGTH, MemPolicy("bind", ZERO))
        set_home_node(window.address, LENGTH, 0)
        mbind(window.address, LENGTH, MemPolicy("interleave", ZERO))
        with pytest.raises(KernelError) as caught:
            set_home_node(window.address, LENGTH, 0)
    assert caught.value.errno_name == "EOPNOTSUPP"
    assert "preferred-many" in str(caught.value.hint)
