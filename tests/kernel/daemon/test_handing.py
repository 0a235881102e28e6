"""Memory that the daemon made, in the hands of other processes."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.client import Client
from gmemd.client.blocking import call
from tests.kernel.daemon.vmms import RefusedByDaemonError, Vmm, vmm
from tests.qemu import SMALL, start_qemu

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
GIB = 1 << 30
NOBODY = 65534
OBSERVED = "version: 1\nvm: another\nsource: observe\n"


def fds_of(daemon: Daemon) -> list[str]:
    assert daemon.process is not None
    found = []
    for fd in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            found.append(str(fd.readlink()))
    return found


def kinds(daemon: Daemon) -> dict[str, int]:
    """How many descriptors of each kind the daemon has."""
    return Counter(re.sub(r"\d+", "N", link) for link in fds_of(daemon))


def memory_of(daemon: Daemon) -> list[str]:
    return [link for link in fds_of(daemon) if "memfd:gmemd" in link or "memfd:guest" in link]


def refused(caller: Vmm, what: str, *args: object, **options: object) -> RefusedByDaemonError:
    with pytest.raises(RefusedByDaemonError) as raised:
        caller.do(what, *args, **options)
    return raised.value


def inline(vm: str, size: str = "8MiB", more: str = "") -> str:
    return (
        f"version: 1\nvm: {vm}\nsource: create\nbackend: memfd\n{more}"
        f"guest_nodes: [{{id: 0, memory: {size}, host_nodes: 0}}]\n"
    )


def test_the_layout_and_each_file_once(running: Daemon) -> None:
    with vmm(running) as caller:
        regions = caller.do("acquire", "db-01")
        assert [(r["guest_node"], r["size"], r["offset"]) for r in regions] == [
            (0, 8 * MIB, 0),
            (1, 4 * MIB, 0),
        ]
        assert [r["extents"] for r in regions] == [[[0, 0, 8 * MIB]], [[GIB, 0, 4 * MIB]]]
        assert len({r["inode"] for r in regions}) == 2
        assert {r["policy_outcome"] for r in regions} == {"applied"}
        assert not any(r["inheritable"] for r in regions)
        holder = running.describe("db-01")["holder"]
        assert (holder["pid"], holder["alive"]) == (caller.pid, True)


def test_acquiring_again_gives_the_same(running: Daemon) -> None:
    with vmm(running) as caller:
        first = caller.do("acquire", "db-01")
        assert caller.do("acquire", "db-01") == first
        running.until(lambda: kinds(running)["anon_inode:[pidfd]"] == 1)
        running.until(lambda: len(memory_of(running)) == 2)


def test_nobody_else_gets_it_meanwhile(running: Daemon) -> None:
    with vmm(running) as holder, vmm(running) as other:
        holder.do("acquire", "db-01")
        error = refused(other, "acquire", "db-01")
        assert error.name == "AlreadyOwned"
        assert error.parameters == {"vm": "db-01", "holder_pid": holder.pid}


def test_it_is_given_back_when_its_holder_is_killed(running: Daemon) -> None:
    with vmm(running) as caller:
        caller.do("acquire", "db-01")
        caller.do("fill", "db-01", 7)
        caller.kill()
        running.wait_for("db-01", "waiting")
    running.until(lambda: not memory_of(running))
    with vmm(running) as caller:
        caller.do("acquire", "db-01")
        assert caller.do("look", "db-01") == [0, 0]


def test_it_is_kept_as_it_was_for_the_next(daemon: Daemon) -> None:
    daemon.write("db-01", more="on_vmm_exit: keep\n")
    with daemon.running():
        with vmm(daemon) as caller:
            caller.do("acquire", "db-01")
            caller.do("fill", "db-01", 7)
        daemon.until(lambda: daemon.describe("db-01")["holder"]["alive"] is False)
        assert "kept" in daemon.gmemd("status", "db-01").stdout
        (daemon.vms / "db-01.yaml").unlink()
        daemon.write("another")
        call(daemon.socket, "Reload")
        daemon.wait_for("another", "ready")
        assert len(memory_of(daemon)) == 4, "a reload freed what is kept"
        with vmm(daemon) as caller:
            caller.do("acquire", "db-01")
            assert caller.do("look", "db-01") == [7, 7]
        daemon.until(lambda: daemon.describe("db-01")["holder"]["alive"] is False)
        done = daemon.gmemd("release", "db-01")
        assert done.returncode == 0, done.stderr
        daemon.until(lambda: len(memory_of(daemon)) == 2)
        daemon.until(lambda: [vm["vm"] for vm in call(daemon.socket, "List")["vms"]] == ["another"])


def test_held_memory_outlives_its_file(running: Daemon) -> None:
    with vmm(running) as caller:
        caller.do("acquire", "db-01")
        caller.do("fill", "db-01", 9)
        (running.vms / "db-01.yaml").unlink()
        running.write("another")
        call(running.socket, "Reload")
        described = running.describe("db-01")
        assert described["holder"]["pid"] == caller.pid
        assert any("its file is gone" in warning for warning in described["warnings"])
        assert caller.do("look", "db-01") == [9, 9]
    running.until(lambda: "db-01" not in {vm["vm"] for vm in call(running.socket, "List")["vms"]})


def test_a_launcher_passes_its_vmm_and_hands_over(running: Daemon) -> None:
    with vmm(running) as first, vmm(running) as second:
        with vmm(running) as launcher:
            launcher.do("acquire", "db-01", holder=first.pid)
            assert running.describe("db-01")["holder"]["pid"] == first.pid
            launcher.do("hand_over", "db-01", second.pid)
        first.kill()
        assert running.describe("db-01")["holder"]["pid"] == second.pid
        assert len(second.do("acquire", "db-01")) == 2
        second.kill()
        running.wait_for("db-01", "waiting")


def test_release_by_the_holder_and_by_force(running: Daemon) -> None:
    with vmm(running) as holder, vmm(running) as other:
        holder.do("acquire", "db-01")
        assert refused(other, "call", "Release", vm="db-01").name == "AlreadyOwned"
        holder.do("call", "Release", vm="db-01")
        assert running.describe("db-01")["state"] == "waiting"
        holder.do("acquire", "db-01")
        holder.do("fill", "db-01", 3)
        other.do("call", "Release", vm="db-01", force=True)
        assert not memory_of(running)
        assert holder.do("look", "db-01") == [3, 3], "force took memory that is in use"


def test_waiting_for_it_ends_in_time_and_the_work_goes_on(running: Daemon) -> None:
    call(running.socket, "Release", vm="db-01")
    with vmm(running) as caller:
        error = refused(caller, "acquire", "db-01", timeout_seconds=0)
        assert (error.name, error.parameters["timeout_ms"]) == ("Timeout", 0)
        assert len(caller.do("acquire", "db-01")) == 2


def test_who_hangs_up_while_waiting_holds_nothing(running: Daemon) -> None:
    running.write("big", more="cgroup: none\n", size="1GiB")
    call(running.socket, "Reload")
    with vmm(running) as caller:
        caller.begin("acquire", "big")
        running.until(lambda: running.describe("big")["state"] == "provisioning")
        caller.kill()
    running.wait_for("big", "ready")
    assert running.describe("big")["holder"] is None


def test_progress_is_told_while_it_waits(running: Daemon) -> None:
    call(running.socket, "Release", vm="db-01")
    told: list[str] = []
    with Client(running.socket).acquire("db-01", progress=lambda p: told.append(p.state)):
        assert told
        assert set(told) <= {"waiting", "provisioning"}
    call(running.socket, "Release", vm="db-01", force=True)


def test_what_does_not_fit_is_told_with_figures(running: Daemon) -> None:
    running.write("huge", size="64TiB")
    call(running.socket, "Reload")
    with vmm(running) as caller:
        error = refused(caller, "acquire", "huge")
        assert error.name == "DoesNotFit"
        worst = error.parameters["refusals"][0]
        assert worst["needed"] == 64 << 40
        assert 0 <= worst["available"] < 64 << 40
        assert error.parameters["hint"]


def test_what_is_not_there_to_be_acquired(running: Daemon) -> None:
    running.write("seen", source="observe")
    running.write("bad", size="lots")
    call(running.socket, "Reload")
    with vmm(running) as caller:
        assert refused(caller, "acquire", "nobody").name == "NoSuchVM"
        error = refused(caller, "acquire", "seen")
        assert (error.name, error.parameters["state"]) == ("NotReady", "waiting")
        assert error.parameters["message"] == "its spec says source: observe"
        error = refused(caller, "acquire", "bad")
        assert error.name == "NotReady"
        assert "bad.yaml" in error.parameters["message"]


def test_an_inline_spec_lives_as_long_as_its_memory(running: Daemon) -> None:
    kept = running.directory / "state/vms.d/guest-7.yaml"
    with vmm(running) as caller:
        caller.do("acquire", "guest-7", spec=inline("guest-7"))
        assert running.describe("guest-7")["inline"] is True
        assert kept.exists()
        call(running.socket, "Reload")
        assert running.describe("guest-7")["holder"]["pid"] == caller.pid
    running.until(lambda: not kept.exists())
    running.until(lambda: "guest-7" not in {vm["vm"] for vm in call(running.socket, "List")["vms"]})


def test_an_inline_spec_outlives_the_daemon(running: Daemon) -> None:
    with vmm(running) as caller:
        caller.do("acquire", "guest-7", spec=inline("guest-7"))
        running.stop()
        with running.running():
            described = running.describe("guest-7")
            assert described["inline"] is True
            assert described["holder"]["pid"] == caller.pid
            assert len([link for link in memory_of(running) if "guest-7" in link]) == 1
            with vmm(running) as another:
                assert refused(another, "acquire", "guest-7").name == "AlreadyOwned"


def test_memory_that_no_vmm_has_ends_with_a_daemon_that_systemd_didnt_start(
    running: Daemon,
) -> None:
    with vmm(running) as caller:
        caller.do("acquire", "guest-7", spec=inline("guest-7"))
        running.stop()
    with running.running():
        running.until(lambda: not running.describe("guest-7")["holder"])
        assert not [link for link in memory_of(running) if "guest-7" in link], "nobody waits"
        with vmm(running) as another:
            another.do("acquire", "guest-7")


def test_a_bad_inline_spec_leaves_nothing(running: Daemon) -> None:
    with vmm(running) as caller:
        error = refused(caller, "acquire", "guest-7", spec=inline("guest-7", size="8MB"))
        assert error.name == "BadSpec"
        (problem,) = error.parameters["problems"]
        assert (problem["key"], problem["value"]) == ("guest_nodes[0].memory", "8MB")
        error = refused(caller, "acquire", "guest-7", spec=inline("other"))
        assert error.name == "BadSpec"
        error = refused(caller, "acquire", "guest-7", spec=inline("guest-7", size="64TiB"))
        assert error.name == "DoesNotFit"
        running.until(
            lambda: "guest-7" not in {vm["vm"] for vm in call(running.socket, "List")["vms"]}
        )
        error = refused(caller, "acquire", "db-01", spec=inline("db-01"))
        assert error.name == "BadSpec"
        assert "db-01.yaml" in error.parameters["problems"][0]["message"]


def test_a_stranger_sees_that_there_is_a_vm_and_no_more(running: Daemon) -> None:
    with vmm(running) as stranger:
        stranger.do("become", NOBODY)
        (vm,) = stranger.do("call", "List")["vms"]
        assert (vm["vm"], vm["state"], vm["public"]) == ("db-01", "ready", True)
        assert (vm["guest_nodes"], vm["message"], vm["holder"]) == ([], "", None)
        parameters: dict[str, dict[str, Any]] = {
            "Describe": {"vm": "db-01"},
            "Audit": {"vm": "db-01"},
            "Adopt": {"vm": "db-01"},
            "Release": {"vm": "db-01"},
            "Reload": {},
            "Plan": {"vm": "db-01"},
        }
        for method, given in parameters.items():
            assert refused(stranger, "call", method, **given).name == "PermissionDenied", method
        assert refused(stranger, "acquire", "db-01").name == "PermissionDenied"
        assert refused(stranger, "acquire", "x", spec=inline("x")).name == "PermissionDenied"
        stranger.do("make", "db-01", 8 * MIB)
        error = refused(stranger, "register", "db-01", [(0, 0, 0, 8 * MIB)])
        assert error.name == "PermissionDenied"
        assert refused(stranger, "hand_over", "db-01", stranger.pid).name == "PermissionDenied"
    assert running.describe("db-01")["holder"] is None


def test_the_owner_may_use_its_vm_and_no_other(daemon: Daemon) -> None:
    daemon.write("mine", more=f'owner: {{user: "{NOBODY}"}}\n')
    daemon.write("theirs")
    with daemon.running():
        daemon.wait_for("mine", "ready")
        daemon.wait_for("theirs", "ready")
        with vmm(daemon) as owner:
            owner.do("become", NOBODY)
            shown = {vm["vm"]: vm["public"] for vm in owner.do("call", "List")["vms"]}
            assert shown == {"mine": False, "theirs": True}
            assert owner.do("call", "Describe", vm="mine")["vm"]["state"] == "ready"
            assert owner.do("call", "Audit", vm="mine")["vm"]["audit"]
            assert len(owner.do("acquire", "mine")) == 2
            assert refused(owner, "acquire", "theirs").name == "PermissionDenied"
            assert refused(owner, "call", "Release", vm="theirs").name == "PermissionDenied"
            owner.do("call", "Release", vm="mine")


def test_users_of_the_configuration_bring_their_specs(daemon: Daemon) -> None:
    daemon.configure(f"inline_spec_users: [{NOBODY}]\n")
    with daemon.running(), vmm(daemon) as orchestrator:
        orchestrator.do("become", NOBODY)
        assert orchestrator.do("call", "Plan", spec=inline("x"))["verdict"] == "fits"
        assert len(orchestrator.do("acquire", "x", spec=inline("x"))) == 1


def test_states_are_watched_as_they_change(running: Daemon) -> None:
    seen: list[str] = []
    first, last = threading.Event(), threading.Event()

    def watch() -> None:
        for change in Client(running.socket).watch("db-01"):
            assert change.status is not None
            seen.append(change.status["state"])
            first.set()
            if seen[-1] == "waiting":
                last.set()
                return

    watching = threading.Thread(target=watch)
    watching.start()
    assert first.wait(60)
    call(running.socket, "Release", vm="db-01")
    assert last.wait(60)
    watching.join()
    assert (seen[0], seen[-1]) == ("ready", "waiting")


def test_a_thousand_clients_that_are_killed_leave_nothing(daemon: Daemon) -> None:
    daemon.write("churn")
    text = (daemon.vms / "churn.yaml").read_text()
    (daemon.vms / "churn.yaml").write_text(text.replace("prefault: true", "prefault: false"))
    with daemon.running():
        daemon.until(lambda: bool(memory_of(daemon)))
        call(daemon.socket, "Release", vm="churn")
        time.sleep(1)  # what the call left is closed by then
        before = kinds(daemon)
        with vmm(daemon) as clients:
            clients.do("churn", "churn", 1000)
        daemon.wait_for("churn", "waiting")
        daemon.until(lambda: kinds(daemon) == before)
        assert not memory_of(daemon)
        assert daemon.process is not None
        assert "memfd" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()


def test_who_only_names_a_holder_hides_no_vm(daemon: Daemon) -> None:
    daemon.configure(discovery=True)
    daemon.write("mine", more=f'owner: {{user: "{NOBODY}"}}\n')
    with start_qemu("-name", "victim", *SMALL) as qemu, daemon.running():
        daemon.until(lambda: "victim" in daemon.names())
        with vmm(daemon) as owner:
            owner.do("become", NOBODY)
            owner.do("acquire", "mine", holder=qemu.pid)
            assert daemon.describe("mine")["holder"]["pid"] == qemu.pid
            (daemon.vms / "another.yaml").write_text(OBSERVED)
            call(daemon.socket, "Reload")
            daemon.until(lambda: daemon.describe("another")["state"] == "waiting")
            daemon.until(
                lambda: "it is being looked for" not in daemon.describe("another")["message"]
            )
            assert daemon.describe("victim")["running"]["pid"] == qemu.pid


def test_a_payer_that_is_asked_for_is_named(running: Daemon) -> None:
    running.write("peer", more="cgroup: peer\n")
    call(running.socket, "Reload")
    with vmm(running) as caller:
        error = refused(caller, "acquire", "peer")
        assert (error.name, error.parameters["index"]) == ("FdRejected", -1)
        assert "cgroup: peer" in error.parameters["reason"]


def test_plans_are_for_who_may_see_the_vm(daemon: Daemon) -> None:
    daemon.configure(f"inline_spec_users: [{NOBODY}]\n")
    daemon.write("theirs")
    with daemon.running(), vmm(daemon) as orchestrator:
        daemon.wait_for("theirs", "ready")
        orchestrator.do("become", NOBODY)
        assert refused(orchestrator, "call", "Plan", vm="theirs").name == "PermissionDenied"


def test_only_root_has_any_cgroup_pay(daemon: Daemon) -> None:
    daemon.configure(f"inline_spec_users: [{NOBODY}]\n")
    with daemon.running(), vmm(daemon) as orchestrator:
        orchestrator.do("become", NOBODY)
        error = refused(
            orchestrator, "acquire", "x", spec=inline("x", more="cgroup: /sys/fs/cgroup/other\n")
        )
        assert (error.name, error.parameters["problems"][0]["key"]) == ("BadSpec", "cgroup")
