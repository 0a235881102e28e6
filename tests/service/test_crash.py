"""Guests write on while gmemd dies, fails to start, is upgraded, is stopped and started."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

import gmemd
from tests.service import unit
from tests.service.crash import FAILURES, VERSIONS, Scene
from tests.service.crash_vmm import running
from tests.service.crash_vms import KEPT, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = 10
QUIET = (2, 3)
"""Host nodes without CPUs, on which nobody else's memory comes and goes."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        scene.check()
        yield scene


def test_killed_at_random_moments(scene: Scene) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201
    chance, kills = random.Random(seed), 0
    while kills < KILLS:
        kills += scene.kill_at_random(chance)


def test_failing_to_start_past_any_limit(scene: Scene) -> None:
    scene.loop(FAILURES)


def test_becoming_another_version_and_the_first_again(scene: Scene) -> None:
    for version in (*VERSIONS, gmemd.__version__):
        scene.upgrade(version)


def test_stopped_and_started_while_a_vmm_exits(scene: Scene) -> None:
    vmm = scene.vmms[KEPT.name]
    round_ = vmm.do("finish")["rounds"]
    scene.stop_and_start(meanwhile=lambda: scene.end(KEPT))
    assert unit.vms()[KEPT.name]["holder"]["alive"] is False
    with running("crash-kept-again") as another:
        another.do("acquire", KEPT.name)
        assert another.do("look") == scene.pieces[KEPT.name]
        assert another.do("wrong", round_) == ""
        scene.vmms[KEPT.name] = another
        scene.check()
        scene.end(KEPT)


def test_all_was_right_and_is_given_back(scene: Scene) -> None:
    scene.vms = [vm for vm in scene.vms if vm is not KEPT]
    assert scene.finish()
    before = {node: unit.unevictable_bytes(node) for node in QUIET}
    assert all(before[node] >= placed(scene, node) for node in QUIET), before
    scene.give_back()
    deadline = time.monotonic() + unit.PATIENCE_SECONDS
    while left := sum(map(unit.unevictable_bytes, QUIET)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def placed(scene: Scene, host_node: int) -> int:
    """Bytes that the guests have on a host node alone."""
    nodes = [node for vm in scene.vms for node in vm.nodes if node.host_nodes == (host_node,)]
    return sum(node.mib for node in nodes) * MIB
