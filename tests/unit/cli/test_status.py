from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.cli import status as command
from gmemd.cli.main import main
from gmemd.export.snapshot import Running, Snapshot, VmState, VmStatus
from gmemd.export.snapshot_json import snapshot_to_json
from gmemd.spec.model import Source
from tests.unit.client.stub import Answer, Stub
from tests.unit.daemon.vms import MIB, audited_status, guest_node_drift, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DRIFTING = audited_status(
    guest_node_drift(0, {0: 8 * MIB}, {0}),
    guest_node_drift(1, {0: 2 * MIB, 1: 6 * MIB}, {1}),
    state=VmState.DEGRADED,
)
UNSEEN = audited_status(guest_node_drift(0, {0: 6 * MIB}, {0}, unknown_bytes=2 * MIB))
FAILED = VmStatus(
    "full", Source.CREATE, VmState.FAILED, since=0.0, message="node 0 is full", hint="free some"
)
FOUND = replace(
    audited_status(), source=Source.OBSERVE, running=Running(7, "qemu", True, "", "/", 1.0)
)
BLOCKED = VmStatus(
    "web",
    Source.OBSERVE,
    VmState.WAITING,
    since=0.0,
    message="memory unknown: not permitted",
    running=Running(8, "qemu", None, "", "/", 1.0, unknown="not_permitted"),
)
BROKEN = VmStatus("bad", None, VmState.FAILED, since=0.0, message="bad.yaml:1:1", spec_error=True)


@pytest.fixture
def show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Runs `gmemd status` on a made-up snapshot; gives exit code and lines."""

    def shown(*arguments: str, vms: tuple[VmStatus, ...], **known: Any) -> tuple[int, list[str]]:  # noqa: ANN401
        told = snapshot_to_json(Snapshot("0", 0.0, host=host(), vms=vms, **known))

        def call(_socket: Path, method: str, **parameters: str) -> dict[str, Any]:
            if method == "List":
                return told
            return {"vm": next(vm for vm in told["vms"] if vm["vm"] == parameters["vm"])}

        monkeypatch.setattr(command, "call", call)
        code = main(["status", *arguments])
        return code, capsys.readouterr().out.splitlines()

    return shown


def test_a_vm_has_a_headline_and_a_matrix(show: Callable[..., tuple[int, list[str]]]) -> None:
    status = replace(audited_status(), since=time.time())
    code, lines = show(vms=(status,))
    assert code == 0
    assert lines[0].startswith("vm  ready  create, since ")
    assert "audited" in lines[0]
    assert lines[3].split()[-2:] == ["8MiB", "100%"]


def test_drift_is_told_with_its_cause_and_what_to_do(
    show: Callable[..., tuple[int, list[str]]],
) -> None:
    _, lines = show(vms=(DRIFTING,))
    assert "  guest node 1: spilled: the node was full" in lines
    assert "  hint: free memory there" in lines


def test_failures_are_told_with_what_to_do(show: Callable[..., tuple[int, list[str]]]) -> None:
    _, lines = show(vms=(FAILED,))
    assert lines[1:3] == ["  why: node 0 is full", "  hint: free some"]


def test_provisioning_shows_how_far_it_is(show: Callable[..., tuple[int, list[str]]]) -> None:
    vm = VmStatus("new", Source.CREATE, VmState.PROVISIONING, since=0.0, progress_ratio=0.25)
    _, lines = show(vms=(vm,))
    assert lines[0].endswith("[#####...............] 25%")


def test_a_failed_reload_is_told_below(show: Callable[..., tuple[int, list[str]]]) -> None:
    _, lines = show(vms=(), reload_successful=False, reload_message="vms.d is gone")
    assert lines == [
        "no VMs: put a spec into vms.d, then `gmemd reload`",
        "the last reload was not successful: vms.d is gone",
    ]


def test_no_vms_are_said_to_be_none_where_they_were_looked_for(
    show: Callable[..., tuple[int, list[str]]],
) -> None:
    _, lines = show(vms=(), unseen_processes=0)
    assert lines == ["no VMs: none was found running, and vms.d has no spec"]


def test_processes_that_may_hold_vms_are_counted(
    show: Callable[..., tuple[int, list[str]]],
) -> None:
    _, lines = show(vms=(), unseen_processes=1)
    assert lines[1].startswith("1 process can't be looked into by the daemon and may hold VMs: ")
    _, lines = show(vms=(FOUND,), unseen_processes=12)
    assert lines[-1].startswith("12 processes can't be")
    assert "gmemd.service.d/observe.conf" in lines[-1]


def test_one_vm_comes_with_regions_reasons_and_the_audit(
    show: Callable[..., tuple[int, list[str]]],
) -> None:
    code, lines = show("vm", vms=(UNSEEN,))
    assert code == 0
    assert any("memfd 4KiB" in line and "inode-policy" in line for line in lines)
    assert "  guest node 0: kept by it" in lines
    assert "  guest node 0: 2MiB unseen: private to the guest" in lines
    assert "  audit: every resident page in 0.5 s, less than 1 s of CPU time" in lines
    assert any(line.startswith("  counters: host 0 16MiB") for line in lines)


def test_the_remedy_of_one_vm_is_called_that(show: Callable[..., tuple[int, list[str]]]) -> None:
    _, lines = show("vm", vms=(DRIFTING,))
    assert "  remedy: free memory there" in lines


def test_json_is_what_the_daemon_said(show: Callable[..., tuple[int, list[str]]]) -> None:
    _, lines = show("--json", vms=(DRIFTING,))
    assert json.loads("\n".join(lines)) == snapshot_to_json(
        Snapshot("0", 0.0, host=host(), vms=(DRIFTING,))
    )
    _, lines = show("vm", "--json", vms=(DRIFTING,))
    assert json.loads("\n".join(lines))["vm"] == "vm"


@pytest.mark.parametrize(
    ("vms", "code"),
    [
        ((), 0),
        ((audited_status(),), 0),
        ((DRIFTING,), 1),
        ((FAILED,), 3),
        ((BROKEN,), 2),
        ((UNSEEN,), 5),
        ((FOUND,), 0),
        ((BLOCKED,), 5),
        ((replace(FOUND, running=replace(FOUND.running, unknown="unreadable")),), 5),
        ((DRIFTING, BLOCKED), 1),
        ((DRIFTING, FAILED, BROKEN), 3),
        ((DRIFTING, BROKEN, UNSEEN), 1),
    ],
)
def test_the_exit_code_tells_when_asked_to(
    show: Callable[..., tuple[int, list[str]]], vms: tuple[VmStatus, ...], code: int
) -> None:
    assert show("--exit-code", vms=vms)[0] == code
    assert show(vms=vms)[0] == 0


def test_without_a_daemon_there_is_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(tmp_path / "none")]) == 4
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("gmemd: no daemon answers at")
    assert hint.startswith("hint: start it")


def test_hidden_processes_are_told_of(show: Callable[..., tuple[int, list[str]]]) -> None:
    _, lines = show(vms=(FOUND,), hidden_processes="other users' processes are hidden")
    assert lines[-1] == "there may be more VMs: other users' processes are hidden"


HOLDER: dict[str, Any] = {
    "pid": 42,
    "since": 0.0,
    "program": "qemu",
    "unit": "db.service",
    "alive": True,
}


@pytest.fixture
def told(stub: Stub) -> Callable[..., dict[str, Any]]:
    """Has the daemon tell of one VM with these fields changed."""

    def tell(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
        listed = snapshot_to_json(Snapshot("0", 0.0, host=host(), vms=(audited_status(),)))
        listed["vms"][0] |= changed
        stub.on("List", Answer(listed))
        stub.on("Describe", Answer({"vm": listed["vms"][0]}))
        return listed

    return tell


def lines_of(stub: Stub, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main(["status", "--socket", str(stub.path), *arguments])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        (HOLDER, "held by pid 42 qemu (db.service)"),
        (HOLDER, "\n  holder: pid 42 qemu of db.service, since 1970-01-01"),
        (HOLDER | {"program": None, "unit": None}, "held by pid 42,"),
        (HOLDER | {"program": None, "unit": None}, "\n  holder: pid 42, since"),
        (HOLDER | {"alive": False}, "kept, pid 42 is gone"),
        (
            HOLDER | {"alive": False},
            "\n  holder: pid 42 qemu of db.service is gone; its memory is kept for the next",
        ),
    ],
)
def test_who_has_the_memory(
    stub: Stub,
    told: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    holder: dict[str, Any],
    said: str,
) -> None:
    told(holder=holder)
    assert said in "\n".join(lines_of(stub, capsys, "vm"))


def test_a_process_is_named_once(
    stub: Stub, told: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    running = snapshot_to_json(Snapshot("0", 0.0, vms=(FOUND,)))["vms"][0]["running"]
    told(running=running | {"pid": 42}, holder=HOLDER)
    headline = lines_of(stub, capsys)[0]
    assert "pid 42 qemu (KVM)" in headline
    assert "held by" not in headline


def test_a_spec_that_came_with_a_call(
    stub: Stub, told: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    told(inline=True)
    assert "inline spec" in lines_of(stub, capsys)[0]


def test_what_is_somebody_elses(
    stub: Stub, told: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    told(public=True, guest_nodes=[], audit=None, drifting=None, message="", warnings=[])
    first, *_, last = lines_of(stub, capsys)
    assert first.startswith("vm  ready  create, since")
    assert last.startswith("of some VMs you may see no more than their state")
    assert main(["status", "--exit-code", "--socket", str(stub.path)]) == 5
