from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink.listener import Listener, SocketError

if TYPE_CHECKING:
    from pathlib import Path


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def test_everybody_may_connect_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "run" / "api"
    with Listener(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert connects(path)
        assert os.listdir(path.parent) == ["api"]  # noqa: PTH208  names alone
    assert list(path.parent.iterdir()) == []


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    with Listener(path):
        assert connects(path)


def test_a_live_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api"
    with Listener(path):
        with pytest.raises(SocketError, match="another daemon answers") as refused:
            Listener(path)
        assert refused.value.hint
        assert connects(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api"
    path.write_text("precious")
    with pytest.raises(SocketError, match="is no socket"):
        Listener(path)
    assert path.read_text() == "precious"


def test_another_one_at_the_same_moment_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(SocketError, match="another process is making a socket"):
        Listener(tmp_path / "api")
    os.close(fd)


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "api"
    with Listener(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.exists()


def test_a_path_too_long_is_said_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="too long") as refused:
        Listener(tmp_path / ("x" * 120) / "api")
    assert "socket:" in str(refused.value.hint)
