"""`gmemd run`, `adopt` and `release` with the real daemon and a real, unmodified QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.qemu import start_qemu

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20
NODES = ("-m", "12M", "-smp", "2", "-numa", "node,cpus=0,memdev=m0", "-numa", "node,memdev=m1")


def backends(kind: str, *more: str) -> tuple[str, ...]:
    """Two guest nodes of the spec's sizes."""
    sizes = ("8M", "4M")
    named = [f"memory-backend-{kind},id=m{node},size={size}" for node, size in enumerate(sizes)]
    arguments = [
        word
        for backend, rest in zip(named, more or ("", ""), strict=True)
        for word in ("-object", f"{backend},share=on{rest}")
    ]
    return (*arguments, *NODES)


def test_qemu_runs_on_memory_that_the_daemon_made(daemon: Daemon) -> None:
    daemon.write("vm")
    with daemon.running():
        prefix = daemon.command("run", "vm", "--socket", str(daemon.socket), "--timeout", "60")
        files = (",mem-path=/proc/self/fd/{fd:0}", ",mem-path=/proc/self/fd/{fd:1}")
        with start_qemu(*backends("file", *files), prefix=(*prefix, "--")) as qemu:
            told = daemon.describe("vm")
            assert (told["holder"]["pid"], told["holder"]["alive"]) == (qemu.pid, True)
            assert f"held by pid {qemu.pid} " in daemon.gmemd("status").stdout
            daemon.until(
                lambda: daemon.describe("vm")["holder"]["program"].startswith("qemu-system")
            )
            sizes = [device["size"] for device in qemu.command("query-memdev")]
            assert sorted(sizes) == [4 * MIB, 8 * MIB]
            mapped = Path(f"/proc/{qemu.pid}/maps").read_text()
            assert all(f"/memfd:gmemd-vm-{node}-0" in mapped for node in (0, 1))
            audited = daemon.json("audit", "vm")
            assert [node["drift"]["resident"] for node in audited["guest_nodes"]] == [
                8 * MIB,
                4 * MIB,
            ]
            again = daemon.gmemd("run", "vm", "--", "true")
            assert again.returncode == 3
            assert f"process {qemu.pid} holds its memory" in again.stderr
            forced = daemon.gmemd("release", "vm", "--force")
            assert (forced.returncode, forced.stdout) == (0, "vm: its memory was given back\n")
            assert qemu.command("query-status")["status"] == "prelaunch"


def test_a_qemu_that_runs_is_adopted(daemon: Daemon) -> None:
    daemon.write("vm", "backend: memfd\nmatch: {qemu_name: vm}\n", source="adopt")
    with (
        daemon.running(),
        start_qemu(*backends("memfd"), name="vm") as qemu,
    ):
        adopted = daemon.gmemd("adopt", "vm", "--pid", str(qemu.pid))
        assert adopted.returncode == 0, adopted.stderr
        first, *table = adopted.stdout.splitlines()
        assert first.startswith("vm: ready, pid ")
        assert first.endswith(str(qemu.pid))
        rows = [line.split() for line in table if "inode-policy" in line]
        assert [row[:3] for row in rows if row[0] in "01"] == [
            ["0", "0", "8MiB"],
            ["1", "0", "4MiB"],
        ]
        assert daemon.describe("vm")["state"] == "ready"
        released = daemon.gmemd("release", "vm", "--force")
        assert released.returncode == 0, released.stderr
