"""Processes that can't be known of: hidden by /proc's mount, or outside the PID namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.host.vms.hidden import hidden_processes

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_hidden_where_init_is_seen_and_the_namespace_is_the_hosts(
    tmp_path: Path,
) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    assert hidden_processes(tmp_path) == ""
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    namespace = tmp_path / "proc/self/ns/pid"
    namespace.symlink_to("pid:[4026531836]")
    assert hidden_processes(tmp_path) == ""
    namespace.unlink()
    namespace.symlink_to("pid:[4026532201]")
    assert "hostPID: true" in hidden_processes(tmp_path)


def test_without_init_others_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert "hidepid" in hidden_processes(tmp_path)
