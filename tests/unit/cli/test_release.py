from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gmemd.cli.main import main
from tests.unit.client.stub import Answer, Stub

if TYPE_CHECKING:
    import pytest


def test_that_it_is_done_is_told(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.on("Release", Answer({"vm": "a", "state": "waiting"}))
    assert main(["release", "a", "--socket", str(stub.path)]) == 0
    assert capsys.readouterr().out == "a: its memory was given back\n"
    assert main(["release", "a", "--force", "--json", "--socket", str(stub.path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"version": 1, "vm": "a", "state": "waiting"}
    assert [call.parameters for call in stub.calls] == [{"vm": "a"}, {"vm": "a", "force": True}]


def test_memory_that_a_process_holds(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.on("Release", Answer({"vm": "a", "holder_pid": 42}, error="AlreadyOwned"))
    assert main(["release", "a", "--socket", str(stub.path)]) == 3
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "gmemd: Release a: process 42 holds its memory"
    assert hint.endswith("gmemd release --force a")
