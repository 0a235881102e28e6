from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gmemd.cli.main import main
from tests.unit.client.stub import Answer, Stub

if TYPE_CHECKING:
    import pytest

MIB = 1 << 20
REGION: dict[str, Any] = {
    "id": 1,
    "guest_node": 0,
    "index": 0,
    "offset": 0,
    "size": 8 * MIB,
    "page_size": 4096,
    "backend": "memfd",
    "strategy": "inode-policy",
    "reason": "",
    "policy": "bind",
    "host_nodes": [0, 1],
    "policy_outcome": "applied",
    "policy_achieved": {"mode": "bind", "host_nodes": [0, 1]},
    "resident": 2 * MIB,
    "warnings": ["2MiB were there before"],
}
UNMANAGED = REGION | {
    "guest_node": 1,
    "strategy": "unmanaged",
    "reason": "it can't be mapped",
    "warnings": [],
}


def placed(*regions: dict[str, Any]) -> Answer:
    return Answer(
        {
            "vm": "a",
            "state": "ready",
            "message": "",
            "pid": 42,
            "regions": list(regions),
            "warnings": ["1MiB of its memory can only be observed"],
        }
    )


def test_what_was_taken_has_a_row_each(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.on("Adopt", placed(REGION))
    assert main(["adopt", "a", "--socket", str(stub.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a: ready, pid 42"
    assert " ".join(lines[3].split()) == "0 0 8MiB 2MiB memfd 4KiB bind 0-1 inode-policy"
    assert lines[4:] == [
        "  guest node 0: 2MiB were there before",
        "  note: 1MiB of its memory can only be observed",
    ]
    assert stub.calls[0].parameters == {"vm": "a"}


def test_what_no_policy_places_is_told_by_the_exit_code(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.on("Adopt", placed(REGION, UNMANAGED))
    assert main(["adopt", "a", "--pid", "42", "--socket", str(stub.path)]) == 3
    assert "  guest node 1: it can't be mapped" in capsys.readouterr().out.splitlines()
    assert stub.calls[0].parameters == {"vm": "a", "pid": 42}


def test_json_is_what_the_daemon_said(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    answer = placed(REGION)
    stub.on("Adopt", answer)
    assert main(["adopt", "a", "--json", "--socket", str(stub.path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 1} | answer.parameters


def test_candidates_are_named(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    candidates = [
        {"what": f"pid {pid}, qemu", "pid": pid, "guest_node": None, "size": None} for pid in (1, 2)
    ]
    told = {"vm": "a", "message": "two fit", "hint": "name one", "candidates": candidates}
    stub.on("Adopt", Answer(told, error="Ambiguous"))
    assert main(["adopt", "a", "--socket", str(stub.path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "gmemd: Adopt a: two fit",
        "  pid 1, qemu",
        "  pid 2, qemu",
        "hint: name one",
    ]
