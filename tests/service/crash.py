"""gmemd under real systemd, killed over and over while guests write into memory that it placed.

``python3 -m tests.service.crash --kills 100`` does so inside the lab and says what it saw; the
tests do less of the same.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Self

import gmemd
from gmemd.client import Client
from gmemd.client.blocking import call
from gmemd.client.errors import CallError, NoDaemonError
from tests.service import crash_steps, unit
from tests.service.crash_daemon import (
    ANSWER_SECONDS,
    BEFORE,
    METRICS,
    PATIENCE_SECONDS,
    await_another,
    await_answer,
    daemon_pid,
    installed,
    kill,
    open_inodes,
    pidfd_inode,
    put_in_store,
    region_name,
    replace_by,
    stored,
)
from tests.service.crash_vmm import Running, running
from tests.service.crash_vms import CHURNED, CHURNING, MIB, VMS, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SETTLE_SECONDS = 20.0
BUSY_SECONDS = 2.0
"""How long a daemon lives at the most that is killed at a random moment."""

STARTING_SECONDS = 5.0
"""The same, of one that is to be killed while it starts."""

AGAIN_RATIO = 0.2
FAILURES = 8
"""Starts that fail in a row, at once: systemd's default limit is 5 in 10 seconds."""

NOBODYS = "r.1.ffffffff"
VERSIONS = ("0.1.1", "0.2.0")


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
        await_answer(before)
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
        self.settle()
        after = self.rounds()
        assert all(after[name] > before[name] for name in before), (before, after)
        return kills

    def settle(self) -> None:
        """Have nothing be left of what went on; all has to be as it was."""
        give_back_churned()
        self.check()
        self.rounds()

    def loop(self, failures: int) -> None:
        """Have the service fail so often, one start after the other, before it is well again.

        What was in its store by then and is nobody's is not there any more afterwards.
        """
        nobodys = os.memfd_create("nobody's")
        put_in_store(NOBODYS, nobodys)
        os.close(nobodys)
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
        """Put another build in place, as a package manager does, and restart."""
        before = daemon_pid()
        replace_by(version)
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
    parser.add_argument("--steps", action="store_true", help="have it die at each step as well")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    say(f"seed {options.seed}")
    with Scene() as scene:
        scene.check()
        kills = 0
        while kills < options.kills:
            kills += scene.kill_at_random(chance)
            say(f"{kills} kills, answered after {scene.answered_seconds[-1]:.1f} s")
        for step in crash_steps.walk(scene) if options.steps else ():
            say(f"killed at {step}")
        scene.loop(FAILURES)
        say(f"failed {FAILURES} times in a row")
        for version in (*VERSIONS, gmemd.__version__):
            scene.upgrade(version)
            say(f"runs version {version}, answered after {scene.answered_seconds[-1]:.1f} s")
        scene.stop_and_start()
        scene.check()
        say("stopped and started")
        rounds = scene.rounds()
        right = scene.finish()
        scene.give_back()
    took = scene.answered_seconds
    say(f"right: {right} bytes in rounds {rounds}, every descriptor and every policy")
    say(f"answered again {len(took)} times: after {median(took):.1f} s, {max(took):.1f} s at most")
    return int(max(took) > ANSWER_SECONDS)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
