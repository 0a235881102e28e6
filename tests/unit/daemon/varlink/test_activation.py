"""The API's socket, as systemd passes it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink.activation import open_listener
from gmemd.daemon.varlink.listener import SocketError
from gmemd.spec.config import DaemonConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "passed"))
        made.listen()
        yield made


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def test_the_passed_socket_is_served_and_left_in_place(
    tmp_path: Path, listening: socket.socket
) -> None:
    path = tmp_path / "passed"
    with open_listener(DaemonConfig(), os.dup(listening.fileno())) as listener:
        assert listener.path == path
        assert connects(path)
        assert listener.socket.accept()
    assert connects(path)


def test_without_one_it_is_an_own_socket(tmp_path: Path) -> None:
    path = tmp_path / "own"
    with open_listener(DaemonConfig(socket=path), -1) as listener:
        assert listener.path == path
        assert connects(path)
    assert not path.exists()


def test_the_configured_path_has_to_be_the_passed_ones(
    tmp_path: Path, listening: socket.socket
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    same = DaemonConfig(socket=tmp_path / "link" / "passed")
    with open_listener(same, os.dup(listening.fileno())):
        pass
    fd = os.dup(listening.fileno())
    with pytest.raises(SocketError) as refused:
        open_listener(DaemonConfig(socket=Path("/run/other")), fd)
    assert "/run/other" in refused.value.message
    assert str(tmp_path / "passed") in refused.value.message
    assert "gmemd.socket" in str(refused.value.hint)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_doesnt_listen_is_refused(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as idle, pytest.raises(SocketError, match="listen"):
        open_listener(DaemonConfig(), os.dup(idle.fileno()))
