"""What systemd passes, to a process of our own as it would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from gmemd.daemon.passed import passed_fds, sort_passed

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TAKE = """\
import json, os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from gmemd.daemon.passed import passed_fds
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


def test_each_is_sorted_by_its_name_and_what_is_for_nothing_is_to_leave_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    names = ("other", "io.gmemd", "io.gmemd", "gmemd-metrics", "r.1a.2", "h.1", "gmemd-metrics")
    fds = [os.open(tmp_path / "file", os.O_RDONLY) for _ in names]
    passed = sort_passed(zip(names, fds, strict=True))
    assert (passed.api, passed.metrics) == (fds[1], [fds[3], fds[6]])
    stored = [(name, fd) for name, fd in zip(names, fds, strict=True) if fd not in passed.metrics]
    assert passed.stored == [pair for pair in stored if pair[1] != passed.api]
    assert "(other), passed by systemd, is not used" in caplog.text
    for fd in fds:
        os.close(fd)
