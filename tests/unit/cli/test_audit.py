from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.cli.audit import exit_code
from gmemd.cli.main import main
from gmemd.export.snapshot import Snapshot, VmState
from gmemd.export.snapshot_json import snapshot_to_json, vm_to_json
from gmemd.export.svg import render_svg
from tests.unit.client.stub import PATIENCE_SECONDS, Answer, Stub, send
from tests.unit.daemon.vms import MIB, audited_status, guest_node_drift, host
from tests.unit.located import located_status

if TYPE_CHECKING:
    import socket
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
def audit(stub: Stub) -> Callable[..., int]:
    """Runs `gmemd audit` against a daemon that gives this answer; gives the exit code."""

    def audited(answer: VmStatus | Answer | None, *arguments: str, **known: Any) -> int:  # noqa: ANN401
        if answer is not None:
            status = PLACED if isinstance(answer, Answer) else answer
            told = snapshot_to_json(Snapshot("0", 0.0, host=host(), vms=(status,)))
            told["vms"][0] |= known
            stub.on("List", Answer(told))
            done = Answer({"vm": vm_to_json(status), "looked_at": None, "total": None})
            stub.on("Audit", answer if isinstance(answer, Answer) else done)
        socket = "/nowhere" if answer is None else str(stub.path)
        return main(["audit", "vm", "--socket", socket, *arguments])

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


LOCATED = located_status({0: [0, 0], 1: [1, 3, 3]})


def test_where(
    audit: Callable[..., int], stub: Stub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert audit(LOCATED, "--where") == 1
    out = capsys.readouterr().out
    assert "guest node 1  0x040000000  133\n" in out
    assert "0x040200000  0x040600000  4MiB       4MiB  host 3" in out
    picture = tmp_path / "vm.svg"
    assert audit(LOCATED, "--json", "--svg", str(picture)) == 1
    assert json.loads(capsys.readouterr().out) == vm_to_json(LOCATED)
    assert picture.read_text() == render_svg([vm_to_json(LOCATED)])
    asked = [call.parameters for call in stub.calls if call.method == "Audit"]
    assert asked == [{"vm": "vm", "where": True}] * 2


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), {"sample_pages": 4096}),
        (("--sample", "300", "--confidence", "99%"), {"sample_pages": 300, "confidence": 0.99}),
        (("--margin", "0.5%"), {"margin": 0.005}),
        (("--full",), {"full": True}),
        (("--full", "-j", "3"), {"full": True, "jobs": 3}),
    ],
)
def test_how_much_is_looked_at(
    audit: Callable[..., int], stub: Stub, options: tuple[str, ...], asked: dict[str, object]
) -> None:
    assert audit(PLACED, *options) == 0
    (call,) = [call.parameters for call in stub.calls if call.method == "Audit"]
    assert call == {"vm": "vm"} | asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--full", "--margin", "1%"), "not allowed with"),
        (("--sample", "300", "--margin", "1%"), "not allowed with"),
        (("--where", "--margin", "1%"), "looks at every page"),
        (("--full", "--confidence", "99%"), "looks at every page"),
        (("-j", "2"), "add --full"),
        (("--full", "-j", "0"), "1 to"),
        (("--margin", "0%"), "from 0.1% to 25%"),
        (("--margin", "1"), "write 1%"),
        (("--confidence", "100%"), "from 50% to 99.99%"),
        (("--margin", "0.1%", "--confidence", "99.99%"), "use a wider margin"),
    ],
)
def test_what_goes_together(
    audit: Callable[..., int],
    stub: Stub,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    try:
        code = audit(PLACED, *options)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert said in capsys.readouterr().err
    assert not stub.calls


def test_a_picture_that_cant_be_written(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert audit(LOCATED, "--svg", str(tmp_path / "none" / "vm.svg")) == 3
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Answer(error="org.varlink.service.PermissionDenied"), 6),
        (Answer({"vm": "vm", "state": "waiting", "message": "it waits"}, error="NotAuditable"), 5),
        (Answer({"vm": "vm", "message": "it broke", "hint": None}, error="AuditFailed"), 5),
    ],
)
def test_failures(
    audit: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    failure: Answer,
    code: int,
) -> None:
    assert audit(failure) == code
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("gmemd: Audit: ")
    assert hint.startswith("hint: ")


def test_where_there_is_no_terminal_no_progress_is_asked_for(
    audit: Callable[..., int], stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(PLACED, "--json") == 0
    assert capsys.readouterr().err == ""
    assert [(call.method, call.more) for call in stub.calls] == [("List", False), ("Audit", False)]


def test_a_terminal_shows_how_far_the_audit_is(stub: Stub) -> None:
    """The bar comes after a second: the answer waits until half of it was drawn."""
    told = snapshot_to_json(Snapshot("0", 0.0, host=host(), vms=(PLACED,)))
    vm = vm_to_json(PLACED)
    stub.on("List", Answer(told))
    drawn = threading.Event()

    def audit(connection: socket.socket) -> None:
        half = Answer({"vm": vm, "looked_at": 4, "total": 8}, continues=True)
        send(connection, half.content)
        assert drawn.wait(PATIENCE_SECONDS)
        send(connection, Answer({"vm": vm, "looked_at": None, "total": None}).content)

    stub.does("Audit", audit)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gmemd", "audit", "vm", "--json", "--socket", str(stub.path)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while b"50%" not in shown:
            shown += os.read(ours, 4096)
        drawn.set()
        assert process.stdout is not None
        assert json.load(process.stdout)["vm"] == "vm"
    os.close(ours)
    assert b"looking at the pages of vm" in shown
    assert process.returncode == 0


def test_a_vm_of_somebody_elses_is_not_shown(
    audit: Callable[..., int], stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is looked for here, and what isn't found here either is not permitted."""
    assert audit(PLACED, public=True, guest_nodes=[]) == 6
    assert "Audit: not permitted" in capsys.readouterr().err
    assert [call.method for call in stub.calls] == ["List"]


def test_a_vm_that_nobody_knows(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(None) == 2
    error = capsys.readouterr().err
    assert "no running VM is named 'vm', and no daemon answers" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all", "--where", "--sample", "500"], "--where looks at every page"),
        (["--all", "--svg", "x.svg", "--format", "prometheus"], "metrics have no addresses"),
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
    with subprocess.Popen(["sleep", "60"]) as process:
        assert main(["audit", "--pid", str(process.pid)]) == 2
        process.kill()
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
    assert exit_code(vms, not_all=not_all) == code
    assert exit_code([*vms, running_vm(None, drifting=True)], not_all=not_all) == 1
