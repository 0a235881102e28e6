"""Processes that look like VMMs, cheap enough to be had by the hundred, and short-lived as wanted.

Each holds a real KVM VM where there is one, maps and touches memory, and carries any command line:
it is a child of one small process, and writes over the arguments that it got from that. As a
program this is that process; what it is told and what it answers are lines of JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
ROOM = 4 << 10
"""Bytes that a command line may have."""

_KVM_CREATE_VM = 0xAE01
_PR_SET_CHILD_SUBREAPER = 36
_SLEEP = ("/bin/sleep", "600")


def qemu_arguments(name: str, size_mib: int) -> list[str]:
    """The command line of a QEMU VM of one guest node that declares nothing."""
    return ["/usr/bin/qemu-system-x86_64", "-name", f"guest={name}", "-m", f"{size_mib}M"]


class Vmms:
    """The parent; it and all its children end with the block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "-" * ROOM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, arguments: Sequence[str], size_mib: int, then: str = "stay") -> int:
        """Start one whose memory is there and whose command line is set; its pid.

        Each argument may hold any bytes but NUL, as `os.fsdecode` gives them. ``then`` is what it
        does after that: stay, exec (becomes another program), hand over (a child of its own goes on
        in its place) or end; all but the first after up to a second, or when it gets SIGUSR1.
        """
        return self.start_all([(arguments, size_mib, then)])[0]

    def start_all(self, wanted: Sequence[tuple[Sequence[str], int, str]]) -> list[int]:
        """Start several at once: their pids."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return [int(pid) for pid in json.loads(self._process.stdout.readline())]


def _serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        reading, writing = os.pipe()
        children = []
        for arguments, size_mib, then in json.loads(line):
            children.append(os.fork())
            if not children[-1]:
                _pretend(arguments, size_mib, then, ready=writing)
        for _ in children:
            os.read(reading, 1)
        os.close(reading)
        os.close(writing)
        sys.stdout.write(f"{json.dumps(children)}\n")
        sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    with suppress(ChildProcessError):  # which says that the last one is gone
        os.wait()


def _pretend(arguments: Sequence[str], size_mib: int, then: str, *, ready: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    memory = mmap.mmap(-1, size_mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # a mapping of its own, beside those of the interpreter
    for page in range(0, size_mib * MIB, mmap.PAGESIZE):
        memory[page] = 1
    _set_arguments(arguments)
    if Path("/dev/kvm").exists():
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        os.set_inheritable(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0), False)
    os.write(ready, b"!")
    os.close(ready)
    if then == "stay":
        while True:
            signal.pause()
    signal.sigtimedwait([signal.SIGUSR1], random.Random(os.getpid()).random())
    if then == "exec":
        os.execv(_SLEEP[0], _SLEEP)  # noqa: S606  the process itself becomes it
    if then == "hand over" and not os.fork():
        time.sleep(600)
    os._exit(0)


def _set_arguments(arguments: Sequence[str]) -> None:
    """Write over the process' own command line, whose length stays what it was."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    wanted = b"".join(os.fsencode(argument) + b"\0" for argument in arguments) + b"-pidfile\0"
    left = end - start - len(wanted)
    assert left > 0, "the arguments are longer than the room for them"
    ctypes.memmove(start, wanted + b"/" * (left - 1) + b"\0", end - start)


if __name__ == "__main__":
    _serve()
