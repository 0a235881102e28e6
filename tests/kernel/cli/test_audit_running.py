"""`gmemd audit --all` of VMs by the hundred, of odd names, and of VMMs that go while it looks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.audit.observed import Effort, Unknown
from gmemd.daemon.observing import Finder, FoundVm, observe
from gmemd.export.snapshot import VmState, VmStatus
from gmemd.host.reading import read_host
from tests import preloaded
from tests.kernel.target import Target, page_content
from tests.kernel.vmms import MIB, Vmms, qemu_arguments
from tests.qemu import start_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_SECONDS = 60
MANY = 200
ROUNDS = 6
GUEST_BYTES = 64 * MIB
READ_PAGES = 1024

OWN = f"-{os.getpid()}"
"""Ends names, as other VMs of this host may have the same."""
ODD_NAMES = [
    "quo\"te's",
    "back\\slash\\n",
    "new\nline",
    "tab\tand\x1b[31mcolour",
    ' [bold]marked up[/bold] {vm="x"} ',
    "--all",
    "gäste-ünïcødé-虚拟机-🖥",
    "x" * 300,
    os.fsdecode(b"\xff\xfe-no-utf-8-\xc3"),
]


class Audited:
    """One run of `gmemd audit`: whatever else it saw on this host, it said it well."""

    def __init__(self, *arguments: str) -> None:
        started = time.monotonic()
        done = preloaded.run("audit", *arguments)
        self.seconds = time.monotonic() - started
        self.exit_code = done.returncode
        self.stdout = done.stdout.decode("utf-8")
        self.stderr = done.stderr.decode("utf-8")
        assert "Traceback" not in self.stderr, self.stderr

    @property
    def report(self) -> Any:  # noqa: ANN401  JSON
        return json.loads(self.stdout)

    @property
    def by_pid(self) -> dict[int, Any]:
        return {vm["running"]["pid"]: vm for vm in self.report["vms"]}


@pytest.fixture(scope="module")
def vmms() -> Iterator[Vmms]:
    with Vmms() as parent:
        yield parent


def check_metrics(text: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def resident_bytes(vm: dict[str, Any]) -> int:
    return sum(int(node["drift"]["resident"]) for node in vm["guest_nodes"])


def found(pid: int) -> FoundVm:
    vm = Finder().find_pid(pid)
    assert vm is not None
    return vm


def look(vm: FoundVm, sample_pages: int | None = 64) -> VmStatus:
    return observe(vm, read_host(probe=False), Effort(sample_pages, Random(1)))


def existing(target: Target, memory: int, fd: int) -> tuple[dict[str, int], int]:
    """What the kernel counts of a target's memory: as mapped, and the file's blocks."""
    mapped = target.resident((memory, GUEST_BYTES))
    return mapped, Path(f"/proc/{target.pid}/fd/{fd}").stat().st_blocks


def until(met: Any) -> None:  # noqa: ANN401  anything that may be called
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_hundred_vms_at_once(record_testsuite_property: Any) -> None:  # noqa: ANN401  pytest's
    sizes = [4 + number % 28 for number in range(MANY)]
    with Vmms() as vmms:
        named = [(f"many-{number}{OWN}", size) for number, size in enumerate(sizes)]
        wanted = [(qemu_arguments(name, size), size, "stay") for name, size in named]
        pids = dict(zip(vmms.start_all(wanted), named, strict=True))
        text = Audited("--all")
        full = Audited("--all", "--full", "--json")
        metrics = Audited("--all", "--format", "prometheus")
    record_testsuite_property(f"seconds to audit {MANY} VMs", f"{text.seconds:.1f}")
    for pid, (name, size) in pids.items():
        vm = full.by_pid[pid]
        assert vm["vm"] == name
        assert resident_bytes(vm) == size * MIB
        assert vm["running"]["unmatched"] == []
        assert f"\n{name}  ready  observe" in f"\n{text.stdout}"
        assert f'gmemd_vm_info{{source="observe",uuid="",vm="{name}"}} 1' in metrics.stdout
    check_metrics(metrics.stdout)
    assert text.seconds < PATIENCE_SECONDS


def test_odd_names_are_told_in_each_format(vmms: Vmms) -> None:
    names = [name + OWN for name in ODD_NAMES]
    pids = {vmms.start(qemu_arguments(name, 4), 4): name for name in names}
    with start_qemu(name=f"guest={names[2]}") as qemu:
        pids[qemu.pid] = f"{names[2]}@{qemu.pid}"  # the second of that name
        text, metrics = Audited("--all"), Audited("--all", "--format", "prometheus")
        audited = Audited("--all", "--json")
    for pid, name in pids.items():
        told = name.encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x")
        vm = audited.by_pid[pid]
        assert vm["vm"] == told
        shown = re.escape(told)
        if not told.isprintable():
            shown = "".join(
                re.escape(c if c.isprintable() else c.encode("unicode_escape").decode())
                for c in told
            )
        assert re.search(
            rf"^{shown}  ready  observe, since \S+, pid {pid} ", text.stdout, re.MULTILINE
        )
        label = told.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        assert f'gmemd_vm_info{{source="observe",uuid="",vm="{label}"}} 1' in metrics.stdout
    check_metrics(metrics.stdout)
    assert "\x1b" not in text.stdout


@pytest.mark.parametrize("name", [ODD_NAMES[0], ODD_NAMES[2], ODD_NAMES[6], ODD_NAMES[7]])
def test_a_vm_with_an_odd_name_is_had_by_it(vmms: Vmms, name: str) -> None:
    pid = vmms.start(qemu_arguments(f"{name}-alone{OWN}", 4), 4)
    alone = Audited(f"{name}-alone{OWN}", "--json")
    assert alone.report["running"]["pid"] == pid
    unknown = Audited(f"no-{name}")
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("gmemd: no running VM is named ")
    assert unknown.stderr.count("\n") == 2


def test_a_vmm_that_died_has_ended(vmms: Vmms) -> None:
    pid = vmms.start(qemu_arguments("dies", 8), 8, "end")
    vm = found(pid)
    os.kill(pid, signal.SIGUSR1)
    until(lambda: not Path(f"/proc/{pid}").exists())
    status = look(vm)
    assert status.audit is None
    assert status.running is not None
    assert status.running.unknown == Unknown.GONE


def test_a_vmm_that_ends_right_after_its_pages_were_asked_for_has_ended() -> None:
    """Its last pages may be somebody else's: they are nobody's placement."""
    with start_qemu() as qemu:
        found = Finder().find_pid(qemu.pid)
        assert found is not None
        asked: list[int] = []

        def end(length: int) -> None:
            asked.append(length)
            qemu.process.kill()
            qemu.process.wait()

        seen = observe(found, read_host(), Effort(256, Random(1), progress=end))
    assert asked
    assert seen.running is not None
    assert seen.running.unknown == Unknown.GONE
    assert seen.audit is None


def test_a_vmm_that_became_another_program_has_ended(vmms: Vmms) -> None:
    """Its pid and its start are the same, its memory isn't: that would look like an empty VM."""
    pid = vmms.start(qemu_arguments("execs", 8), 8, "exec")
    vm = found(pid)
    os.kill(pid, signal.SIGUSR1)
    until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
    status = look(vm)
    assert status.audit is None
    assert status.running is not None
    assert status.running.unknown == Unknown.GONE
    assert pid not in Audited("--all", "--json").by_pid


def test_a_vmm_that_goes_on_under_another_pid_is_found_there(vmms: Vmms) -> None:
    """As one does that daemonizes, or hands over to its successor."""
    before = vmms.start(qemu_arguments(f"hands-over{OWN}", 8), 8, "hand over")
    vm = found(before)
    os.kill(before, signal.SIGUSR1)
    until(lambda: not Path(f"/proc/{before}").exists())
    assert look(vm).audit is None
    audited = Audited("--all", "--full", "--json")
    (after,) = [vm for vm in audited.report["vms"] if vm["vm"] == f"hands-over{OWN}"]
    assert after["running"]["pid"] != before
    assert resident_bytes(after) == 8 * MIB


def test_a_qemu_that_daemonizes_is_one_vm_all_the_time(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    name = f"daemonizes{OWN}"
    command = ["qemu-system-x86_64", "-name", name, "-S", "-display", "none", "-nodefaults"]
    command += ["-m", "16M", "-mem-prealloc", "-daemonize", "-pidfile", str(pidfile)]
    finder, host = Finder(), read_host(probe=False)
    starting = subprocess.Popen([*command, "-machine", "q35,accel=tcg"])
    try:
        while starting.poll() is None:
            mine = [vm for vm in finder.find().vms if vm.declaration.name == name]
            assert len(mine) <= 1
            for vm in mine:
                observe(vm, host, Effort(64, Random(1)))
        assert starting.returncode == 0
        pid = int(pidfile.read_text())
        (vm,) = [vm for vm in finder.find().vms if vm.declaration.name == name]
        assert (vm.vmm.pid, vm.name) == (pid, name)
        status = look(vm, None)
        assert status.drift is not None
        assert status.drift.guest_nodes[0].resident_bytes == 16 * MIB
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_a_dead_vmm_that_nobody_reaped_is_no_vm() -> None:
    with start_qemu(name="zombie") as qemu, start_qemu(name="lives") as other:
        qemu.process.kill()
        os.waitid(os.P_PID, qemu.pid, os.WEXITED | os.WNOWAIT)
        audited = Audited("--all", "--json")
        assert qemu.pid not in audited.by_pid
        assert resident_bytes(audited.by_pid[other.pid]) == 64 * MIB


def test_vmms_that_come_and_go_take_nothing_from_those_that_stay(vmms: Vmms) -> None:
    """Each that is shown is whole: none is half there, and nothing stops the rest."""
    rng = Random(1)
    staying = {vmms.start(qemu_arguments(f"stays-{n}", 8 + n), 8 + n): 8 + n for n in range(5)}
    endings = ("end", "exec", "hand over")
    ended = 0
    for _ in range(ROUNDS):
        sizes = [rng.randrange(4, 12) for _ in range(20)]
        vmms.start_all(
            [
                (qemu_arguments(f"goes-{number}-{size}", size), size, rng.choice(endings))
                for number, size in enumerate(sizes)
            ]
        )
        audited = Audited("--all", "--full", "--json")
        ended += len([name for name in audited.report["ended"] if name.startswith("goes-")])
        for pid, size in staying.items():
            assert resident_bytes(audited.by_pid[pid]) == size * MIB
        for vm in audited.report["vms"]:
            going = re.match(r"goes-\d+-(\d+)", vm["vm"])
            if going and vm["audit"] is not None:
                assert resident_bytes(vm) == int(going[1]) * MIB
    assert ended


@pytest.mark.needs("kvm")
@pytest.mark.parametrize("more", [(), ("--full",)], ids=["sampled", "full"])
def test_memory_that_is_still_coming_is_left_alone(target: Target, more: tuple[str, ...]) -> None:
    """A VMM in postcopy: a fault that gmemd made, or a page of zeros, would be the guest's end."""
    target.call("open_vm")
    fd = target.call("memfd", GUEST_BYTES)
    memory = target.call("map_file", fd, GUEST_BYTES)
    target.call("touch", memory, 10)
    target.call("await_pages", memory, GUEST_BYTES)
    before = existing(target, memory, fd)
    told = Audited("--all", "--json", *more).by_pid[target.pid]
    alone = Audited("--pid", str(target.pid), *more)
    metrics = Audited("--pid", str(target.pid), "--format", "prometheus", *more)
    after, served = existing(target, memory, fd), target.call("served")
    # What the guest reads, and asks for, is as if nobody had looked.
    assert target.call("read", memory, READ_PAGES) == [
        *[1] * 10,
        *(page_content(page) for page in range(10, READ_PAGES)),
    ]
    assert target.call("served") == list(range(10, READ_PAGES))
    assert (served, after) == ([], before)
    assert told["running"]["unknown"] == "migrating"
    assert told["audit"] is None
    assert told["state"] == VmState.WAITING
    assert "holds a userfaultfd" in told["message"]
    assert (alone.exit_code, metrics.exit_code) == (5, 5)
    assert "memory unknown: its VMM holds a userfaultfd" in alone.stdout
    check_metrics(metrics.stdout)


def test_where_a_vms_pages_are(vmms: Vmms, tmp_path: Path) -> None:
    """It declares nothing: nothing is misplaced, and everything has its place."""
    pid = vmms.start(qemu_arguments(f"where{OWN}", 8), 8)
    picture = tmp_path / "vm.svg"
    told = Audited("--pid", str(pid), "--where", "--json", "--svg", str(picture))
    shown = Audited("--pid", str(pid), "--where")
    every = Audited("--all", "--where", "--json")
    assert (told.exit_code, shown.exit_code) == (0, 0)
    for vm in (told.report, every.by_pid[pid]):
        assert vm["audit"]["exact"]
        ((region,),) = (node["regions"] for node in vm["guest_nodes"])
        (stretch,) = region["where"]["stretches"]
        held = sum(sum(cell["by_node"].values()) for cell in stretch["cells"])
        assert held == resident_bytes(vm) == 8 * MIB
        assert region["where"]["misplaced"] == []
    assert "<title>+0x0, 8MiB: host node" in picture.read_text()
    assert "  nothing declares where pages should be" in shown.stdout.splitlines()
