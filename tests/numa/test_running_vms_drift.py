"""A running VM whose memory was moved away: what `gmemd audit --all` says of it, and first."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from gmemd.export.textfile import SUFFIX
from tests.numa.running import (
    MIB,
    Vm,
    addresses,
    block,
    by_node,
    gmemd_audit,
    numa_maps,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.qemu import Qemu

HEALTHY = Vm("a-healthy", "tcg", (block("r0", 32, "bind", 1), block("r1", 32, "bind", 3)))
MOVED = Vm("moved", "kvm", (block("r0", 32, "bind", 1), block("r1", 48, "bind", 2)))
INTERLEAVED = Vm("shares", "tcg", (block("f0", 32, "interleave", 1, 2, kind="memfd"),))


@pytest.fixture(scope="module")
def qemus() -> Iterator[dict[str, Qemu]]:
    """Three VMs; two of them have nothing on node 2 any more."""
    with started([HEALTHY, MOVED, INTERLEAVED]) as qemus:
        for name in ("moved", "shares"):
            subprocess.run(["migratepages", str(qemus[name].pid), "2", "0"], check=True)
        yield qemus


def counted(qemu: Qemu, name: str) -> dict[int, int]:
    """Bytes per host node of a block, by the kernel."""
    return numa_maps(qemu.pid)[addresses(qemu)[name]]


def test_moved_memory_is_told_with_cause_and_remedy(qemus: dict[str, Qemu]) -> None:
    assert counted(qemus["moved"], "r1") == {0: 48 * MIB}
    audited = gmemd_audit("--all", "--full", "--json")
    assert audited.exit_code == 1
    assert [vm["vm"] for vm in audited.report["vms"]] == ["moved", "shares", "a-healthy"]
    moved = audited.vms["moved"]
    assert moved["drifting"]
    assert moved["state"] == "degraded"
    in_place, misplaced = (node["drift"] for node in moved["guest_nodes"])
    assert (in_place["drifting"], in_place["misplaced"]) == (False, 0)
    assert misplaced["misplaced"] == 48 * MIB
    assert by_node(misplaced["by_node"]) == {0: 48 * MIB}
    assert misplaced["host_nodes_allowed"] == [2]
    assert misplaced["drift_ratio"] == misplaced["drift_lower_ratio"] == 1
    assert misplaced["policy_match"] is True
    assert misplaced["cause"] == "moved"
    assert (
        "its command line asks bind 2, which the kernel holds: moved since" in (misplaced["detail"])
    )
    assert "migratepages" in misplaced["remedy"]
    assert "from node 0 to node 2" in misplaced["remedy"]
    assert not audited.vms["a-healthy"]["drifting"]
    assert audited.report["summary"]["misplaced"] == (48 + 16) * MIB
    assert audited.report["summary"]["drifting"] == 2


def test_a_sample_knows_it_too_and_text_marks_it(qemus: dict[str, Qemu]) -> None:
    audited = gmemd_audit("--all")
    assert audited.exit_code == 1
    lines = audited.stdout.splitlines()
    assert lines[0].startswith("moved  degraded  observe, since ")
    assert f"pid {qemus['moved'].pid} " in lines[0]
    assert lines[1].startswith("  guest node 1: moved: about 48MiB on node 0; its command")
    assert lines[2].startswith("  hint: move its pages back (migratepages as root")
    (row,) = [line for line in lines if line.startswith("         1  48MiB")]
    assert re.search(r" 100% \(>?99(\.\d)?% to 100%\) !", row), row
    assert "~48MiB 100% !" in row
    assert lines[-1].endswith("2 VMs drift")
    alone = gmemd_audit("moved")
    assert alone.exit_code == 1
    assert "remedy: move its pages back" in alone.stdout
    assert gmemd_audit("a-healthy").exit_code == 0


@pytest.mark.usefixtures("qemus")
def test_the_metrics_tell_more_than_the_tolerance(tmp_path: Path) -> None:
    path = tmp_path / f"gmemd{SUFFIX}"
    audited = gmemd_audit("--all", "--format", "prometheus", "--output", str(path))
    assert (audited.exit_code, audited.stdout) == (1, "")
    text = path.read_text()
    subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)
    assert list(tmp_path.iterdir()) == [path]

    def value(metric: str, guest_node: int, vm: str = "moved") -> float:
        labels = f'guest_node="{guest_node}",vm="{vm}"'
        (found,) = re.findall(
            rf"^gmemd_guest_node_{metric}\{{{labels}\}} (\S+)$", text, re.MULTILINE
        )
        return float(found)

    tolerance = value("drift_tolerance_ratio", 1)
    assert value("drift_lower_ratio", 1) > 0.99 > tolerance == 0.01
    assert value("drift_upper_ratio", 1) == 1
    assert value("drift_lower_ratio", 0) == 0
    assert value("drift_lower_ratio", 0, "a-healthy") == 0
    assert value("misplaced_bytes", 1) == pytest.approx(48 * MIB, rel=0.02)


def test_pages_that_are_moved_back_are_well_again(qemus: dict[str, Qemu]) -> None:
    """What the remedy says to do is what helps."""
    subprocess.run(["migratepages", str(qemus["moved"].pid), "0", "2"], check=True)
    audited = gmemd_audit("--pid", str(qemus["moved"].pid), "--full", "--json")
    assert audited.exit_code == 0
    assert json.loads(audited.stdout)["state"] == "ready"
    assert counted(qemus["moved"], "r1") == {2: 48 * MIB}
