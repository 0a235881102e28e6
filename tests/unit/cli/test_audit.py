from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.cli import audit as command
from gmemd.cli import audit_daemon as by_daemon
from gmemd.cli.main import main
from gmemd.client.blocking import CallError, NoDaemonError, RefusedError
from gmemd.export.snapshot import Snapshot, VmState, snapshot_to_json, vm_to_json
from tests.unit.daemon.vms import MIB, audited_status, guest_node_drift, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gmemd.export.snapshot import VmStatus

PLACED = audited_status(guest_node_drift(0, {0: 8 * MIB}, {0}))
DRIFTING = audited_status(
    guest_node_drift(0, {0: 8 * MIB}, {0}),
    guest_node_drift(1, {0: 2 * MIB, 1: 6 * MIB}, {1}),
    state=VmState.DEGRADED,
)
UNSEEN = audited_status(guest_node_drift(0, {0: 6 * MIB}, {0}, unknown_bytes=2 * MIB))


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `gmemd audit` against a daemon that gives this answer; gives the exit code."""

    def audited(answer: VmStatus | Exception, *arguments: str) -> int:
        def call(_socket: Path, method: str, **parameters: str) -> dict[str, Any]:
            if isinstance(answer, NoDaemonError | RefusedError):
                raise answer
            if method == "List":
                known = PLACED if isinstance(answer, Exception) else answer
                return snapshot_to_json(Snapshot("0", 0.0, host=host(), vms=(known,)))
            assert (method, parameters) == ("Audit", {"vm": "vm"})
            if isinstance(answer, Exception):
                raise answer
            return {"vm": vm_to_json(answer)}

        monkeypatch.setattr(command, "call", call)
        monkeypatch.setattr(by_daemon, "call", call)
        return main(["audit", "vm", *arguments])

    return audited


def test_a_placed_vm(audit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(PLACED) == 0
    out = capsys.readouterr().out
    assert "vm  ready" in out
    assert "8MiB 100%" in out
    assert "audit: every resident page" in out


def test_drift_comes_with_cause_and_remedy(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(DRIFTING) == 1
    out = capsys.readouterr().out
    drift = DRIFTING.drift_of(1)
    assert drift is not None
    assert f"guest node 1: {drift.cause}" in out
    assert "remedy: " in out
    assert "2MiB 25% !" in out


def test_what_was_not_seen(audit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(UNSEEN) == 5
    assert "2MiB unseen" in capsys.readouterr().out


def test_json(audit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(DRIFTING, "--json") == 1
    assert json.loads(capsys.readouterr().out) == vm_to_json(DRIFTING)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NoDaemonError("no daemon answers", hint="start it"), 2),
        (RefusedError("PermissionDenied", {}, "not permitted"), 6),
        (CallError("NotAuditable", {}, "Audit: it is waiting"), 5),
        (CallError("AuditFailed", {}, "Audit: it broke"), 5),
    ],
)
def test_failures(
    audit: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    code: int,
) -> None:
    assert audit(failure) == code
    assert capsys.readouterr().err.startswith("gmemd: ")


def test_an_audit_that_takes_its_time_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal there is no sign of it."""
    begun, done = threading.Event(), threading.Event()

    def call(_socket: Path, method: str, **_parameters: str) -> dict[str, Any]:
        if method == "List":
            return snapshot_to_json(Snapshot("0", 0.0, host=host(), vms=(PLACED,)))
        begun.set()
        assert done.wait(60)
        return {"vm": vm_to_json(PLACED)}

    monkeypatch.setattr(command, "call", call)
    monkeypatch.setattr(by_daemon, "call", call)
    monkeypatch.setattr(by_daemon, "_PATIENCE_SECONDS", 0.0)
    threading.Thread(target=lambda: begun.wait(60) and done.set()).start()
    assert main(["audit", "vm", "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["vm"] == "vm"
    assert streams.err == ""


def test_a_vm_that_nobody_knows(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(NoDaemonError("no daemon answers"), "--socket", "/nowhere") == 2
    error = capsys.readouterr().err
    assert "no running VM is named 'vm', and no daemon answers" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all", "--output", "x.prom"], "is for --format prometheus"),
        (["--all", "--format", "prometheus", "--output", "x.txt"], "must end in .prom"),
        (["--all", "--pid", "3"], "not allowed with"),
        (["--sample", "255", "--all"], "must be a whole number from 256 to 1048576, not 255"),
        (["--sample", "500", "--full", "--all"], "not allowed with"),
        ([], "one of the arguments"),
    ],
)
def test_options_that_mean_nothing(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_process_that_is_no_vm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--pid", str(os.getppid())]) == 2
    assert "is no VM" in capsys.readouterr().err
    assert main(["audit", "--pid", "4194303"]) == 2
    assert "there is no process 4194303" in capsys.readouterr().err


def running_vm(unknown: str | None, *, drifting: bool = False) -> dict[str, Any]:
    seen = unknown is None
    return {
        "drifting": drifting,
        "audit": {} if seen else None,
        "guest_nodes": [],
        "running": {"unknown": unknown},
    }


@pytest.mark.parametrize(
    ("unknown", "not_all", "code"),
    [
        ([], False, 0),
        ([], True, 5),
        ([None], False, 0),
        ([None, "not_permitted"], False, 5),
        (["not_permitted", "not_permitted"], True, 6),
        (["not_permitted", "migrating"], False, 5),
        (["unmatched"], False, 5),
    ],
)
def test_what_was_not_seen_of_running_vms(
    unknown: list[str | None], *, not_all: bool, code: int
) -> None:
    vms = [running_vm(word) for word in unknown]
    assert command.exit_code(vms, not_all=not_all) == code
    assert command.exit_code([*vms, running_vm(None, drifting=True)], not_all=not_all) == 1
