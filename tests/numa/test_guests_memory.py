"""Guests on memory that gmemd made, or that was registered with it, in VMMs that aren't gmemd.

Where pages are is gmemd's word and, beside it, a count of the VMM's own and the kernel's account.
Host nodes 2 and 3 have no CPUs: no page comes there by chance.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client import Client
from tests.kernel.daemon.conftest import Daemon
from tests.kernel.daemon.vmms import RefusedByDaemonError
from tests.numa import vmm
from tests.numa.handing import MIB, Unevictable, audited, bound, cgroup, seen, write_spec
from tests.numa.running import in_cgroup
from tests.numa.test_prefault_cgroup import charged
from tests.numa.vmm import INIT_SHARED, MMAP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.vmms import Vmm

GIB = 1 << 30
STEP = 4 * MIB
CPUSET = "its VMM's cpuset.mems is {}: what the guest touches first goes there, not to 3"
ON_NODE_1 = ("numactl", "--cpunodebind=1")


@pytest.fixture(scope="module")
def nothing() -> Unevictable:
    """Before there is any memory."""
    return Unevictable()


@pytest.fixture(scope="module")
def daemon(
    nothing: Unevictable,  # noqa: ARG001  which comes first
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    lazy = {"source": "create", "prefault": "false"}
    write_spec(made, "lazy", bound(32, 2), bound(32, 3), **lazy)
    write_spec(made, "kept", bound(8, 3), on_vmm_exit="keep", **lazy)
    write_spec(made, "paid", bound(16, 2), bound(8, 3), source="create", cgroup="peer")
    write_spec(made, "pair", bound(16, 2), bound(32, 3), source="register")
    write_spec(made, "one-file", bound(16, 2), bound(16, 3), source="register")
    write_spec(made, "secret", bound(16, 3), source="register", confidential="true")
    write_spec(made, "blind", bound(16, 2, ", prefault: true"), bound(8, 3), source="register")
    with made.running():
        for vm in ("lazy", "kept", "paid"):
            made.wait_for(vm, "ready")
        yield made


@pytest.fixture(scope="module")
def acquired(daemon: Daemon) -> Iterator[Vmm]:
    """A guest on the memory of ``lazy``: file 0 at 0, file 1 at 1 GiB."""
    with vmm.start(daemon.socket, ON_NODE_1) as guest:
        guest.do("acquire", "lazy")
        yield guest


@pytest.fixture(scope="module")
def registered(daemon: Daemon) -> Iterator[Vmm]:
    """A guest that has made files 0 and 1 for ``pair``, and bound them at 0 and 1 GiB."""
    with vmm.start(daemon.socket, ON_NODE_1) as guest:
        for gpa in (0, GIB):
            guest.do("bind", guest.do("make", 16 * MIB, MMAP | INIT_SHARED), gpa, 16 * MIB)
        yield guest


def achieved(told: dict[str, Any]) -> list[list[int] | None]:
    """The host nodes that each region was bound to, by the policy that was read back."""
    policies = [region["policy_achieved"] for region in told["regions"]]
    return [policy and policy["host_nodes"] for policy in policies]


def test_an_acquired_guests_pages_are_where_declared(daemon: Daemon, acquired: Vmm) -> None:
    memory = Unevictable()
    told = acquired.do("acquire", "lazy", use=False)
    assert achieved(told) == [[2], [3]]
    extents = [extent for region in told["regions"] for extent in region["extents"]]
    assert [extent["gpa"] for extent in extents] == [0, GIB]
    for file, node in enumerate((2, 3)):
        acquired.do("write", file * GIB, STEP)
        assert acquired.do("count", file, 0, STEP) == {str(node): STEP}
    assert memory.grown() == {2: 4, 3: 4}
    vm = audited(daemon, "lazy")
    assert (vm["state"], vm["drifting"], seen(vm)) == ("ready", False, [{2: 4}, {3: 4}])
    assert vm["holder"] is not None
    assert vm["holder"]["pid"] == acquired.pid


def test_a_registered_guests_pages_are_where_declared(daemon: Daemon, registered: Vmm) -> None:
    registered.do("touch", 0, 0, STEP)  # before anybody is told
    memory = Unevictable()
    placed = registered.do("register", "pair", (0, 0, 16 * MIB, 0), (1, 1, 16 * MIB, 0))
    assert [region["strategy"] for region in placed["regions"]] == ["inode-policy"] * 2
    assert achieved(placed) == [[2], [3]]
    assert [region["resident"] for region in placed["regions"]] == [STEP, 0]
    assert placed["pid"] == registered.pid
    assert placed["warnings"] == [
        "guest node 1: 16MiB of its memory was not taken in",
    ]
    registered.do("write", STEP, STEP)
    registered.do("write", GIB, STEP)
    assert registered.do("count", 0, 0, 2 * STEP) == {"1": STEP, "2": STEP}
    assert registered.do("count", 1, 0, STEP) == {"3": STEP}
    assert memory.grown() == {2: 4, 3: 4}
    vm = audited(daemon, "pair")
    assert seen(vm) == [{1: 4, 2: 4}, {3: 4}]
    drift = vm["guest_nodes"][0]["drift"]
    assert drift is not None
    assert (drift["misplaced"], drift["cause"]) == (STEP, "resident before the policy")


def test_memory_is_plugged_and_unplugged(daemon: Daemon, registered: Vmm) -> None:
    file = registered.do("make", 16 * MIB, MMAP | INIT_SHARED)
    before = Client(daemon.socket).describe("pair")["guest_nodes"][1]["regions"]
    placed = registered.do("register", "pair", (1, file, 16 * MIB, 0))
    assert (achieved(placed), placed["warnings"]) == ([[3]], [])
    registered.do("bind", file, GIB + 16 * MIB, 16 * MIB)
    registered.do("write", GIB + 16 * MIB, 2 * STEP)
    assert registered.do("count", file, 0, 2 * STEP) == {"3": 2 * STEP}
    assert seen(audited(daemon, "pair"))[1] == {3: 12}
    removed = registered.do("register", "pair", remove=[placed["regions"][0]["id"]])
    assert removed["regions"] == []
    vm = audited(daemon, "pair")
    assert seen(vm)[1] == {3: 4}
    assert [region["index"] for region in vm["guest_nodes"][1]["regions"]] == [
        region["index"] for region in before
    ]


def test_one_file_has_two_guest_nodes(daemon: Daemon, registered: Vmm) -> None:
    file = registered.do("make", 32 * MIB, MMAP | INIT_SHARED)
    pieces = [(0, file, 16 * MIB, 0), (1, file, 16 * MIB, 16 * MIB)]
    placed = registered.do("register", "one-file", *pieces)
    assert achieved(placed) == [[2], [3]]
    assert [region["offset"] for region in placed["regions"]] == [0, 16 * MIB]
    registered.do("bind", file, 2 * GIB, 16 * MIB)
    registered.do("bind", file, 2 * GIB + 16 * MIB, 16 * MIB, offset=16 * MIB)
    registered.do("write", 2 * GIB, 32 * MIB)
    assert registered.do("count", file, 0, 16 * MIB) == {"2": 16 * MIB}
    assert registered.do("count", file, 16 * MIB, 16 * MIB) == {"3": 16 * MIB}
    vm = audited(daemon, "one-file")
    assert (vm["state"], seen(vm)) == ("ready", [{2: 16}, {3: 16}])


def test_kept_memory_is_as_it_was_and_its_next_holders_cpuset_is_told(daemon: Daemon) -> None:
    with vmm.start(daemon.socket) as first:
        assert first.do("acquire", "kept")["warnings"] == []
        first.do("fill", 0, 7)
    daemon.until(lambda: not (daemon.describe("kept")["holder"] or {"alive": True})["alive"])
    with (
        cgroup("gmemd-test-narrow", "cpuset", cpuset_mems="0-1") as group,
        vmm.start(daemon.socket, in_cgroup(group)) as second,
    ):
        told = second.do("acquire", "kept")
        assert second.do("holds", 0, 7)
        assert told["warnings"] == [f"guest node 0: {CPUSET.format('0-1')}"]
        vm = audited(daemon, "kept")
        assert seen(vm) == [{3: 8}]
        assert vm["holder"] is not None
        assert vm["holder"]["pid"] == second.pid


def test_who_acquires_pays_and_gives_back_by_exiting(daemon: Daemon) -> None:
    with cgroup("gmemd-test-paying", "memory") as group:
        memory = Unevictable()
        with vmm.start(daemon.socket, in_cgroup(group)) as guest:
            with pytest.raises(RefusedByDaemonError, match="FdRejected"):
                guest.do("acquire", "paid")
            assert memory.grown() == {}
            guest.do("acquire", "paid", cgroup=str(group))
            paid = charged(group)
            assert (paid[2], paid[3]) == (16, 8)
            assert memory.grown() == {2: 16, 3: 8}
            vm = audited(daemon, "paid")
            assert (vm["state"], seen(vm)) == ("ready", [{2: 16}, {3: 8}])
            assert vm["audit"] is not None
            assert vm["audit"]["counters_cgroup"] == str(group)
        daemon.wait_for("paid", "waiting")
        assert memory.grown() == {}


def test_confidential_memory_is_placed_unread_and_its_cgroup_counted(daemon: Daemon) -> None:
    with (
        cgroup("gmemd-test-secret", "memory") as group,
        vmm.start(daemon.socket, in_cgroup(group)) as guest,
    ):
        file = guest.do("make", 16 * MIB, MMAP)
        placed = guest.do("register", "secret", (0, file, 16 * MIB, 0))
        assert (placed["regions"][0]["strategy"], achieved(placed)) == ("inode-policy", [[3]])
        memory = Unevictable()
        guest.do("fallocate", file, 0, STEP)
        assert memory.grown() == {3: 4}
        vm = audited(daemon, "secret")
        (node,) = vm["guest_nodes"]
        assert node["regions"][0]["policy_read"] == {"mode": "bind", "host_nodes": [3]}
        drift, audit = node["drift"], vm["audit"]
        assert drift is not None
        assert audit is not None
        assert (drift["resident"], drift["unknown"]) == (STEP, STEP)
        assert (drift["placed"], drift["misplaced"], drift["drifting"]) == (0, 0, False)
        assert audit["counters_cgroup"] == str(group)
        assert audit["counters"] is not None
        assert audit["counters"]["3"] == charged(group)[3] * MIB == STEP


def test_what_can_not_be_mapped_is_allocated_in_its_place_or_left_alone(daemon: Daemon) -> None:
    with (
        cgroup("gmemd-test-narrow", "cpuset", cpuset_mems="0-2") as group,
        vmm.start(daemon.socket, (*in_cgroup(group), *ON_NODE_1)) as guest,
    ):
        memory = Unevictable()
        pieces = [(0, guest.do("make", 16 * MIB, 0), 16 * MIB, 0)]
        pieces += [(1, guest.do("make", 8 * MIB, 0), 8 * MIB, 0)]
        placed = guest.do("register", "blind", *pieces)
        assert memory.grown() == {2: 16}
        strategies = [region["strategy"] for region in placed["regions"]]
        assert strategies == ["proxy-allocation", "unmanaged"]
        assert placed["state"] == "degraded"
        assert CPUSET.format("0-2") in placed["regions"][1]["warnings"]
        guest.do("fallocate", 1, 0, STEP)
        assert memory.grown() == {1: 4, 2: 16}
        drifts = [node["drift"] for node in audited(daemon, "blind")["guest_nodes"]]
        assert [drift and drift["unknown"] for drift in drifts] == [16 * MIB, STEP]
    daemon.wait_for("blind", "waiting")
    assert memory.grown() == {}


def test_guests_go_on_with_gmemd_restarted_and_absent(
    nothing: Unevictable, daemon: Daemon, acquired: Vmm, registered: Vmm
) -> None:
    def write_on(at: int) -> None:
        """Both guests allocate a step more of both guest nodes."""
        memory = Unevictable()
        for guest in (acquired, registered):
            for file, node in enumerate((2, 3)):
                guest.do("write", file * GIB + at, STEP)
                assert guest.do("count", file, at, STEP) == {str(node): STEP}
        assert memory.grown() == {2: 8, 3: 8}

    daemon.stop(signal.SIGKILL)
    write_on(2 * STEP)
    with daemon.running():
        # No fd store here: what a VMM has open is taken from it again.
        for vm, guest in (("lazy", acquired), ("pair", registered)):
            assert daemon.describe(vm)["holder"]["pid"] == guest.pid
        write_on(3 * STEP)
        assert seen(audited(daemon, "pair")) == [{1: 4, 2: 12}, {3: 12}]
    acquired.do("write", 4 * STEP, 4 * STEP)
    assert acquired.do("count", 0, 4 * STEP, 4 * STEP) == {"2": 4 * STEP}
    for guest in (acquired, registered):
        guest.kill()
    assert nothing.grown() == {}
