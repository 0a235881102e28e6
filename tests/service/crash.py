"""gmemd under real systemd, killed over and over while guests write into memory that it placed.

``python3 -m tests.service.crash --kills 100`` does so inside the lab and says what it saw; the
tests do less of the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from gmemd.client import Client
from gmemd.client.blocking import call
from gmemd.client.errors import CallError, NoDaemonError
from tests.service import unit
from tests.service.crash_vmm import Running, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MIB = 1 << 20
ANSWER_SECONDS = 30.0
"""In which it has to answer again, emulated, on a machine that does nothing else."""

PATIENCE_SECONDS = 120.0
"""In which it has to, whatever else the machine does."""

SETTLE_SECONDS = 20.0
BUSY_SECONDS = 2.0
"""How long a daemon lives at the most that is killed at a random moment."""

STARTING_SECONDS = 5.0
"""The same, of one that is to be killed while it starts."""

AGAIN_RATIO = 0.2
FAILURES = 12
"""Starts that fail in a row: more than any limit on starts that systemd has by default."""

VERSIONS = ("0.1.1", "0.2.0")
METRICS = "127.0.0.1:9989"
CHURNED = "churned"
"""A VM whose memory is made, handed out and given back all the time."""


class Node(NamedTuple):
    """A guest node as a spec has it, and what the kernel is to keep for it."""

    mib: int
    policy: str
    host_nodes: tuple[int, ...]
    backend: str = "guest_memfd"

    def line(self, number: int) -> str:
        """The spec's line."""
        nodes = ", ".join(map(str, self.host_nodes))
        return (
            f"  - {{id: {number}, memory: {self.mib}MiB, policy: {self.policy}, "
            f"host_nodes: [{nodes}], backend: {self.backend}}}\n"
        )


@dataclass(frozen=True)
class Vm:
    """A VM of the scene; ``inline``: its spec comes with the call that acquires it."""

    name: str
    source: str
    nodes: tuple[Node, ...]
    more: str = ""
    inline: bool = False

    @property
    def spec(self) -> str:
        """Its spec as a file has it."""
        lines = "".join(node.line(number) for number, node in enumerate(self.nodes))
        head = f"version: 1\nvm: {self.name}\nsource: {self.source}\n"
        return f"{head}{self.more}guest_nodes:\n{lines}"

    def write(self) -> Path:
        """Make that its file."""
        path = unit.SPECS / f"{self.name}.yaml"
        path.write_text(self.spec)
        return path


ACQUIRED = Vm("acquired", "create", (Node(8, "bind", (2,)), Node(4, "interleave", (0, 1), "memfd")))
REGISTERED = Vm("registered", "register", (Node(8, "bind", (3,)), Node(4, "preferred", (1,))))
ADOPTED = Vm(
    "adopted",
    "adopt",
    (Node(32, "bind", (1,)),),
    more="match: {unit: crash-adopted.service}\n",
)
INLINE = Vm("inline", "create", (Node(4, "bind", (3,)),), inline=True)
KEPT = Vm("kept", "create", (Node(4, "bind", (2,)),), more="on_vmm_exit: keep\n")
CHURNING = Vm(CHURNED, "create", (Node(4, "bind", (0,)),))
VMS = (ACQUIRED, REGISTERED, ADOPTED, INLINE, KEPT)


class Stored(NamedTuple):
    """A descriptor in systemd's store."""

    name: str
    inode: int


def stored() -> list[Stored]:
    """What systemd's store has for the service."""
    done = unit.run("systemd-analyze", "fdstore", "--json=short", "gmemd.service")
    if done.returncode and "No file descriptors" in done.stderr:
        return []
    assert done.returncode == 0, done.stderr
    return [Stored(fd["fdname"], int(fd["inode"])) for fd in json.loads(done.stdout or "[]")]


def region_name(inode: Sequence[int]) -> str:
    """The name of a region in the store, by its device and inode."""
    device, number = inode
    return f"r.{device:x}.{number:x}"


def daemon_pid() -> int:
    """The process that listens, by the kernel's word. Raises OSError while none does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(unit.SOCKET))
        said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", said)[0])


def main_pid() -> int:
    """The service's process by systemd's word; 0 while there is none."""
    return int(unit.unit("MainPID"))


def open_inodes(pid: int) -> Counter[tuple[int, int]]:
    """How many descriptors a process has of each file, by device and inode."""
    found: Counter[tuple[int, int]] = Counter()
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # closed meanwhile
                status = os.stat(f"/proc/{pid}/fd/{entry.name}")  # noqa: PTH116
                found[status.st_dev, status.st_ino] += 1
    return found


@dataclass
class Scene:
    """The service and VMMs whose guests write; a context manager that ends all of them.

    ``answered_seconds`` are from each death of the daemon to its first answer afterwards.
    """

    vms: Sequence[Vm] = VMS
    answered_seconds: list[float] = field(default_factory=list)
    vmms: dict[str, Running] = field(default_factory=dict)
    pieces: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(installed())
            for vm in (*self.vms, CHURNING):
                if not vm.inline:
                    vm.write()
            unit.start()
            for vm in self.vms:
                self.vmms[vm.name] = stack.enter_context(running(f"crash-{vm.name}"))
                self._give_memory(vm)
            give_back_churned()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _give_memory(self, vm: Vm) -> None:
        """Have a VMM get its memory as its source says, and its guest write."""
        vmm = self.vmms[vm.name]
        if vm.source == "create":
            vmm.do("acquire", vm.name, spec=vm.spec if vm.inline else None)
        else:
            vmm.do("make", *(node.mib * MIB for node in vm.nodes))
        if vm.source == "register":
            vmm.do("register", vm.name)
        unit.wait_for(vm.name, "ready")
        vmm.do("fill")
        self.pieces[vm.name] = vmm.do("look")
        vmm.do("begin")

    def kill(self) -> None:
        """Kill the daemon, and wait for another one's answer."""
        self.note_answer(kill())

    def note_answer(self, before: int, began: float | None = None) -> None:
        """Wait until another process than before answers a call, and note how long that took."""
        began = time.monotonic() if began is None else began
        while True:
            with suppress(OSError, NoDaemonError, CallError):
                if daemon_pid() != before:
                    call(unit.SOCKET, "List")
                    break
            took = time.monotonic() - began
            assert took < PATIENCE_SECONDS, f"no answer after {took:.0f} s\n{unit.journal()}"
            time.sleep(0.1)
        self.answered_seconds.append(time.monotonic() - began)

    def kill_at_random(self, chance: random.Random) -> int:
        """Kill the daemon at a random moment, and now and then the next one while it starts.

        Returns how many were killed. Guests go on meanwhile; then all has to be as it was.
        """
        before = self.rounds()
        kills = 1
        with churning():
            time.sleep(chance.uniform(0, BUSY_SECONDS))
            pid = kill()
            while chance.random() < AGAIN_RATIO:
                await_another(pid)
                time.sleep(chance.uniform(0, STARTING_SECONDS))
                pid = kill()
                kills += 1
            self.note_answer(pid)
        give_back_churned()
        self.check()
        after = self.rounds()
        assert all(after[name] > before[name] for name in before), (before, after)
        return kills

    def loop(self, failures: int) -> None:
        """Have the service fail so often, one start after the other, before it is well again."""
        count = BEFORE.with_suffix(".count")
        count.write_text("0")
        BEFORE.write_text(
            f"n=$(cat {count}); [ $n -ge {failures} ] || {{ echo $((n + 1)) >{count}; exit 1; }}\n"
        )
        try:
            self.kill()
            assert int(count.read_text()) == failures
        finally:
            BEFORE.write_text("")
            count.unlink()
        self.check()

    def upgrade(self, version: str) -> None:
        """Install another build and restart, as an operator does."""
        before = daemon_pid()
        with tempfile.TemporaryDirectory() as folder:
            unit.install_wheel(build_of(version, Path(folder)))
        began = time.monotonic()
        unit.must("systemctl", "restart", "gmemd.service")
        self.note_answer(before, began)
        assert f'gmemd_build_info{{version="{version}"}} 1.0' in unit.get(METRICS, "/metrics")
        self.check()

    def stop_and_start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Stop the service as an operator does, and start it again."""
        before, had = daemon_pid(), sorted(stored())
        unit.must("systemctl", "stop", "gmemd.service")
        assert not unit.vms()
        assert sorted(stored()) == had
        meanwhile()
        began = time.monotonic()
        unit.start()
        self.note_answer(before, began)

    def check(self) -> None:
        """Hold everything against what it has to be, as a VMM, the kernel and systemd see it."""
        listed = unit.vms()
        for vm in self.vms:
            self._check_told(vm, listed.get(vm.name))
            self._check_kernel(vm)
        self._check_descriptors()

    def _check_told(self, vm: Vm, told: dict[str, Any] | None) -> None:
        assert told is not None, f"{vm.name} is gone\n{unit.journal()}"
        assert told["state"] == "ready", (told, unit.journal())
        assert not told["drifting"], told
        holder = told["holder"]
        assert holder is not None, (told, unit.journal())
        assert (holder["pid"], holder["alive"]) == (self.vmms[vm.name].pid, True), told

    def _check_kernel(self, vm: Vm) -> None:
        seen = self.vmms[vm.name].do("look")
        assert seen == self.pieces[vm.name]
        for node, piece in zip(vm.nodes, seen, strict=True):
            assert piece["policies"] == [[node.policy, list(node.host_nodes)]] * 2, (vm.name, piece)

    def _check_descriptors(self) -> None:
        """The store has each region, holder and the state, the daemon each region, once."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (wrong := self._misplaced_descriptors()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not wrong, (wrong, unit.journal())

    def _misplaced_descriptors(self) -> str:
        """What of descriptors isn't as it has to be; empty if nothing."""
        regions = [piece["inode"] for pieces in self.pieces.values() for piece in pieces]
        have = stored()
        names = sorted(fd.name for fd in have if fd.name.startswith("r."))
        if names != sorted(map(region_name, regions)):
            return f"regions {regions}, in the store {have}"
        holders = sorted(fd.inode for fd in have if fd.name.startswith("h."))
        if holders != sorted(pidfd_inode(vmm.pid) for vmm in self.vmms.values()):
            return f"holders in the store: {have}"
        others = [fd for fd in have if not fd.name.startswith(("r.", "h."))]
        if len(others) != 1 or not others[0].name.startswith("s."):
            return f"besides regions and holders the store has {others}"
        counts = open_inodes(daemon_pid())
        if any(counts[device, inode] != 1 for device, inode in regions):
            return f"regions {regions}, open in the daemon {counts}"
        return ""

    def rounds(self) -> dict[str, int]:
        """How far each guest is, each having found all as it was."""
        return {name: vmm.do("rounds") for name, vmm in self.vmms.items()}

    def finish(self) -> int:
        """End the guests' writing; the bytes that were found right, which have to be all."""
        right = 0
        for vm in self.vms:
            vmm = self.vmms[vm.name]
            verdict = vmm.do("finish")
            assert verdict["wrong"] == "", (vm.name, verdict)
            right += sum(node.mib for node in vm.nodes) * MIB * (verdict["rounds"] + 1)
            self._check_pages(vm, vmm.do("look", count=True))
        return right

    def end(self, vm: Vm) -> None:
        """Have a VMM exit."""
        self.vmms.pop(vm.name).exit()
        if "keep" not in vm.more:
            del self.pieces[vm.name]

    def give_back(self) -> None:
        """Have all VMMs exit, and what is kept be released: nothing of it is left anywhere."""
        for vm in self.vms:
            if vm.name in self.vmms:
                self.end(vm)
        for name in list(self.pieces):
            call(unit.SOCKET, "Release", vm=name)
            del self.pieces[name]
        self._check_descriptors()

    def _check_pages(self, vm: Vm, seen: Sequence[dict[str, Any]]) -> None:
        """Every page is where its policy says."""
        for node, piece in zip(vm.nodes, seen, strict=True):
            assert sum(piece["by_node"].values()) == node.mib * MIB, (vm.name, piece)
            assert {int(number) for number in piece["by_node"]} == set(node.host_nodes), piece


def pidfd_inode(pid: int) -> int:
    """What identifies a process in the kernel's own file system of processes."""
    pidfd = os.pidfd_open(pid)
    try:
        return os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)


def kill() -> int:
    """Kill the service's process, and give its pid."""
    pid = main_pid()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def await_another(pid: int) -> None:
    """Wait until systemd has started another process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while main_pid() in {0, pid}:
        assert time.monotonic() < deadline, unit.journal()
        time.sleep(0.05)


def give_back_churned() -> None:
    """Have the churned VM's memory given back, whatever became of it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            call(unit.SOCKET, "Release", timeout_seconds=PATIENCE_SECONDS, vm=CHURNED, force=True)
        except CallError:
            assert time.monotonic() < deadline, unit.journal()
            time.sleep(0.2)
        else:
            return


def build_of(version: str, folder: Path) -> Path:
    """The wheel that is installed, as another version of itself; the same where it is that."""
    wheel = unit.newest_wheel()
    name, old, rest = wheel.name.split("-", 2)
    if version == old:
        return wheel
    other = folder / f"{name}-{version}-{rest}"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(other, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename == "gmemd/__init__.py":
                data = data.replace(f'"{old}"'.encode(), f'"{version}"'.encode())
            elif item.filename.endswith(".dist-info/METADATA"):
                data = data.replace(
                    f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode()
                )
            target.writestr(
                item.filename.replace(f"-{old}.dist-info", f"-{version}.dist-info"), data
            )
    return other


@contextmanager
def installed() -> Iterator[None]:
    """The service with the drop-in for adoption, without specs or memory; stopped at last."""
    unit.install()
    unit.clear_specs()
    unit.run("systemctl", "clean", "--what=fdstore", "gmemd.service")
    unit.DROP_INS.mkdir(parents=True, exist_ok=True)
    drop_ins = [unit.DROP_INS / "adopt.conf", unit.DROP_INS / "before.conf"]
    source = unit.CHECKOUT / "systemd/gmemd.service.d/observe.conf"
    drop_ins[0].write_text(source.read_text())
    drop_ins[1].write_text(f"[Service]\nRestartSec=100ms\nExecStartPre=+/bin/sh {BEFORE}\n")
    BEFORE.write_text("")
    unit.must("systemctl", "daemon-reload")
    try:
        yield
    finally:
        unit.stop()
        unit.run("systemctl", "clean", "--what=fdstore", "gmemd.service")
        unit.clear_specs()
        for path in (*drop_ins, BEFORE):
            path.unlink()
        unit.must("systemctl", "daemon-reload")


BEFORE = Path("/run/crash-before")
"""A script that is run as root before each start of the daemon."""


@contextmanager
def churning() -> Iterator[None]:
    """Have somebody acquire and release, reload and audit, whoever answers or doesn't."""
    stop = threading.Event()

    def churn() -> None:
        client = Client(unit.SOCKET)
        while not stop.is_set():
            with suppress(NoDaemonError, CallError, OSError):
                client.acquire(CHURNED, timeout_seconds=5).close()
                call(unit.SOCKET, "Audit", timeout_seconds=5, vm=CHURNED)
                call(unit.SOCKET, "Reload", timeout_seconds=5)
                call(unit.SOCKET, "Release", timeout_seconds=5, vm=CHURNED)
            stop.wait(0.05)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> int:
    """Do all of it as often as is asked for, and say what was seen; 1 if it answered too late."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.service.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    say(f"seed {options.seed}")
    with Scene() as scene:
        scene.check()
        kills = 0
        while kills < options.kills:
            kills += scene.kill_at_random(chance)
            say(f"{kills} kills, answered after {scene.answered_seconds[-1]:.1f} s")
        scene.loop(FAILURES)
        say(f"failed {FAILURES} times in a row")
        for version in (*VERSIONS, unit.newest_wheel().name.split("-")[1]):
            scene.upgrade(version)
            say(f"runs version {version}, answered after {scene.answered_seconds[-1]:.1f} s")
        scene.stop_and_start()
        scene.check()
        say("stopped and started")
        rounds = scene.rounds()
        right = scene.finish()
        scene.give_back()
    longest, n_answers = max(scene.answered_seconds), len(scene.answered_seconds)
    say(f"right: {right} bytes in rounds {rounds}, every descriptor and every policy")
    say(f"{n_answers} times answered again, after {longest:.1f} s at the most")
    return int(longest > ANSWER_SECONDS)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
