"""gmemd's commands as processes of their own, without the time that each takes to import itself.

One process imports what they all need, once, and forks each of them. Such a command is as one
that was executed, but for its name in /proc; what others execute it by (prefixes, units, wheels)
is tested where they do. As a program this is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests import seccomp, stepping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

REPOSITORY = Path(__file__).parents[1]
MODULES = (
    "gmemd.cli.adopt",
    "gmemd.cli.audit",
    "gmemd.cli.check",
    "gmemd.cli.daemon",
    "gmemd.cli.host",
    "gmemd.cli.main",
    "gmemd.cli.release",
    "gmemd.cli.reload",
    "gmemd.cli.run",
    "gmemd.cli.status",
    "gmemd.daemon.observing",
    "gmemd.daemon.service",
    "gmemd.export.http",
)
MESSAGE_BYTES = 1 << 17
MOST_FDS = 250


class Process:
    """A command that was forked, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """Its exit code, as Popen gives it; None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("gmemd", timeout or 0)
            self.returncode = int(os.read(self._ended, 16))
            os.close(self._ended)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that forks commands, from the first one on until there is nobody to ask it.

    It is no child of the tests' own process, which looks at what children it has.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.run(
                [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                check=True,
            )
        atexit.register(self._control.close)

    def start(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        stdout: BinaryIO,
        stderr: BinaryIO,
        passed: Sequence[int] = (),
    ) -> Process:
        """Start a command with no input; what is passed has numbers from 3 on there."""
        reading, writing = os.pipe()
        order = json.dumps([arguments, dict(environment)]).encode()
        fds = [stdout.fileno(), stderr.fileno(), writing, *passed]
        with self._lock:
            socket.send_fds(self._control, [order], fds)
            os.close(writing)
            pid = int(self._control.recv(16))
        return Process(pid, reading)


@functools.cache
def _preloaded() -> Preloaded:
    return Preloaded()


def start(
    arguments: list[str],
    stdout: BinaryIO,
    *,
    passed: Sequence[tuple[str, int]] = (),
    **environment: str,
) -> Process:
    """Start ``gmemd`` with the arguments and no input; both outputs go to the file.

    ``passed`` are names and descriptors that it is given as systemd does.
    """
    if passed:
        environment["LISTEN_FDS"] = str(len(passed))
        environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
    fds = [fd for _, fd in passed]
    return _preloaded().start(arguments, os.environ | environment, stdout, stdout, fds)


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """What ``gmemd`` does and says with the arguments and no input."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        code = _preloaded().start(list(arguments), os.environ, stdout, stderr).wait()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())


def _serve(control: socket.socket) -> list[str]:
    """Fork what is asked for; each child returns, with its arguments."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    endings: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(endings)
        if control not in ready:
            continue
        order, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, MOST_FDS)
        if not order:
            sys.exit()
        pid = os.fork()
        if not pid:
            arguments, environment = json.loads(order)
            _become(fds, environment)
            return list(arguments)
        endings[pid] = fds[2]
        for fd in (*fds[:2], *fds[3:]):
            os.close(fd)
        control.send(str(pid).encode())


def _reap(endings: dict[int, int]) -> None:
    """Tell of each child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            writing = endings.pop(ended[0])
            with contextlib.suppress(BrokenPipeError):
                os.write(writing, str(os.waitstatus_to_exitcode(ended[1])).encode())
            os.close(writing)


def _become(fds: list[int], environment: dict[str, str]) -> None:
    """Leave nothing in a child of the process that it was forked from."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    end = max(map(int, os.listdir("/proc/self/fd"))) + 1  # noqa: PTH208
    passed = [fcntl.fcntl(fd, fcntl.F_DUPFD, end) for fd in fds[3:]]
    os.closerange(3, end)
    for number, fd in enumerate(passed, 3):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    if "LISTEN_FDS" in environment:
        os.environ["LISTEN_PID"] = str(os.getpid())
    random.seed()


def main() -> NoReturn:
    if os.fork():
        os._exit(0)
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    arguments = _serve(control)
    control.detach()
    seccomp.obey(os.environ)
    sys.argv = ["gmemd", *arguments]
    stepping.arm()
    sys.exit(importlib.import_module("gmemd.cli.main").main())


if __name__ == "__main__":
    main()
