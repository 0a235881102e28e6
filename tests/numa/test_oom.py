"""What stands between a strict bind and the kernel's OOM killer, and what the killer does."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.host.zones import placeable
from gmemd.memory.errors import ProvisionError
from gmemd.spec.model import Backend, PolicyMode
from tests.numa.provisioning import (
    MIB,
    NO_GUARD,
    SMALL_RESERVE,
    available,
    bytes_by_node,
    difference,
    fill_with_clean_cache,
    filled,
    planned,
    provisioned,
    region,
    spec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.memory.progress import Progress


BYSTANDER = """
import sys
memory = bytearray(150 << 20)
memory[::4096] = b"x" * len(memory[::4096])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[str]]:
    """A process of 150 MiB that has no part in any of this."""
    process = subprocess.Popen(
        [sys.executable, "-c", BYSTANDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.communicate()


def kills() -> int:
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def test_a_strict_bind_that_cannot_fit_is_refused_with_figures() -> None:
    plan = planned(spec(region(1024, {2})))
    assert not plan.admitted
    assert plan.refusals[0].needed_bytes == 1024 * MIB
    assert plan.refusals[0].available_bytes < 1024 * MIB


def test_a_node_that_fills_up_meanwhile_ends_it_at_the_reserve() -> None:
    """Admitted, as it fits; then another program takes the room while it is prefaulted."""
    plan = planned(spec(region(600, {2})))
    assert plan.admitted, plan.refusals
    killed, before = kills(), bytes_by_node()
    with ExitStack() as others:

        def take_the_room(progress: Progress) -> None:
            if progress.allocated_bytes:
                others.enter_context(filled(2, SMALL_RESERVE.minimum_bytes + 40 * MIB))

        with (
            pytest.raises(ProvisionError) as caught,
            provisioned(plan, progress=take_the_room),
        ):
            pass
        assert available(2) > SMALL_RESERVE.minimum_bytes
    assert (caught.value.reason, caught.value.host_node) == ("node-full", 2)
    assert caught.value.message.startswith("node 2 is full")
    assert 0 < caught.value.needed_bytes < 600 * MIB
    assert kills() == killed
    assert sum(difference(bytes_by_node(), before).values()) == pytest.approx(0, abs=4)


def test_an_interleave_stops_when_the_fuller_of_its_nodes_is_at_its_reserve() -> None:
    plan = planned(spec(region(600, {2, 3}, PolicyMode.INTERLEAVE)))
    with (
        filled(3, SMALL_RESERVE.minimum_bytes + 100 * MIB),
        pytest.raises(ProvisionError) as caught,
        provisioned(plan),
    ):
        pass
    assert (caught.value.reason, caught.value.host_node) == ("node-full", 3)


def test_preferred_spills_and_is_not_stopped() -> None:
    plan = planned(spec(region(300, {2}, PolicyMode.PREFERRED)))
    with filled(2, 100 * MIB):
        before = bytes_by_node()
        with provisioned(plan):
            found = difference(bytes_by_node(), before)
    assert sum(found.values()) == pytest.approx(300, abs=4)
    assert found[2] < 200


@pytest.mark.parametrize("backend", list(Backend))
def test_with_all_guards_off_the_helper_alone_is_killed(
    bystander: subprocess.Popen[str], backend: Backend
) -> None:
    plan = planned(spec(region(1100, {2}, backend=backend)), reserve=NO_GUARD)
    killed, before = kills(), bytes_by_node()
    with pytest.raises(ProvisionError) as caught, provisioned(plan, reserve=NO_GUARD):
        pass
    assert kills() > killed
    assert bystander.poll() is None
    assert (caught.value.reason, caught.value.host_node) == ("node-full", 2)
    assert caught.value.message.startswith("node 2 is full: the kernel's OOM killer")
    assert sum(difference(bytes_by_node(), before).values()) == pytest.approx(0, abs=16)
    assert available(2) > 800 * MIB


def test_a_bind_that_fits_only_without_the_clean_cache_succeeds(tmp_path: Path) -> None:
    free = placeable()[2].placeable_free_bytes
    fill_with_clean_cache(2, free - 60 * MIB, tmp_path / "sparse")
    zones = placeable()[2]
    assert zones.placeable_free_bytes < 200 * MIB, "the cache is where it was meant to be"
    plan = planned(spec(region(592, {2})))
    assert plan.admitted, plan.refusals
    killed = kills()
    with provisioned(plan) as regions:
        assert regions[0].plan.size_bytes == 592 * MIB
    assert kills() == killed
