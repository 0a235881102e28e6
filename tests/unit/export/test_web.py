"""What is in force when files change: the newest good version, and never less."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from gmemd.export import protection as protection_module
from gmemd.export.web import Web
from gmemd.spec.problems import SpecError
from tests.certificates import hashed

if TYPE_CHECKING:
    from pathlib import Path

OLD = f"basic_auth_users: {{alice: {hashed('a')}}}\n"
NEW = f"basic_auth_users: {{bob: {hashed('b')}}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(OLD)
    path.chmod(0o600)
    return path


def is_successful(web: Web) -> float:
    (family,) = web.collect()
    return family.samples[0].value


def test_a_broken_first_version_is_an_error(path: Path) -> None:
    path.write_text("basic_auth_users: {alice: a}\n")
    with pytest.raises(SpecError, match="is not a bcrypt hash"):
        Web(path)
    path.unlink()
    with pytest.raises(SpecError, match="can't be read"):
        Web(path)


def test_a_change_is_in_force_at_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    web = Web(path)
    assert web.protection().users.keys() == {"alice"}
    path.write_text(NEW)
    assert web.protection().users.keys() == {"bob"}
    assert web.protection().users.keys() == {"bob"}
    assert caplog.text.count("was read again: no TLS, 1 user") == 1
    assert caplog.text.count("passwords are sent in the clear") == 1
    assert is_successful(web) == 1


def test_a_broken_version_leaves_the_last_one_in_force_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web = Web(path)
    path.write_text("basic_auth_users: {alice: hunter2}\n")
    for _ in range(3):
        assert web.protection().users.keys() == {"alice"}
    assert caplog.text.count("can't be used, what it was before stays in force") == 1
    assert "hunter2" not in caplog.text
    assert is_successful(web) == 0
    path.unlink()
    assert web.protection().users.keys() == {"alice"}
    assert "No such file" in caplog.text
    path.write_text(NEW)
    assert web.protection().users.keys() == {"bob"}
    assert is_successful(web) == 1


def test_what_has_settled_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection_module, "SETTLED_SECONDS", 0.0)
    reads = []
    real = protection_module.read_file
    monkeypatch.setattr(
        protection_module, "read_file", lambda path: (reads.append(path), real(path))[1]
    )
    time.sleep(0.01)
    web = Web(path)
    for _ in range(5):
        web.protection()
    assert reads == [path]


def test_a_change_that_looks_the_same_is_seen_while_it_is_fresh(path: Path) -> None:
    """Written in place within one tick of the file system's clock: same inode, size and times."""
    assert len(NEW) != len(OLD)
    web = Web(path)
    status = path.stat()
    path.write_text(OLD.replace("alice", "carol"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    web._reading.stamps = dict.fromkeys(web._reading.stamps, protection_module.stamp_of(path))
    assert web.protection().users.keys() == {"carol"}
