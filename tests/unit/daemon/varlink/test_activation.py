"""What systemd passes, to a process of our own as it would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.varlink.activation import open_listener, passed_fds
from gmemd.daemon.varlink.listener import SocketError
from gmemd.spec.config import DaemonConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

TAKE = """\
import json, os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from gmemd.daemon.varlink.activation import passed_fds
told = {"first": passed_fds(), "second": passed_fds()}
told["inheritable"] = [os.get_inheritable(fd) for _, fd in told["first"]]
told["left"] = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps(told))
"""


def taken(names: str, number: str, *, of_another: bool = False) -> dict[str, list[object]]:
    """What a process takes that has our standard input as fds 3 and 4."""
    environment = os.environ | {"LISTEN_FDS": number, "LISTEN_FDNAMES": names}
    command = f'exec "$0" -c "$1" {int(of_another)} 3<&0 4<&0'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, TAKE],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    told: dict[str, list[object]] = json.loads(done.stdout)
    return told


def test_passed_fds_have_names_and_are_taken_once() -> None:
    assert taken("io.gmemd:vm-1", "2") == {
        "first": [["io.gmemd", 3], ["vm-1", 4]],
        "second": [],
        "inheritable": [False, False],
        "left": [],
    }


def test_names_that_dont_match_are_no_names() -> None:
    assert taken("io.gmemd", "2")["first"] == [["unknown", 3], ["unknown", 4]]
    assert taken("", "2")["first"] == [["unknown", 3], ["unknown", 4]]


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    told = taken("io.gmemd", "1", of_another=True)
    assert (told["first"], told["left"]) == ([], [])


def test_nothing_is_passed_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(variable, raising=False)
    assert passed_fds() == []


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
    with open_listener(DaemonConfig(), [("io.gmemd", os.dup(listening.fileno()))]) as listener:
        assert listener.path == path
        assert connects(path)
        assert listener.socket.accept()
    assert connects(path)


def test_without_one_it_is_an_own_socket(tmp_path: Path) -> None:
    path = tmp_path / "own"
    with open_listener(DaemonConfig(socket=path), []) as listener:
        assert listener.path == path
        assert connects(path)
    assert not path.exists()


def test_what_has_another_name_is_closed(
    tmp_path: Path, listening: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    passed = [(name, os.dup(listening.fileno())) for name in ("other", "io.gmemd", "io.gmemd")]
    with open_listener(DaemonConfig(), passed) as listener:
        assert listener.socket.fileno() == passed[1][1]
        for _, fd in (passed[0], passed[2]):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    assert "(other), passed by systemd, is not used" in caplog.text
    assert (tmp_path / "passed").exists()


def test_the_configured_path_has_to_be_the_passed_ones(
    tmp_path: Path, listening: socket.socket
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    same = DaemonConfig(socket=tmp_path / "link" / "passed")
    with open_listener(same, [("io.gmemd", os.dup(listening.fileno()))]):
        pass
    fd = os.dup(listening.fileno())
    with pytest.raises(SocketError) as refused:
        open_listener(DaemonConfig(socket=Path("/run/other")), [("io.gmemd", fd)])
    assert "/run/other" in refused.value.message
    assert str(tmp_path / "passed") in refused.value.message
    assert "gmemd.socket" in str(refused.value.hint)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_doesnt_listen_is_refused(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as idle, pytest.raises(SocketError, match="listen"):
        open_listener(DaemonConfig(), [("io.gmemd", os.dup(idle.fileno()))])
