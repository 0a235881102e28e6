"""With every guard before it blinded, the last one holds: the helper dies, and nobody else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
NODE = 2
LEFT_OVER = 96 * MIB
BYSTANDER = f"""
import mmap, sys
memory = mmap.mmap(-1, {150 * MIB})
for page in range(0, len(memory), 4096):
    memory[page] = 1
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stale_zoneinfo(tmp_path: Path) -> Path:
    """What the kernel says of its zones now, before the node is filled."""
    path = tmp_path / "zoneinfo"
    shutil.copyfile("/proc/zoneinfo", path)
    return path


@pytest.fixture
def full_node(stale_zoneinfo: Path, tmp_path: Path) -> Iterator[None]:
    """The node filled, but for little, with memory that can't be reclaimed."""
    assert stale_zoneinfo.exists()
    at = tmp_path / "full"
    at.mkdir()
    unit.must("mount", "-t", "tmpfs", "-o", f"mpol=bind:{NODE},size=100%", "tmpfs", str(at))
    count = (unit.free_bytes(NODE) - LEFT_OVER) // MIB
    unit.must("dd", "if=/dev/zero", f"of={at}/filling", "bs=1M", f"count={count}")
    yield
    unit.must("umount", str(at))


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[str]]:
    """A process of 150 MiB that has no part in it."""
    command = ("numactl", "--membind=0", sys.executable, "-c", BYSTANDER)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


@pytest.fixture
def blinded(stale_zoneinfo: Path) -> Iterator[None]:
    """A unit that sees the old figures, so that admission and the chunks' guard let it pass."""
    unit.install()
    seen = Path("/run/stale-zoneinfo")
    shutil.copyfile(stale_zoneinfo, seen)
    unit.DROP_INS.mkdir(parents=True, exist_ok=True)
    drop_in = unit.DROP_INS / "blinded.conf"
    drop_in.write_text(f"[Service]\nBindReadOnlyPaths={seen}:/proc/zoneinfo\n")
    unit.must("systemctl", "daemon-reload")
    yield
    unit.stop()
    unit.clear_specs()
    drop_in.unlink()
    unit.must("systemctl", "daemon-reload")


@pytest.mark.usefixtures("blinded", "full_node")
def test_the_helper_alone_is_killed(bystander: subprocess.Popen[str]) -> None:
    unit.clear_specs()
    unit.write_spec("web-01")
    spec = unit.write_spec("big-01", memory="384MiB", host_node=NODE)
    free_before = unit.free_bytes(NODE)
    unit.start()
    pid = unit.unit("MainPID")
    vm = unit.wait_for("big-01", "failed")
    assert vm["message"].startswith(f"node {NODE} is full: ")
    assert vm["hint"]
    assert unit.wait_for("web-01", "ready")
    assert (unit.unit("ActiveState"), unit.unit("MainPID")) == ("active", pid)
    assert unit.unit("NRestarts") == "0"
    assert bystander.poll() is None
    spec.unlink()
    unit.must("systemctl", "reload", "gmemd.service")
    unit.wait_until_gone("big-01")
    assert free_before - unit.free_bytes(NODE) < 64 * MIB
    killed = [line for line in unit.must("dmesg").splitlines() if "Out of memory" in line]
    assert killed
    assert all("oom_score_adj:1000" in line for line in killed)
