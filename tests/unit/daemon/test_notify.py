from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon import notify
from gmemd.daemon.notify import Notifier, missing_extra, watchdog_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(notify, "systemd_python", lambda _: None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        yield listener


def test_the_datagrams_are_those_of_sd_notify(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    assert manager.recv(100) == b"READY=1"
    notifier.reloading()
    kind, stamp = manager.recv(100).split(b"\n")
    assert kind == b"RELOADING=1"
    assert stamp.removeprefix(b"MONOTONIC_USEC=").isdigit()
    notifier.extend(1.5)
    assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=1500000"


def test_an_unchanged_status_is_not_repeated(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.status("1 VM: 1 ready")
    notifier.status("1 VM: 1 ready")
    notifier.status("2 VMs: 2 ready")
    assert [manager.recv(100) for _ in range(2)] == [
        b"STATUS=1 VM: 1 ready",
        b"STATUS=2 VMs: 2 ready",
    ]


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"gmemd-test-{os.getpid()}"
    monkeypatch.setattr(notify, "systemd_python", lambda _: None)
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        Notifier().alive()
        assert listener.recv(100) == b"WATCHDOG=1"


def test_outside_of_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()
    assert missing_extra() is None


def test_a_manager_that_is_gone_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "systemd_python", lambda _: None)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()


def test_the_missing_extra_is_said(manager: socket.socket) -> None:
    assert manager
    assert "gmemd[systemd]" in str(missing_extra())


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        (None, None, None),
        ("3000000", None, 3.0),
        ("3000000", str(os.getpid()), 3.0),
        ("3000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds
