"""2,500 descriptors in the store: the service starts with all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service import crash_daemon as crash
from tests.service import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

VMS = {f"many-{n}": "guest_memfd" if n % 2 else "memfd" for n in range(10)}
REGIONS = 250  # of each: a VMM can be handed 253
PAGE = 4096
SPEC = """\
version: 1
vm: {vm}
source: create
backend: {backend}
prefault: false
guest_nodes:
  - id: 0
    regions:
"""
REGION = "      - {size: 4KiB, host_nodes: 1, policy: bind}\n"


@pytest.fixture(scope="module")
def names() -> Iterator[list[str]]:
    """The names of all regions in the store."""
    with crash.installed():
        for vm, backend in VMS.items():
            spec = SPEC.format(vm=vm, backend=backend) + REGION * REGIONS
            (unit.SPECS / f"{vm}.yaml").write_text(spec)
        unit.start()
        for vm in VMS:
            unit.wait_for(vm, "ready")
        yield regions()


def regions() -> list[str]:
    return sorted(fd.name for fd in crash.stored() if fd.name.startswith("r."))


def test_all_are_in_the_store(names: list[str]) -> None:
    assert len(set(names)) == len(names) == REGIONS * len(VMS)


def test_all_come_back(names: list[str]) -> None:
    before = crash.daemon_pid()
    unit.must("systemctl", "restart", "gmemd.service")
    crash.await_answer(before)
    assert {vm: told["state"] for vm, told in unit.vms().items()} == dict.fromkeys(VMS, "ready")
    assert regions() == names
    opened = crash.open_inodes(crash.daemon_pid())
    mine = {crash.region_name(inode): count for inode, count in opened.items()}
    assert [mine.get(name) for name in names] == [1] * len(names)
    assert "gmemd_fdstore_missing_fds 0.0" in unit.get(crash.METRICS, "/metrics")
