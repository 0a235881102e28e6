from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.desired import Desired, ReloadError, compare, read_desired
from gmemd.spec.model import Backend, GuestNode, PolicyMode, Source
from tests.unit.daemon.vms import MIB, spec

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
version: 1
vm: {vm}
source: create
guest_nodes:
  - {{id: 0, memory: 8MiB, host_nodes: 0, policy: bind}}
"""


def write(directory: Path, vm: str, text: str = GOOD) -> None:
    (directory / f"{vm}.yaml").write_text(text.format(vm=vm))


def test_an_empty_directory_is_fine_at_start(tmp_path: Path) -> None:
    assert read_desired([tmp_path]).names == frozenset()


def test_a_broken_file_keeps_its_vms_last_good_version(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    before = read_desired([tmp_path])
    write(tmp_path, "b", "vm: [")
    after = read_desired([tmp_path], before)
    assert after.specs == before.specs
    assert set(after.broken) == {"b"}
    assert after.problems


def test_a_file_broken_from_the_start_is_known_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, "b", "vm: [")
    desired = read_desired([tmp_path])
    assert (dict(desired.specs), set(desired.broken), desired.names) == ({}, {"b"}, {"b"})


def test_all_files_broken_is_not_the_same_as_none_left(tmp_path: Path) -> None:
    write(tmp_path, "a")
    before = read_desired([tmp_path])
    write(tmp_path, "a", "vm: [")
    assert read_desired([tmp_path], before).specs == before.specs


def test_none_left_is_taken_for_a_mistake(tmp_path: Path) -> None:
    write(tmp_path, "a")
    before = read_desired([tmp_path])
    (tmp_path / "a.yaml").unlink()
    with pytest.raises(ReloadError, match="nothing was released") as refused:
        read_desired([tmp_path], before)
    assert refused.value.hint
    assert read_desired([tmp_path], Desired()).names == frozenset()


def test_a_missing_directory_is_an_error_at_start_and_later(tmp_path: Path) -> None:
    for before in (None, Desired()):
        with pytest.raises(ReloadError, match="gone"):
            read_desired([tmp_path / "gone"], before)


@pytest.mark.parametrize(
    ("region", "word"),
    [
        ({"size_bytes": 16 * MIB}, "size of guest node 0"),
        ({"backend": Backend.MEMFD}, "backend of guest node 0"),
        ({"backend": Backend.MEMFD, "page_size": 2 * MIB}, "page_size of guest node 0"),
    ],
)
def test_other_memory_is_another_shape(region: dict[str, object], word: str) -> None:
    change = compare(spec(), spec(**region))
    assert word in change.shape


def test_another_source_is_another_shape() -> None:
    assert compare(spec(), spec().model_copy(update={"source": Source.OBSERVE})).shape == (
        "source",
    )


def test_another_guest_node_is_another_shape() -> None:
    one = spec()
    (node,) = one.guest_nodes
    two = one.model_copy(update={"guest_nodes": (node, node.model_copy(update={"id": 1}))})
    assert compare(one, two).shape == ("guest_nodes",)


def test_another_policy_is_no_other_shape() -> None:
    change = compare(spec(), spec(policy=PolicyMode.PREFERRED, host_nodes=frozenset({1})))
    assert change.shape == ()
    assert change.placement == ("policy of guest node 0", "host_nodes of guest node 0")


def test_tolerance_and_topology_are_neither() -> None:
    one = spec()
    node = GuestNode(id=0, vcpus=(3,), regions=one.guest_nodes[0].regions)
    other = one.model_copy(update={"drift_tolerance": 0.5, "guest_nodes": (node,)})
    change = compare(one, other)
    assert change.other == ("drift_tolerance", "topology of guest node 0")
    assert not change.shape
    assert change


def test_where_the_file_lies_is_no_change() -> None:
    assert not compare(spec(), spec().model_copy(update={"path": "/run/gmemd/vms.d/vm.yaml"}))
