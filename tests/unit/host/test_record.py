from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gmemd.host.errors import HostError
from gmemd.host.reading import read_host
from gmemd.host.record import record

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"


@pytest.mark.parametrize("name", ["two-sockets", "holes", "memoryless", "cxl", "no-kvm"])
def test_a_record_reads_as_the_host_it_was_made_from(name: str, tmp_path: Path) -> None:
    host = read_host(HOSTS / name)
    written = record(tmp_path / "copy", host, HOSTS / name)
    assert read_host(tmp_path / "copy") == host
    assert written == sum(path.is_file() for path in (tmp_path / "copy").rglob("*"))


def test_this_machine_is_recorded_without_what_runs_on_it(tmp_path: Path) -> None:
    host = read_host(probe=False)
    record(tmp_path, host)
    recorded = read_host(tmp_path)
    assert recorded.nodes[0].cpus == host.nodes[0].cpus
    assert replace(recorded, nodes=(), hugepages_reserved={}) == replace(
        host, nodes=(), hugepages_reserved={}
    )
    status = (tmp_path / "proc/self/status").read_text().splitlines()
    assert [line.partition(":")[0] for line in status] == ["Cpus_allowed_list", "Mems_allowed_list"]


def test_a_directory_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(HostError, match="isn't empty"):
        record(tmp_path, read_host(HOSTS / "holes"), HOSTS / "holes")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="recording to"):
        record(tmp_path / "file/below", read_host(HOSTS / "holes"), HOSTS / "holes")
