"""A daemon that was killed and is started again, where no systemd keeps anything for it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.daemon.store.records import VmRecord, decode_state, encode_state, encode_vm
from tests.kernel.daemon.test_handing import inline, memory_of, refused
from tests.kernel.daemon.vmms import Vmm, vmm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20


def kill(daemon: Daemon) -> None:
    daemon.stop(signal.SIGKILL)


def state_of(daemon: Daemon) -> Path:
    return daemon.directory / "state" / "state.json"


def changed(daemon: Daemon, change: Callable[[VmRecord], VmRecord], **header: Any) -> None:  # noqa: ANN401
    """Write the daemon's state anew, as another one would have."""
    state = decode_state(state_of(daemon).read_bytes())
    lines = [encode_vm(change(record)) for record in state.vms]
    told = {"boot_id": state.header.boot_id, "sequence": state.header.sequence + 1} | header
    state_of(daemon).write_bytes(encode_state(lines, **told))


def held_by(daemon: Daemon, vm: str) -> int | None:
    holder = daemon.describe(vm)["holder"]
    return int(holder["pid"]) if holder and holder["alive"] else None


def placed(daemon: Daemon, vm: str) -> list[int]:
    nodes = daemon.describe(vm)["guest_nodes"]
    return [node["drift"]["placed"] for node in nodes if node["drift"]]


def acquired(caller: Vmm, vm: str) -> list[int]:
    caller.do("acquire", vm)
    caller.do("fill", vm, 0x5A)
    return [0x5A, 0x5A]


def test_acquired_memory_is_found_with_its_holder(running: Daemon) -> None:
    since = running.describe("db-01")["since"]
    with vmm(running) as caller:
        pattern = acquired(caller, "db-01")
        kill(running)
        with running.running():
            vm = running.wait_for("db-01", "ready")
            assert held_by(running, "db-01") == caller.pid
            assert vm["since"] == since
            running.until(lambda: placed(running, "db-01") == [8 * MIB, 4 * MIB])
            assert len(memory_of(running)) == 2
            assert caller.do("look", "db-01") == pattern
            with vmm(running) as another:
                assert refused(another, "acquire", "db-01").name == "AlreadyOwned"
            caller.kill()
            running.until(lambda: not memory_of(running))


def test_registered_memory_is_found(running: Daemon) -> None:
    running.write("own-01", "backend: memfd\n", source="register")
    running.gmemd("reload")
    with vmm(running) as caller:
        caller.do("make", "own-01", 8 * MIB, 8 * MIB)
        pieces = [(0, 0, 0, 4 * MIB), (0, 0, 4 * MIB, 4 * MIB), (1, 1, 0, 4 * MIB)]
        before = caller.do("register", "own-01", pieces)
        kill(running)
        with running.running():
            running.wait_for("own-01", "ready")
            assert held_by(running, "own-01") == caller.pid
            assert len([link for link in memory_of(running) if "memfd:guest" in link]) == 3
            ids = [region["id"] for region in before["regions"]]
            caller.do("register", "own-01", [], remove=ids[1:])
            after = caller.do("register", "own-01", pieces[1:])
            assert [region["id"] for region in after["regions"]] == [max(ids) + 1, max(ids) + 2]


@pytest.mark.parametrize("keys", ["", "on_vmm_exit: keep\n"])
def test_whose_holder_exited_meanwhile_begins_anew(running: Daemon, keys: str) -> None:
    running.write("db-01", keys)
    running.gmemd("reload")
    with vmm(running) as caller:
        acquired(caller, "db-01")
        kill(running)
    with running.running(), vmm(running) as another:
        running.until(lambda: held_by(running, "db-01") is None)
        another.do("acquire", "db-01")
        assert another.do("look", "db-01") == [0, 0]


def test_what_was_released_stays_so(running: Daemon) -> None:
    with vmm(running) as caller:
        acquired(caller, "db-01")
    running.wait_for("db-01", "waiting")
    running.until(lambda: b"dormant" in state_of(running).read_bytes())
    kill(running)
    with running.running():
        assert running.wait_for("db-01", "waiting")["message"].startswith("its memory was given")
        assert not memory_of(running)


def test_a_spec_that_changed_meanwhile_is_applied_or_waits(running: Daemon) -> None:
    with vmm(running) as caller:
        acquired(caller, "db-01")
        kill(running)
        running.write("db-01", "drift_tolerance: 7%\n", size="12MiB")
        with running.running():
            running.until(lambda: "pending" in str(running.describe("db-01")["warnings"]))
            assert held_by(running, "db-01") == caller.pid
            running.write("db-01", "drift_tolerance: 7%\n")
            running.gmemd("reload")
            running.until(lambda: running.describe("db-01")["drift_tolerance"] == 0.07)
            kill(running)
        (running.vms / "db-01.yaml").unlink()
        with running.running():
            running.until(lambda: "its file is gone" in str(running.describe("db-01")["warnings"]))
            assert held_by(running, "db-01") == caller.pid
            kill(running)
        (running.vms / "db-01.yaml").write_text("version: 1\nvm: db-01\nsource: conjure\n")
        with running.running():
            assert running.describe("db-01")["spec_error"] is True
            assert held_by(running, "db-01") == caller.pid
            assert caller.do("look", "db-01") == [0x5A, 0x5A]


def truncated(daemon: Daemon) -> None:
    data = state_of(daemon).read_bytes()
    state_of(daemon).write_bytes(data[: len(data) // 2])


def garbage(daemon: Daemon) -> None:
    state_of(daemon).write_bytes(b"\xff" * 5000)


def missing(daemon: Daemon) -> None:
    state_of(daemon).unlink()


def newer(daemon: Daemon) -> None:
    data = state_of(daemon).read_bytes()
    state_of(daemon).write_bytes(data.replace(b'"gmemd_state":1', b'"gmemd_state":2', 1))


def of_another_boot(daemon: Daemon) -> None:
    changed(daemon, lambda record: record, boot_id="before")


def a_directory(daemon: Daemon) -> None:
    state_of(daemon).unlink()
    state_of(daemon).mkdir()


def of_another_process(daemon: Daemon) -> None:
    """The pid was given to another process since."""

    def change(record: VmRecord) -> VmRecord:
        assert record.holder is not None
        holder = record.holder.model_copy(update={"start_ticks": 1})
        return record.model_copy(update={"holder": holder})

    changed(daemon, change)


@pytest.mark.parametrize(
    ("damage", "said", "aside"),
    [
        (truncated, "it ends after", "state.damaged.json"),
        (garbage, "it has no header", "state.damaged.json"),
        (missing, "", ""),
        (newer, "a newer gmemd (state of format 2) ran here", "state.v2.json"),
        (of_another_boot, "from before the machine was started", ""),
        (a_directory, "Is a directory", ""),
        (of_another_process, "its memory is made anew", ""),
    ],
)
def test_a_state_that_is_of_no_use_is_never_fatal(
    running: Daemon, damage: Callable[[Daemon], None], said: str, aside: str
) -> None:
    with vmm(running) as caller:
        pattern = acquired(caller, "db-01")
        kill(running)
        damage(running)
        with running.running():
            running.wait_for("db-01", "ready")
            assert held_by(running, "db-01") is None
            assert said in running.log.read_text()
            assert "Traceback" not in running.log.read_text()
            assert not aside or (running.directory / "state" / aside).exists()
            assert caller.do("look", "db-01") == pattern


def test_it_is_said_what_a_crash_would_lose(running: Daemon) -> None:
    assert "no fd store, as systemd didn't start gmemd" in running.log.read_text()


def test_an_inline_spec_comes_back_with_its_memory(running: Daemon) -> None:
    with vmm(running) as caller:
        caller.do("acquire", "guest-7", spec=inline("guest-7"))
        kill(running)
        with running.running():
            assert held_by(running, "guest-7") == caller.pid
            assert running.describe("guest-7")["inline"] is True
            caller.kill()
            running.until(lambda: "guest-7" not in running.names())
