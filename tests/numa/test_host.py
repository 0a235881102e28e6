"""The lab's host as `gmemd host` reads and probes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gmemd.host.features import probe_features
from gmemd.host.reading import read_host
from gmemd.host.verdict import judge
from gmemd.host.zones import placeable
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.mempolicy import MemPolicy, set_task_policy

MIB = 1 << 20
GIB = 1 << 30


def test_nodes_cpus_and_distances_are_the_machines() -> None:
    host = read_host()
    assert [node.id for node in host.nodes][:4] == [0, 1, 2, 3]
    assert [bool(node.cpus) for node in host.nodes][:4] == [True, True, False, False]
    for node in host.nodes[:4]:
        assert node.distances[node.id] == 10
        assert all(figure > 10 for other, figure in node.distances.items() if other != node.id)
        assert 0 < node.placeable_available_bytes <= node.placeable_bytes <= GIB


def test_every_feature_is_there() -> None:
    assert {name: f.supported for name, f in probe_features().items() if not f.supported} == {}
    assert judge(read_host()).text == "gmemd can place guest_memfd by inode policy here"


def test_placeable_available_falls_by_what_a_node_gives_to_guest_memfd() -> None:
    flags = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED
    with Kvm() as kvm, kvm.create_vm() as vm:
        fd = vm.create_guest_memfd(256 * MIB, flags)
        before = placeable()[2]
        set_task_policy(MemPolicy("bind", frozenset({2})))
        try:
            with Mapping(fd, 0, 256 * MIB, protection="read-write") as window:
                window.populate_write(0, 256 * MIB)
                after = placeable()[2]
        finally:
            set_task_policy(MemPolicy("default"))
            os.close(fd)
    taken = before.placeable_available_bytes - after.placeable_available_bytes
    assert abs(taken - 256 * MIB) < 16 * MIB
    assert after.placeable_bytes == before.placeable_bytes


def test_clean_page_cache_is_available_and_not_free() -> None:
    file = Path("/var/tmp/gmemd-cache")  # noqa: S108  on the disk: a tmpfs has no clean pages
    script = f"open({str(file)!r}, 'wb').write(bytes({200 * MIB})); __import__('os').sync()"
    before = placeable()[3]
    try:
        bound = ["numactl", "--membind=3", sys.executable, "-c", script]
        subprocess.run(bound, check=True)
        after = placeable()[3]
        assert before.placeable_free_bytes - after.placeable_free_bytes > 150 * MIB
        lost = before.placeable_available_bytes - after.placeable_available_bytes
        assert lost < 50 * MIB
    finally:
        file.unlink(missing_ok=True)


def test_a_cpuset_is_seen_and_compared(tmp_path: Path) -> None:
    spec = tmp_path / "db.yaml"
    spec.write_text(
        "version: 1\nvm: db\nsource: create\nguest_nodes:\n"
        "  - {id: 0, vcpus: 0, memory: 64MiB, host_nodes: 2, policy: bind}\n"
    )
    cgroup = Path("/sys/fs/cgroup/gmemd-test-cpuset")
    if not (cgroup.parent / "cgroup.controllers").exists():
        pytest.skip("needs cgroup v2 at its usual place")
    (cgroup.parent / "cgroup.subtree_control").write_text("+cpuset")
    cgroup.mkdir()
    try:
        (cgroup / "cpuset.mems").write_text("0-1")
        shell = f'echo $$ > {cgroup}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", shell, "sh", sys.executable, "-m", "gmemd", "plan", "--json", spec]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        (refusal,) = json.loads(done.stdout)["vms"][0]["refusals"]
        assert refusal["reason"] == "cpuset"
        assert "allows memory of nodes 0-1 only" in refusal["message"]
    finally:
        cgroup.rmdir()


@pytest.mark.lab(variant="movable")
def test_a_node_of_movable_memory_is_told_from_the_others() -> None:
    host = read_host()
    movable = [node for node in host.nodes if node.movable_only]
    assert len(movable) == 1
    assert movable[0].cpus == frozenset()
    assert movable[0].placeable_available_bytes == 0
    assert movable[0].movable_available_bytes > 0
