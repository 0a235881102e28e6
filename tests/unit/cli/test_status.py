from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.cli import status as command
from gmemd.cli.main import main
from gmemd.export.snapshot import Running, Snapshot, VmState, VmStatus, snapshot_to_json
from gmemd.spec.model import Source
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
