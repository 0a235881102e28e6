from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.memory import cgroup
from gmemd.memory.errors import ProvisionError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "_MOUNT", tmp_path)
    return tmp_path


def limit(directory: Path, maximum: str, current: int, stat: str = "") -> None:
    directory.mkdir(exist_ok=True)
    (directory / "memory.max").write_text(f"{maximum}\n")
    (directory / "memory.current").write_text(f"{current}\n")
    (directory / "memory.stat").write_text(stat)


def test_the_tightest_limit_above_counts(mount: Path) -> None:
    limit(mount / "slice", "1000", 400)
    limit(mount / "slice/service", "max", 300)
    limit(mount / "slice/service/vm", "2000", 100)
    assert cgroup.room_bytes(mount / "slice/service/vm") == 600


def test_without_a_limit_there_is_no_figure(mount: Path) -> None:
    limit(mount / "slice", "max", 400)
    (mount / "bare").mkdir()
    assert cgroup.room_bytes(mount / "slice") is None
    assert cgroup.room_bytes(mount / "bare") is None


def test_clean_cache_is_room(mount: Path) -> None:
    stat = "anon 5\ninactive_file 300\nactive_file 50\nfile_dirty 20\nfile_writeback 10\n"
    limit(mount / "slice", "1000", 900, stat)
    assert cgroup.room_bytes(mount / "slice") == 100 + 320


def test_the_own_cgroup_is_the_one_of_version_2(mount: Path, tmp_path: Path) -> None:
    listing = tmp_path / "root/proc/self/cgroup"
    listing.parent.mkdir(parents=True)
    listing.write_text("4:memory:/old\n0::/system.slice/gmemd.service\n")
    assert cgroup.own_cgroup(tmp_path / "root") == mount / "system.slice/gmemd.service"
    listing.write_text("4:memory:/old\n")
    assert cgroup.own_cgroup(tmp_path / "root") is None


def test_a_named_cgroup_may_be_named_either_way(mount: Path) -> None:
    directory = mount / "machine.slice"
    directory.mkdir()
    (directory / "cgroup.procs").write_text("")
    for name in ("machine.slice", "/machine.slice", str(directory)):
        payer = cgroup.payer_for("db-01", name)
        assert (payer.directory, payer.own) == (directory, False)


@pytest.mark.usefixtures("mount")
@pytest.mark.parametrize("name", ["/nowhere", "../../etc", "/a/../../b"])
def test_a_named_cgroup_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ProvisionError) as caught:
        cgroup.payer_for("db-01", name)
    assert caught.value.reason == "cgroup"
