"""Memory that a VMM makes, registered by it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon.vmms import RefusedByDaemonError, Vmm, vmm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20

SPEC = """\
version: 1
vm: {vm}
source: register
backend: memfd
{more}guest_nodes:
  - {{id: 0, memory: 8MiB, host_nodes: 0}}
  - id: 1
    regions:
      - {{size: 4MiB, host_nodes: 0}}
      - {{size: 8MiB, host_nodes: 0, policy: preferred}}
"""
WHOLE = [(0, 0, 0, 8 * MIB), (1, 1, 0, 4 * MIB), (1, 2, 0, 8 * MIB)]


def write(daemon: Daemon, vm: str = "reg", more: str = "") -> None:
    (daemon.vms / f"{vm}.yaml").write_text(SPEC.format(vm=vm, more=more))


@pytest.fixture
def running(daemon: Daemon) -> Iterator[Daemon]:
    write(daemon)
    with daemon.running():
        daemon.wait_for("reg", "waiting")
        yield daemon


def refused(caller: Vmm, *args: object, **options: object) -> RefusedByDaemonError:
    with pytest.raises(RefusedByDaemonError) as raised:
        caller.do("register", *args, **options)
    return raised.value


def strategies(placed: dict[str, Any]) -> set[tuple[str, str]]:
    return {(region["strategy"], region["policy_outcome"]) for region in placed["regions"]}


def test_regions_are_placed_and_audited(running: Daemon) -> None:
    with vmm(running) as guest:
        guest.do("make", "reg", 8 * MIB, 4 * MIB, 8 * MIB)
        placed = guest.do("register", "reg", WHOLE)
        assert strategies(placed) == {("inode-policy", "applied")}
        assert [r["resident"] for r in placed["regions"]] == [0, 0, 0]
        assert placed["pid"] == guest.pid
        guest.do("fill", "reg", 1)
        seen = call(running.socket, "Audit", vm="reg")["vm"]
        assert [node["drift"]["placed"] for node in seen["guest_nodes"]] == [8 * MIB, 12 * MIB]
        assert [node["memory"] for node in seen["guest_nodes"]] == [8 * MIB, 12 * MIB]
        assert seen["holder"]["pid"] == guest.pid
        guest.kill()
        running.wait_for("reg", "waiting")
        assert running.describe("reg")["holder"] is None


def test_what_was_there_before_its_policy_is_counted(running: Daemon) -> None:
    with vmm(running) as guest:
        guest.do("make", "reg", 8 * MIB)
        guest.do("fill", "reg", 1)
        placed = guest.do("register", "reg", [(0, 0, 0, 8 * MIB)])
        assert [region["resident"] for region in placed["regions"]] == [8 * MIB]


def test_one_file_may_have_all_of_a_guest(running: Daemon) -> None:
    with vmm(running) as guest:
        guest.do("make", "reg", 20 * MIB)
        pieces = [(0, 0, 0, 8 * MIB), (1, 0, 8 * MIB, 4 * MIB), (1, 0, 12 * MIB, 8 * MIB)]
        placed = guest.do("register", "reg", pieces)
        assert [(r["guest_node"], r["index"]) for r in placed["regions"]] == [
            (0, 0),
            (1, 0),
            (1, 1),
        ]
        guest.do("fill", "reg", 1)
        seen = call(running.socket, "Audit", vm="reg")["vm"]
        assert [node["drift"]["resident"] for node in seen["guest_nodes"]] == [8 * MIB, 12 * MIB]


def test_regions_come_and_go(running: Daemon) -> None:
    with vmm(running) as guest:
        guest.do("make", "reg", 8 * MIB, 4 * MIB, 8 * MIB)
        first = guest.do("register", "reg", WHOLE[:1])
        warnings = running.describe("reg")["warnings"]
        assert any("guest node 1: 12MiB" in warning for warning in warnings), warnings
        second = guest.do("register", "reg", WHOLE[1:])
        assert not any(
            "isn't" in warning or "not gmemd's" in warning for warning in second["warnings"]
        )
        ids = [region["id"] for placed in (first, second) for region in placed["regions"]]
        assert len(set(ids)) == 3
        guest.do("register", "reg", [], remove=[ids[1]])
        nodes = running.describe("reg")["guest_nodes"]
        assert [node["memory"] for node in nodes] == [8 * MIB, 8 * MIB]
        assert refused(guest, "reg", [], remove=[ids[1]]).name == "InvalidParameter"
        guest.do("register", "reg", WHOLE[1:2])
        assert [n["memory"] for n in running.describe("reg")["guest_nodes"]] == [8 * MIB, 12 * MIB]


@pytest.mark.parametrize(
    ("pieces", "guest_node", "words"),
    [
        ([(7, 0, 0, 8 * MIB)], 7, "no guest node 7"),
        ([(0, 0, 0, 8 * MIB), (0, 1, 0, 4 * MIB)], 0, "8MiB"),
        ([(0, 0, 0, 4097)], 0, "multiple of the page size"),
        ([(0, 0, 8 * MIB, 4 * MIB)], 0, "ends past its file"),
        ([(0, 0, 0, 4 * MIB), (0, 0, 0, 4 * MIB)], 0, "same bytes"),
    ],
)
def test_what_is_not_the_spec_is_refused_whole(
    running: Daemon, pieces: list[tuple[int, int, int, int]], guest_node: int, words: str
) -> None:
    with vmm(running) as guest:
        guest.do("make", "reg", 8 * MIB, 4 * MIB)
        error = refused(guest, "reg", pieces)
        assert error.name == "LayoutMismatch"
        assert error.parameters["guest_node"] == guest_node
        assert words in error.parameters["message"]
    described = running.describe("reg")
    assert (described["state"], described["holder"]) == ("waiting", None)


def test_wrong_descriptors_are_named(running: Daemon) -> None:
    with vmm(running) as guest:
        for kind in ("pipe", "socket", "zero", "file", "path", "read-only"):
            guest.do("make_wrong", "reg", kind)
            error = refused(guest, "reg", [(0, 0, 0, 8 * MIB)])
            assert (error.name, error.parameters["index"]) == ("FdRejected", 0), kind
            assert error.parameters["reason"], kind


def test_one_process_at_a_time(running: Daemon) -> None:
    with vmm(running) as guest, vmm(running) as other:
        guest.do("make", "reg", 8 * MIB)
        guest.do("register", "reg", WHOLE[:1])
        other.do("make", "reg", 4 * MIB)
        error = refused(other, "reg", [(1, 0, 0, 4 * MIB)])
        assert (error.name, error.parameters["holder_pid"]) == ("AlreadyOwned", guest.pid)


def test_a_file_is_one_vms(running: Daemon) -> None:
    write(running, "twin")
    call(running.socket, "Reload")
    with vmm(running) as guest:
        guest.do("make", "reg", 8 * MIB)
        guest.do("register", "reg", WHOLE[:1])
        guest.do("rename", "reg", "twin")
        error = refused(guest, "twin", WHOLE[:1])
        assert error.name == "LayoutMismatch"
        assert "the VM reg" in error.parameters["message"]


def test_created_memory_cannot_be_registered(daemon: Daemon) -> None:
    daemon.write("made")
    with daemon.running(), vmm(daemon) as guest:
        daemon.wait_for("made", "ready")
        guest.do("make", "made", 8 * MIB)
        error = refused(guest, "made", [(0, 0, 0, 8 * MIB)])
        assert error.name == "LayoutMismatch"
        assert "source: create" in error.parameters["message"]


def test_it_is_prefaulted_where_the_spec_says_so(daemon: Daemon) -> None:
    write(daemon, more="prefault: true\n")
    with daemon.running(), vmm(daemon) as guest:
        guest.do("make", "reg", 8 * MIB, 4 * MIB, 8 * MIB)
        placed = guest.do("register", "reg", WHOLE)
        assert [region["resident"] for region in placed["regions"]] == [0, 0, 0]
        seen = daemon.wait_for("reg", "ready")
        daemon.until(lambda: daemon.describe("reg")["audit"] is not None)
        seen = daemon.describe("reg")
        assert [node["drift"]["resident"] for node in seen["guest_nodes"]] == [8 * MIB, 12 * MIB]


def test_kept_memory_is_handed_to_the_next_vmm(daemon: Daemon) -> None:
    write(daemon, more="on_vmm_exit: keep\n")
    with daemon.running():
        with vmm(daemon) as guest:
            guest.do("make", "reg", 8 * MIB, 4 * MIB, 8 * MIB)
            guest.do("register", "reg", WHOLE)
            guest.do("fill", "reg", 5)
        daemon.until(lambda: daemon.describe("reg")["holder"]["alive"] is False)
        with vmm(daemon) as successor:
            assert len(successor.do("acquire", "reg")) == 3
            assert successor.do("look", "reg") == [5, 5, 5]


def test_an_inline_spec_goes_with_its_vmm(daemon: Daemon) -> None:
    with daemon.running():
        with vmm(daemon) as guest:
            guest.do("make", "new", 8 * MIB)
            text = SPEC.format(vm="new", more="")
            guest.do("register", "new", WHOLE[:1], spec=text)
            assert daemon.describe("new")["inline"] is True
        daemon.until(lambda: "new" not in daemon.names())
        assert not os.listdir(daemon.directory / "state/vms.d")  # noqa: PTH208  whether any


def test_a_changed_policy_is_set_on_registered_memory(running: Daemon) -> None:
    with vmm(running) as guest:
        guest.do("make", "reg", 8 * MIB, 4 * MIB, 8 * MIB)
        guest.do("register", "reg", WHOLE)
        text = (running.vms / "reg.yaml").read_text()
        changed = text.replace("8MiB, host_nodes: 0}", "8MiB, host_nodes: 0, policy: preferred}")
        (running.vms / "reg.yaml").write_text(changed)
        call(running.socket, "Reload")

        def read() -> dict[str, Any]:
            region: dict[str, Any] = running.describe("reg")["guest_nodes"][0]["regions"][0]
            return region["policy_read"] or {}

        running.until(lambda: read().get("mode") == "preferred")
