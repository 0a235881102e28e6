from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gmemd.cli import reload as command
from gmemd.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NOTHING: dict[str, Any] = {
    "successful": True,
    "added": [],
    "changed": [],
    "pending": [],
    "removed": [],
    "unchanged": 2,
    "problems": [],
    "notes": [],
}
PROBLEM = {
    "file": "/v/b.yaml",
    "line": 3,
    "column": 1,
    "key": "memory",
    "value": "lots",
    "message": "must be a size",
    "hint": "write 8MiB",
}


def reloaded(monkeypatch: pytest.MonkeyPatch, *arguments: str, **result: Any) -> int:  # noqa: ANN401
    monkeypatch.setattr(command, "call", lambda _socket, _method: NOTHING | result)
    return main(["reload", *arguments])


def test_what_changed_has_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reloaded(monkeypatch, added=["a"], removed=["r"], pending=["p"], notes=["n"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "added: a",
        "removed: r",
        "pending: p",
        "note: n",
        "2 unchanged",
        "pending changes wait for the memory's release: see `gmemd status VM`",
    ]


def test_broken_files_are_told_as_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reloaded(monkeypatch, successful=False, problems=[PROBLEM]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "gmemd: /v/b.yaml:3:1: memory: must be a size (got lots)",
        "hint: write 8MiB",
    ]


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert reloaded(monkeypatch, "--json", added=["a"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == ["a"]


def test_without_a_daemon(tmp_path: Path) -> None:
    assert main(["reload", "--socket", str(tmp_path / "none")]) == 4
