from pathlib import Path

import pytest

from gmemd.kernel.mempolicy import RELATIVE_NODES, STATIC_NODES, MemPolicy
from gmemd.kernel.nodes import nodes_with_memory, usable_nodes


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("0\n", {0}), ("0-3\n", {0, 1, 2, 3}), ("0,2-3,8\n", {0, 2, 3, 8}), ("\n", set())],
)
def test_nodes_with_memory_are_read(tmp_path: Path, text: str, nodes: set[int]) -> None:
    directory = tmp_path / "sys/devices/system/node"
    directory.mkdir(parents=True)
    (directory / "has_memory").write_text(text)
    assert nodes_with_memory(tmp_path) == nodes


@pytest.mark.parametrize(
    ("mode", "nodes", "flags", "usable", "kept"),
    [
        ("bind", {0, 5}, 0, {0, 1}, {0}),
        ("bind", {5}, 0, {0, 1}, set()),
        ("bind", {0, 2}, STATIC_NODES, {2, 3}, {2}),
        ("bind", {0, 1}, RELATIVE_NODES, {2, 5}, {2, 5}),
        ("bind", {0, 2}, RELATIVE_NODES, {2, 5}, {2}),
        ("bind", {3}, RELATIVE_NODES, {2, 5}, {5}),
        ("bind", {3}, RELATIVE_NODES, set(), set()),
        ("preferred", {1, 3}, 0, {0, 1, 2, 3}, {1}),
        ("preferred", {1, 3}, 0, {0, 3}, {3}),
    ],
)
def test_what_remains_of_a_policy(
    mode: str, nodes: set[int], flags: int, usable: set[int], kept: set[int]
) -> None:
    policy = MemPolicy(mode, frozenset(nodes), flags)
    assert usable_nodes(policy, frozenset(usable)) == kept
