"""The file for node_exporter: whole or not at all, readable, nothing that only a daemon knows."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from gmemd.export.snapshot import Running, Snapshot, Unmatched, VmState, VmStatus
from gmemd.export.textfile import TextfileError, render_textfile, write_textfile
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from pathlib import Path

ODD = 'a "quoted"\nname\\ \u00fc'


def snapshot(*, unknown: str = "") -> Snapshot:
    running = Running(
        pid=4321,
        program="qemu-system-x86_64",
        kvm=True,
        unit="",
        cgroup="/",
        started_timestamp=1.0,
        unknown=unknown,
        unmatched=(Unmatched(64 << 20, 4096, "anonymous", "hot-added"),),
    )
    vm = VmStatus(ODD, Source.OBSERVE, VmState.READY, 1.0, running=running)
    return Snapshot("1.2.3", 2.0, vms=(vm,))


def test_what_is_in_it() -> None:
    text = render_textfile(snapshot(unknown="migrating")).decode()
    name = 'a \\"quoted\\"\\nname\\\\ \u00fc'
    assert f'gmemd_vm_memory_unknown{{reason="migrating",vm="{name}"}} 1.0' in text
    assert f'gmemd_vm_unmatched_bytes{{vm="{name}"}} 6.7108864e+07' in text
    assert 'gmemd_build_info{version="1.2.3"} 1.0' in text
    assert "4321" not in text


def test_nothing_that_only_a_daemon_knows() -> None:
    text = render_textfile(snapshot()).decode()
    for name in ("gmemd_config", "gmemd_audit_interval", "committed", "process_", "python_"):
        assert name not in text
    assert "gmemd_vm_memory_unknown{" not in text
    assert "gmemd_vm_spec_error{" not in text


def test_it_replaces_the_file_whole_and_all_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "gmemd.prom"
    path.write_bytes(b"old\n")
    with path.open("rb") as reader:
        write_textfile(path, b"new\n")
        assert reader.read() == b"old\n"
    assert path.read_bytes() == b"new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [found.name for found in tmp_path.iterdir()] == ["gmemd.prom"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "gmemd.prom"
    path.mkdir()
    (path / "inside").write_text("kept")
    with pytest.raises(TextfileError, match="cannot be written"):
        write_textfile(path, b"new\n")
    assert (path / "inside").read_text() == "kept"
    assert [found.name for found in tmp_path.iterdir()] == ["gmemd.prom"]


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TextfileError) as caught:
        write_textfile(tmp_path / "missing/gmemd.prom", b"new\n")
    assert "mkdir -p" in (caught.value.hint or "")
