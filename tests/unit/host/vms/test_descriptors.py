"""What another process has open, told from a tree of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.host.vms.descriptors import read_descriptors
from gmemd.kernel.procfs.text import ProcfsError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A process with two files of which one's fdinfo is there."""
    process = tmp_path / "proc/7"
    (process / "fd").mkdir(parents=True)
    (process / "fdinfo").mkdir()
    for fd in (3, 4):
        (process / "fd" / str(fd)).symlink_to(f"/memfd:{fd} (deleted)")
    (process / "fdinfo/3").write_text("pos:\t0\nino:\t33\n")
    return tmp_path


def test_what_was_closed_meanwhile_is_left_out(root: Path) -> None:
    assert read_descriptors(7, root).inodes == {3: 33}


def test_what_can_not_be_read_now_is_not_taken_for_closed(root: Path) -> None:
    (root / "proc/7/fdinfo/4").mkdir()
    with pytest.raises(ProcfsError, match="EISDIR"):
        read_descriptors(7, root)
