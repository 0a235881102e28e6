from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.host.model import Feature
from gmemd.plan.checks import check_against_host, findings
from gmemd.plan.planning import plan_vm
from tests.unit.plan.specs import GIB, MIB, region, vm

if TYPE_CHECKING:
    from gmemd.host.model import Host


def test_nothing_stands_against_a_spec_that_fits_the_host(two_sockets: Host) -> None:
    assert check_against_host(vm(region(GIB, {0}), region(GIB, {1})), two_sockets) == []


def test_nodes_that_are_not_there(holes: Host) -> None:
    assert check_against_host(vm(region(GIB, {0, 1, 3})), holes) == [
        "guest node 0: host nodes 1,3 are not online; online nodes with memory are 0,2,5"
    ]
    (message,) = check_against_host(vm(region(GIB, {9})), holes)
    assert "host node 9 is not there" in message


def test_nodes_without_memory(memoryless: Host) -> None:
    assert check_against_host(vm(region(GIB, {0, 1})), memoryless) == [
        "guest node 0: host node 1 has no memory; nodes with memory are 0"
    ]


def test_regions_that_one_message_cant_hand_over(two_sockets: Host) -> None:
    most = vm(tuple(region(MIB, {0}) for _ in range(200)), *[region(MIB, {1})] * 53)
    assert check_against_host(most, two_sockets) == []
    (finding,) = findings(vm((region(MIB, {0}),) * 254), two_sockets)
    assert (finding.reason, finding.fatal) == ("too-many-regions", True)
    assert finding.message.startswith("vm has 254 regions, and its VMM can be handed 253 at most")
    registered = vm((region(MIB, {0}),) * 254, source="register")
    assert check_against_host(registered, two_sockets) == []


def test_nodes_outside_gmemds_own_cpuset(holes: Host) -> None:
    (message,) = check_against_host(vm(region(GIB, {2, 5})), holes)
    assert message == (
        "guest node 0: host node 5 is outside gmemd's own cpuset, which allows memory of nodes "
        "0,2 only; lift AllowedMemoryNodes= of gmemd's unit and slice, or cpuset.mems of its "
        "cgroup"
    )


def test_cpus_outside_gmemds_own_cpuset_only_slow_it_down(holes: Host) -> None:
    (finding,) = findings(vm(region(GIB, {2})), holes)
    assert not finding.fatal
    assert "may run on no CPU of host node 2" in finding.message
    assert findings(vm(region(GIB, {2}, prefault=False)), holes) == []


@pytest.mark.parametrize(
    ("nodes", "policy", "fatal"),
    [
        ({2}, "bind", True),
        ({1, 2}, "bind", False),
        ({1, 2}, "interleave", True),
        ({2}, "preferred", False),
    ],
)
def test_movable_only_nodes_for_guest_memfd(
    cxl: Host, nodes: set[int], policy: str, *, fatal: bool
) -> None:
    (finding,) = findings(vm(region(GIB, nodes, policy)), cxl)
    assert (finding.reason, finding.fatal, finding.host_nodes) == ("movable-only", fatal, {2})
    assert "backend: memfd" in finding.hint
    assert findings(vm(region(GIB, nodes, policy, backend="memfd")), cxl) == []


def test_a_bind_that_includes_a_movable_only_node_counts_the_others_alone(cxl: Host) -> None:
    plan = plan_vm(vm(region(GIB, {1, 2})), cxl)
    assert plan.regions[0].demand == {1: GIB}
    assert "its pages can only come from nodes 1" in plan.warnings[0]


def test_page_sizes_that_the_host_has_not(cxl: Host, holes: Host) -> None:
    huge = vm(region(GIB, {0}, backend="memfd", page_size=GIB))
    assert check_against_host(huge, cxl) == [
        (
            "guest node 0: this host has no huge pages of 1GiB; "
            "page sizes here are 4KiB and, for huge pages, 2MiB"
        )
    ]
    (message,) = check_against_host(vm(region(GIB, {0}, backend="memfd", page_size=2 * MIB)), holes)
    assert message.endswith("for huge pages, none")


def test_prefaulting_needs_to_know_where(two_sockets: Host) -> None:
    for policy in ("default", "local"):
        (message,) = check_against_host(vm(region(GIB, None, policy)), two_sockets)
        assert message.endswith("needs to know where; name host_nodes, or leave prefault out")
    assert check_against_host(vm(region(GIB, None, "local", prefault=False)), two_sockets) == []


def test_a_host_without_guest_memfd_is_said_once_with_its_remedy(no_kvm: Host) -> None:
    assert check_against_host(vm(region(GIB, {0}), region(GIB, {0})), no_kvm) == [
        (
            "guest_memfd can't be had on this host: /dev/kvm doesn't work here; "
            "make /dev/kvm work first; or use backend: memfd"
        )
    ]
    assert check_against_host(vm(region(GIB, {0}, backend="memfd")), no_kvm) == []


def test_guest_memfd_that_no_vmm_could_map(two_sockets: Host) -> None:
    lacking = Feature("guest_memfd_mmap", supported=False, detail="flags 0", remedy="newer kernel")
    host = replace(two_sockets, features={**two_sockets.features, lacking.name: lacking})
    (message,) = check_against_host(vm(region(GIB, {0})), host)
    assert message.startswith("guest_memfd can't be mapped on this host, so no VMM could use it")


def test_what_was_not_found_out_is_a_warning(two_sockets: Host) -> None:
    plan = plan_vm(vm(region(GIB, {0})), replace(two_sockets, features={}))
    assert plan.admitted
    assert "whether this host has guest_memfd was not found out" in plan.warnings


def test_a_kernel_without_weighted_interleave(two_sockets: Host) -> None:
    lacking = Feature("weighted_interleave", supported=False)
    host = replace(two_sockets, features={**two_sockets.features, lacking.name: lacking})
    assert check_against_host(vm(region(GIB, {0, 1}, "weighted-interleave")), host) == [
        "guest node 0: this kernel has no weighted-interleave; use policy: interleave"
    ]


def test_regions_are_numbered_where_a_guest_node_has_several(holes: Host) -> None:
    (message,) = check_against_host(vm((region(GIB, {0}), region(GIB, {4}))), holes)
    assert message.startswith("guest node 0 region 1: ")
