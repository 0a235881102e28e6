"""The socket unit: systemd listens, and the daemon serves what it is given."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import call
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = Path("/etc/gmemd/gmemd.yaml")


@pytest.fixture
def socket_unit() -> Iterator[None]:
    unit.install()
    unit.clear_specs()
    unit.stop()
    unit.must("systemctl", "start", "gmemd.socket")
    yield
    unit.stop()
    unit.must("systemctl", "stop", "gmemd.socket")
    unit.run("systemctl", "reset-failed", "gmemd.socket", "gmemd.service")


@pytest.mark.usefixtures("socket_unit")
def test_a_call_starts_the_service_and_a_restart_loses_none() -> None:
    assert unit.unit("ActiveState") == "inactive"
    assert call(unit.SOCKET, "List")["vms"] == []
    assert unit.unit("ActiveState") == "active"
    assert "serving /run/gmemd/io.gmemd" in unit.journal()
    inode = unit.SOCKET.stat().st_ino
    unit.stop()
    assert unit.SOCKET.stat().st_ino == inode
    assert stat.S_IMODE(unit.SOCKET.stat().st_mode) == 0o666
    assert call(unit.SOCKET, "List")["vms"] == []


@pytest.mark.usefixtures("socket_unit")
def test_the_service_takes_a_socket_of_its_own_without_it() -> None:
    unit.must("systemctl", "stop", "gmemd.socket")
    assert not unit.SOCKET.exists()
    unit.start()
    assert call(unit.SOCKET, "List")["vms"] == []
    unit.stop()
    assert not unit.SOCKET.exists()


@pytest.mark.usefixtures("socket_unit")
def test_another_path_in_the_configuration_is_refused() -> None:
    before = CONFIG.read_text()
    CONFIG.write_text(before.replace("socket: /run/gmemd/io.gmemd", "socket: /run/gmemd/other"))
    try:
        assert unit.run("systemctl", "start", "gmemd.service").returncode != 0
        journal = unit.journal()
    finally:
        CONFIG.write_text(before)
    assert "socket: /run/gmemd/other, and systemd listens at /run/gmemd/io.gmemd" in journal
