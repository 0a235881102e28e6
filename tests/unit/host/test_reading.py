from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gmemd.errors import Exit
from gmemd.host.errors import HostError
from gmemd.host.reading import read_cpuset, read_host
from gmemd.kernel.procfs.text import ProcfsError

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"
GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return shutil.copytree(HOSTS / "two-sockets", tmp_path / "host")


def test_two_sockets() -> None:
    host = read_host(HOSTS / "two-sockets")
    first, second = host.nodes
    assert first.cpus == frozenset(range(8)) | frozenset(range(16, 24))
    assert second.distances == {0: 21, 1: 10}
    assert (first.total_bytes, first.free_bytes) == (64 * GIB, 5 * GIB)
    assert first.placeable_available_bytes - first.placeable_free_bytes == 40 * GIB
    assert (second.hugepages[2 * MIB].total, second.hugepages[2 * MIB].free) == (1024, 512)
    assert second.hugepages[GIB].free == 4
    assert host.supports("inode_policy")


def test_nodes_with_holes_in_their_numbering_keep_their_numbers_and_distances() -> None:
    host = read_host(HOSTS / "holes")
    assert [node.id for node in host.nodes] == [0, 2, 5]
    assert host.nodes[1].distances == {0: 21, 2: 10, 5: 31}
    assert host.possible_nodes == frozenset(range(8))
    assert host.node(1) is None
    assert host.cpuset.mems == {0, 2}
    assert host.cpuset.cpus == {0, 1, 2, 3}


def test_a_memoryless_node() -> None:
    host = read_host(HOSTS / "memoryless")
    assert not host.nodes[1].has_memory
    assert not host.nodes[1].movable_only
    assert host.nodes[1].cpus == {4, 5, 6, 7}


def test_a_cpuless_node_of_movable_memory_with_pool_and_weight() -> None:
    host = read_host(HOSTS / "cxl")
    expander = host.nodes[2]
    assert expander.cpus == frozenset()
    assert expander.movable_only
    assert expander.interleave_weight == 2
    assert expander.hugepages[2 * MIB].free == 4096
    assert host.hugepages_reserved == {2 * MIB: 1024}


def test_this_machine() -> None:
    host = read_host(probe=False)
    assert host.features == {}
    assert host.kernel_release == os.uname().release
    assert host.cpuset.cpus >= os.sched_getaffinity(0)
    assert all(node.distances[node.id] == 10 for node in host.nodes)


def test_weights_are_1_where_the_kernel_has_none(tree: Path) -> None:
    shutil.rmtree(tree / "sys/kernel/mm/mempolicy")
    assert [node.interleave_weight for node in read_host(tree).nodes] == [1, 1]


def test_a_directory_that_is_no_host(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such directory") as caught:
        read_host(tmp_path)
    assert caught.value.exit_code is Exit.HOST
    assert "--record" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("sys/devices/system/node/node1/distance", "10\n", "has 1 distances for 2 online nodes"),
        ("sys/devices/system/node/node1/meminfo", "", "cut short"),
        ("sys/devices/system/node/node0/cpulist", "0-x\n", "a number was expected"),
        ("proc/zoneinfo", "Node 0, zone", "cut short"),
        ("proc/self/status", "Name:\tx\n", "holds no Mems_allowed_list"),
        (
            "sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages",
            "many\n",
            "a number was expected",
        ),
    ],
)
def test_a_damaged_file_is_a_typed_error_that_names_it(
    tree: Path, path: str, text: str, said: str
) -> None:
    (tree / path).write_text(text)
    with pytest.raises(ProcfsError, match=said) as caught:
        read_host(tree)
    assert caught.value.path == str(tree / path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1}', "\\xff"])
def test_a_damaged_record_is_a_typed_error(tree: Path, text: str) -> None:
    (tree / "gmemd-host.json").write_text(text)
    with pytest.raises(HostError, match=r"gmemd-host\.json"):
        read_host(tree)


def test_own_cpuset_of_this_process() -> None:
    assert 0 in read_cpuset().mems
