"""Memory in the store outlives every daemon: kept, unused, half made; whatever became of the state.

Each time the daemon is killed, or stopped, and another one starts with what the store has.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.daemon.keeping import Store
from tests.kernel.daemon.outliving import REGIONS, Outliving
from tests.kernel.daemon.vmms import vmm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.daemon.conftest import Daemon

    Damage = Callable[[Outliving, random.Random], None]

MIB = 1 << 20
TRIES = 6
SLOT_BYTES = 64 * MIB
HEADER_BYTES = 100  # at the least, of what was written there


@pytest.fixture
def outliving(daemon: Daemon) -> Iterator[Outliving]:
    with Store(daemon.directory / "notify") as store:
        daemon.store = store
        yield Outliving(daemon, store)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kept_memory_goes_to_the_next_with_its_content(outliving: Outliving, number: int) -> None:
    daemon = outliving.daemon
    daemon.write("vm", "on_vmm_exit: keep\n")
    with outliving.life():
        daemon.wait_for("vm", "ready")
        with vmm(daemon) as first:
            first.do("acquire", "vm")
            first.do("fill", "vm", 5)
        daemon.until(lambda: daemon.describe("vm")["holder"]["alive"] is False)
        outliving.check(REGIONS, 0)
        names = outliving.store.names("r")
        assert daemon.stop(number) == (0 if number == signal.SIGTERM else -number)
    assert outliving.store.names("r") == names
    with outliving.life(), vmm(daemon) as second:
        second.do("acquire", "vm")
        assert second.do("look", "vm") == [5, 5]
        assert outliving.store.names("r") == names
        outliving.check(REGIONS, 1)


def test_kept_memory_is_kept_of_who_exits_while_it_is_down(outliving: Outliving) -> None:
    daemon = outliving.daemon
    daemon.write("vm", "on_vmm_exit: keep\n")
    with vmm(daemon) as first:
        with outliving.life():
            daemon.wait_for("vm", "ready")
            first.do("acquire", "vm")
            first.do("fill", "vm", 5)
        first.kill()
    with outliving.life(), vmm(daemon) as second:
        assert daemon.describe("vm")["holder"]["alive"] is False
        second.do("acquire", "vm")
        assert second.do("look", "vm") == [5, 5]
        outliving.check(REGIONS, 1)


def test_memory_of_who_exits_while_it_is_down_is_given_back(outliving: Outliving) -> None:
    daemon = outliving.daemon
    daemon.write("vm")
    with vmm(daemon) as holder:
        with outliving.life():
            daemon.wait_for("vm", "ready")
            holder.do("acquire", "vm")
        holder.kill()
        assert len(outliving.store.names("r")) == REGIONS
    with outliving.life():
        outliving.check(0, 0)
        assert daemon.describe("vm")["state"] == "waiting"


def test_memory_that_nobody_has_used_yet_is_not_made_twice(outliving: Outliving) -> None:
    daemon = outliving.daemon
    daemon.write("vm")
    with outliving.life():
        daemon.wait_for("vm", "ready")
        outliving.check(REGIONS, 0)
        names = outliving.store.names("r")
    with outliving.life():
        told = daemon.wait_for("vm", "ready")
        outliving.check(REGIONS, 0)
        assert outliving.store.names("r") == names
        assert told["holder"] is None


def test_memory_that_is_being_made_is_made_again_and_nothing_is_left_of_it(
    outliving: Outliving,
) -> None:
    daemon = outliving.daemon
    with outliving.life():
        before = shmem_kibibytes()
        daemon.write("vm", size="1GiB")
        thread = threading.Thread(target=lambda: outliving.try_to(outliving.reload()))
        thread.start()
        while shmem_kibibytes() < before + 64 * 1024:
            assert "vm: ready" not in daemon.log.read_text()
        daemon.stop(signal.SIGKILL)
        thread.join()
    assert outliving.store.names("r") == []
    with outliving.life():
        daemon.wait_for("vm", "ready")
        outliving.check(REGIONS, 0)
        committed = 'gmemd_host_node_committed_bytes{host_node="0"}'
        daemon.until(lambda: daemon.metrics()[committed] == 0)


def shmem_kibibytes() -> int:
    """What memfds and the like have of the host's memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))


def test_what_is_nobodys_is_removed_from_the_store(outliving: Outliving) -> None:
    daemon = outliving.daemon
    daemon.write("vm")
    with outliving.life():
        daemon.wait_for("vm", "ready")
        outliving.check(REGIONS, 0)
    memory = os.memfd_create("guest")
    os.ftruncate(memory, MIB)
    outliving.store.put("r.1.ffffff", memory)
    outliving.store.put("h.ffff", os.pidfd_open(os.getpid()))
    outliving.store.put("stored", os.memfd_create("of no name"))
    with outliving.life():
        daemon.wait_for("vm", "ready")
        outliving.check(REGIONS, 0)
        daemon.until(lambda: outliving.store.names("s") == ["s.1"])


def test_a_store_that_is_full_is_told(outliving: Outliving) -> None:
    daemon = outliving.daemon
    outliving.store.limit = REGIONS + 1  # the state, and all but one
    daemon.write("vm")
    daemon.write("vm-2")
    with outliving.life():
        told = [daemon.wait_for(name, "ready") for name in ("vm", "vm-2")]
        daemon.until(lambda: daemon.metrics()["gmemd_fdstore_missing_fds"] == REGIONS)
        assert daemon.metrics()["gmemd_fdstore_max_fds"] == REGIONS + 1
        assert daemon.metrics()["gmemd_fdstore_fds"] == REGIONS + 1
        told = [daemon.describe(name) for name in ("vm", "vm-2")]
        said = [" ".join(vm["warnings"]) for vm in told]
        assert sum("FileDescriptorStoreMax=" in words for words in said) == 1, said


def in_the_file(outliving: Outliving, chance: random.Random) -> None:
    """The file ends somewhere."""
    cut_short(outliving.daemon.directory / "state/state.json", chance)


def in_the_store(outliving: Outliving, chance: random.Random) -> None:
    """Both slots are overwritten from somewhere on."""
    (state,) = [one for one in outliving.store.kept if one.name.startswith("s.")]
    for slot in range(2):
        where = slot * SLOT_BYTES + chance.randrange(HEADER_BYTES)
        os.pwrite(state.fd, chance.randbytes(4000), where)


def cut_short(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


@pytest.mark.parametrize("damage", [in_the_file, in_the_store])
def test_one_state_that_is_damaged_loses_nothing(outliving: Outliving, damage: Damage) -> None:
    chance = random.Random(seed := time.time_ns())
    daemon = outliving.daemon
    daemon.write("vm")
    with vmm(daemon) as holder:
        with outliving.life():
            daemon.wait_for("vm", "ready")
            holder.do("acquire", "vm")
            holder.do("fill", "vm", 5)
        for _ in range(TRIES):
            damage(outliving, chance)
            with outliving.life():
                assert daemon.describe("vm")["holder"]["pid"] == holder.pid, seed
                assert holder.do("look", "vm") == [5, 5]
                outliving.check(REGIONS, 1)


def test_both_states_damaged_lose_no_memory(outliving: Outliving) -> None:
    chance = random.Random(seed := time.time_ns())
    daemon = outliving.daemon
    daemon.write("vm", "on_vmm_exit: keep\n")
    with outliving.life(), vmm(daemon) as holder:
        daemon.wait_for("vm", "ready")
        holder.do("acquire", "vm")
        outliving.check(REGIONS, 1)
        names = outliving.store.names("r")
    in_the_file(outliving, chance)
    in_the_store(outliving, chance)
    with outliving.life():
        daemon.wait_for("vm", "ready")
        assert set(names) < set(outliving.store.names("r")), seed
        daemon.until(lambda: daemon.metrics()["gmemd_fdstore_unclaimed_fds"] == REGIONS)
        assert "Traceback" not in daemon.log.read_text()
    with outliving.life():
        daemon.wait_for("vm", "ready")
        assert set(names) < set(outliving.store.names("r")), seed
