"""New processes, told from a tree of files."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon import appearing
from gmemd.daemon.appearing import Appearances
from gmemd.errors import GmemdError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    directory = tmp_path / "proc"
    directory.mkdir()
    for pid in (1, 20):
        (directory / str(pid)).mkdir()
    (directory / "sys").mkdir()
    newest(directory, 20)
    return directory


def newest(proc: Path, pid: int) -> None:
    (proc / "loadavg").write_text(f"0.00 0.01 0.05 1/96 {pid}\n")


def test_a_process_is_new_until_it_is_old_or_gone(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looker = Appearances(proc.parent)
    assert looker.look() == {1, 20}
    monkeypatch.setattr(appearing, "YOUNG_SECONDS", 1e9)
    (proc / "30").mkdir()
    newest(proc, 30)
    assert 30 in looker.look()
    (proc / "30").rmdir()
    newest(proc, 31)
    assert 30 not in looker.look()


def test_nothing_is_listed_while_nothing_was_started(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appearing, "YOUNG_SECONDS", 0.0)
    looker = Appearances(proc.parent)
    assert looker.look() == frozenset()
    (proc / "30").mkdir()
    monkeypatch.setattr(appearing, "YOUNG_SECONDS", 1e9)
    assert looker.look() == frozenset(), "the newest number is the same as before"
    newest(proc, 30)
    assert looker.look() == {30}


def test_a_look_that_fails_misses_nobody(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looker = Appearances(proc.parent)
    looker.look()
    (proc / "30").mkdir()
    newest(proc, 30)

    def refuse(_: object) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(os, "listdir", refuse)
        with pytest.raises(GmemdError, match="Too many open files"):
            looker.look()
    assert 30 in looker.look()
