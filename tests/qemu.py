"""Real QEMU VMs for tests: paused at start, with memory that is there, on any machine (TCG)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QEMU = "qemu-system-x86_64"
PATIENCE_SECONDS = 600  # several at once, emulated in an emulated machine, start slowly
MIB = 1 << 20
SMALL = ("-m", "64M", "-mem-prealloc")


class Qemu:
    """A running QEMU: its process, and what its monitor (QMP) answers."""

    def __init__(self, process: subprocess.Popen[bytes], monitor: Path, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log
        self._connection = self._connect(monitor)
        self._answers = self._connection.makefile("rb")
        self._answer("QMP")
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> Any:  # noqa: ANN401  whatever it answers
        """Has QEMU do something; what it returns."""
        said: dict[str, object] = {"execute": name}
        if arguments:
            said["arguments"] = arguments
        self._connection.sendall(json.dumps(said).encode() + b"\n")
        return self._answer("return")

    def stop(self) -> None:
        """Ends it, as a crash would."""
        self._answers.close()
        self._connection.close()
        self.process.kill()
        self.process.wait()

    def _connect(self, monitor: Path) -> socket.socket:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert self.process.poll() is None, self._log.read_text()
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(PATIENCE_SECONDS)
            try:
                connection.connect(str(monitor))
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                assert time.monotonic() < deadline, "QEMU made no monitor"
                time.sleep(0.02)
            else:
                return connection

    def _answer(self, key: str) -> Any:  # noqa: ANN401  as above
        """The next message that has the key; events are passed over."""
        while True:
            line = self._answers.readline()
            assert line, f"QEMU ended: {self._log.read_text()}"
            message = json.loads(line)
            assert "error" not in message, message
            if key in message:
                return message[key]


@contextmanager
def start_qemu(
    *arguments: str,
    name: str | None = None,
    accel: str = "tcg",
    prefix: Sequence[str] = (),
    machine: str = "q35",
) -> Iterator[Qemu]:
    """A VM until the block ends: paused, without devices; its monitor answers when this yields.

    ``prefix`` is a command that runs it (``setpriv``, ``numactl``), and has to become it by exec.
    Without arguments it has 64 MiB of memory, all of it there. Skips where there is no QEMU.
    """
    if shutil.which(QEMU) is None:
        pytest.skip(f"no {QEMU} here")
    with tempfile.TemporaryDirectory(prefix="qemu-") as folder:
        Path(folder).chmod(0o777)
        monitor, log = Path(folder, "monitor"), Path(folder, "log")
        command = [*prefix, QEMU, *(("-name", name) if name is not None else ())]
        command += ["-S", "-display", "none", "-nodefaults", "-machine", f"{machine},accel={accel}"]
        command += ["-qmp", f"unix:{monitor},server=on,wait=off", *(arguments or SMALL)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            qemu = Qemu(process, monitor, log)
            try:
                yield qemu
            finally:
                qemu.stop()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def backends(*sizes_mib: int, kind: str = "ram", host_nodes: str = "", more: str = "") -> list[str]:
    """The arguments for guest nodes of those sizes, each with a preallocated backend of its own."""
    policy = f",host-nodes={host_nodes},policy=bind" if host_nodes else ""
    arguments = ["-m", f"{sum(sizes_mib)}M", "-smp", str(len(sizes_mib))]
    for node, size in enumerate(sizes_mib):
        backend = f"memory-backend-{kind},id=m{node},size={size}M,prealloc=on{policy}{more}"
        arguments += ["-object", backend]
        arguments += ["-numa", f"node,nodeid={node},cpus={node},memdev=m{node}"]
    return arguments
