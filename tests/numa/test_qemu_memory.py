"""Real QEMU, unmodified, on memory of gmemd's, or adopted: its guest's pages are where declared.

The kernel's own account of QEMU's mappings, and numastat's, are held against what gmemd says.
"""

from __future__ import annotations

import json
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.client import Client
from gmemd.client.errors import AmbiguousError
from tests.kernel.daemon.conftest import Daemon
from tests.numa.firmware import LOWEST, Guest, start_guest
from tests.numa.handing import MIB, audited, bound, seen, write_spec
from tests.numa.running import addresses, numa_maps, numastat, total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.client.types import Vm

SIZE = 32 * MIB
STEP = 4 * MIB
NAMES = {"run-01", "by-pid", "by-name", "dimm"}
BLOCKS = ("m0", "m1")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    made.configure(discovery=True)
    nodes = bound(32, 2), bound(32, 3)
    write_spec(made, "run-01", *nodes, source="create", backend="memfd", prefault="false")
    adopted = {"source": "adopt", "backend": "memfd"}
    write_spec(made, "by-pid", *nodes, match="{qemu_name: nobody}", **adopted)
    write_spec(made, "by-name", *nodes, match="{qemu_name: named}", **adopted)
    (made.vms / "dimm.yaml").write_text(DIMM)
    with made.running():
        made.wait_for("run-01", "ready")
        yield made


DIMM = """\
version: 1
vm: dimm
source: adopt
backend: memfd
guest_nodes:
  - id: 0
    regions:
      - {size: 32MiB, host_nodes: 3, memdev: dimm}
      - {size: 32MiB, host_nodes: 2, memdev: boot}
"""


def two_nodes(*backends: str) -> list[str]:
    """The arguments for two guest nodes, each of a backend of its own."""
    words = ["-m", "64M"]
    for number, backend in enumerate(backends):
        words += ["-object", f"{backend},id=m{number},size=32M"]
        words += ["-numa", f"node,nodeid={number},memdev=m{number}"]
    return words


MEMFDS = two_nodes("memory-backend-memfd", "memory-backend-memfd")


def write_a_step(guest: Guest, step: int) -> None:
    """Has the guest write to a step of each guest node."""
    for start in (0, SIZE):
        guest.write(start + LOWEST + step * STEP, STEP)


def pages(guest: Guest) -> list[dict[int, int]]:
    """MiB per host node of each block, as the kernel counts them."""
    blocks, counted = addresses(guest.qemu), numa_maps(guest.pid)
    return [{node: size // MIB for node, size in counted[blocks[name]].items()} for name in BLOCKS]


def assert_numastat_agrees(vm: Vm, guest: Guest) -> None:
    """numastat counts what gmemd does, and QEMU's own mappings, to its two decimals."""
    guests = {addresses(guest.qemu)[name] for name in BLOCKS}
    own = total({at: held for at, held in numa_maps(guest.pid).items() if at not in guests})
    ours = total(dict(enumerate(seen(vm))))
    for node, figure in numastat(guest.pid).items():
        assert figure == pytest.approx(ours.get(node, 0) + own.get(node, 0) / MIB, abs=0.01)


def test_gmemd_run_starts_it_on_memfds(daemon: Daemon) -> None:
    run = daemon.command("run", "run-01", "--socket", str(daemon.socket), "--")
    backends = [f"memory-backend-file,mem-path=/proc/self/fd/{{fd:{n}}},share=on" for n in (0, 1)]
    with start_guest(*two_nodes(*backends), name="run-01", prefix=run) as guest:
        write_a_step(guest, 0)
        assert pages(guest) == [{2: 4}, {3: 4}]
        vm = audited(daemon, "run-01")
        assert vm["holder"] is not None
        assert (vm["holder"]["pid"], vm["holder"]["program"]) == (guest.pid, "qemu-system-x86")
        assert (vm["state"], vm["drifting"], seen(vm)) == ("ready", False, [{2: 4}, {3: 4}])
        assert_numastat_agrees(vm, guest)
        assert daemon.names() == NAMES
    daemon.wait_for("run-01", "waiting")


def test_it_is_adopted_by_its_pid(daemon: Daemon) -> None:
    on_one_node = ("numactl", "--cpunodebind=1")
    with start_guest(*MEMFDS, name="whatever", prefix=on_one_node) as guest:
        write_a_step(guest, 0)
        (before,) = {node for counted in pages(guest) for node in counted}
        done = daemon.gmemd("adopt", "by-pid", "--pid", str(guest.pid), "--json")
        assert done.returncode == 0, done.stderr
        placed = json.loads(done.stdout)
        assert placed["pid"] == guest.pid
        assert [region["resident"] for region in placed["regions"]] == [STEP, STEP]
        assert [region["policy_achieved"]["host_nodes"] for region in placed["regions"]] == [
            [2],
            [3],
        ]
        write_a_step(guest, 1)
        assert pages(guest) == [{before: 4, 2: 4}, {before: 4, 3: 4}]
        vm = audited(daemon, "by-pid")
        assert seen(vm) == pages(guest)
        assert_numastat_agrees(vm, guest)
        assert daemon.names() == NAMES
    daemon.wait_for("by-pid", "waiting")


def test_it_is_adopted_as_it_appears_and_again_when_it_comes_back(daemon: Daemon) -> None:
    for _ in range(2):
        with start_guest(*MEMFDS, name="named") as guest:
            daemon.until(lambda: daemon.describe("by-name")["holder"] is not None)
            write_a_step(guest, 0)
            assert pages(guest) == [{2: 4}, {3: 4}]
            again = Client(daemon.socket).adopt("by-name")
            assert again.pid == guest.pid
            assert [region.resident for region in again.regions] == [STEP, STEP]
            write_a_step(guest, 1)
            assert pages(guest) == [{2: 8}, {3: 8}]
            vm = audited(daemon, "by-name")
            assert (vm["state"], seen(vm)) == ("ready", [{2: 8}, {3: 8}])
            assert_numastat_agrees(vm, guest)
        daemon.wait_for("by-name", "waiting")


def test_of_two_that_look_alike_none_is_guessed(daemon: Daemon) -> None:
    with start_guest(*MEMFDS, name="whatever") as guest:
        extra = {"qom-type": "memory-backend-memfd", "id": "extra", "size": SIZE}
        guest.qemu.command("object-add", **extra)
        with pytest.raises(AmbiguousError) as raised:
            Client(daemon.socket).adopt("by-pid", pid=guest.pid)
        candidates = raised.value.candidates
        assert [one["size"] for one in candidates] == [SIZE] * 3
        assert {one["pid"] for one in candidates} == {guest.pid}
        assert policies(guest) == dict.fromkeys(BLOCKS, "default")
        assert qemus_files(daemon) == 0
        guest.qemu.command("object-del", id="extra")
        assert Client(daemon.socket).adopt("by-pid", pid=guest.pid).pid == guest.pid
        assert policies(guest) == {"m0": "bind:2", "m1": "bind:3"}
        assert qemus_files(daemon) == len(BLOCKS)


def test_memdev_tells_which_of_two_is_which(daemon: Daemon) -> None:
    words = ["-m", "32M,slots=2,maxmem=128M", "-object", "memory-backend-memfd,id=dimm,size=32M"]
    words += ["-object", "memory-backend-memfd,id=boot,size=32M"]
    words += ["-numa", "node,nodeid=0,memdev=boot", "-device", "pc-dimm,memdev=dimm,node=0"]
    with start_guest(*words, name="dimm") as guest:
        daemon.until(lambda: daemon.describe("dimm")["holder"] is not None)
        assert policies(guest) == {"boot": "bind:2", "dimm": "bind:3"}
        guest.write(LOWEST, STEP)
        assert seen(audited(daemon, "dimm")) == [{2: 4}]


def test_of_two_vms_of_one_name_none_is_guessed_and_gmemd_comes_back_to_its_own(
    daemon: Daemon,
) -> None:
    daemon.stop()
    with start_guest(*MEMFDS, name="named") as guest:
        with start_guest(*MEMFDS, name="named") as other, daemon.running():
            pids = f"pids {guest.pid}, {other.pid}"
            several = f"2 running VMs match qemu_name=named: {pids}"
            daemon.until(lambda: daemon.describe("by-name")["message"] == several)
            with pytest.raises(AmbiguousError) as raised:
                Client(daemon.socket).adopt("by-name")
            assert {one["pid"] for one in raised.value.candidates} == {guest.pid, other.pid}
            other.qemu.stop()
            daemon.until(lambda: daemon.describe("by-name")["holder"] is not None)
            write_a_step(guest, 0)
            daemon.stop(signal.SIGKILL)
        write_a_step(guest, 1)
        # What it had it knows by its files, whoever else has that name.
        with start_guest(*MEMFDS, name="named"), daemon.running():
            daemon.until(lambda: daemon.describe("by-name")["holder"] is not None)
            assert daemon.describe("by-name")["holder"]["pid"] == guest.pid
            write_a_step(guest, 2)
            assert pages(guest) == [{2: 12}, {3: 12}]
            assert seen(audited(daemon, "by-name")) == [{2: 12}, {3: 12}]


def qemus_files(daemon: Daemon) -> int:
    """How many files of memory the daemon has open that a QEMU made."""
    assert daemon.process is not None
    found = 0
    for fd in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            found += "memory-backend" in str(fd.readlink())
    return found


def policies(guest: Guest) -> dict[str, str]:
    """The kernel's policy of each block of 32 MiB, as /proc tells it."""
    blocks = addresses(guest.qemu)
    found: dict[str, str] = {}
    for line in Path(f"/proc/{guest.pid}/numa_maps").read_text().splitlines():
        at, policy = line.split()[:2]
        found |= {name: policy for name, address in blocks.items() if int(at, 16) == address}
    return {name: found[name] for name in blocks if not re.search("[/.]", name)}
