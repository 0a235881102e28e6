"""One boot of the lab: start it, stream what its command prints, and tell how it ended."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from tests.lab.definition import GUEST_FILES
from tests.lab.errors import LabError
from tests.lab.image import Image, cache_directory, ensure_image, say
from tests.lab.initramfs import build_initramfs
from tests.lab.machine import Boot, Variant, qemu_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CHECKOUT = "/srv/gmemd"
REPOSITORY = Path(__file__).resolve().parents[2]
MACHINES_AT_ONCE = 2
POLL_SECONDS = 0.1
# After the command's exit code is known, the machine only syncs and powers off.
POWER_OFF_SECONDS = 60


@dataclass(frozen=True)
class Terminal:
    """The size of the terminal that an interactive shell is shown on."""

    rows: int
    columns: int


@dataclass
class Lab:
    """A machine that runs one command; a context manager that ends it, whatever happens.

    ``share`` is a folder that the inside sees as /run/lab; ``files`` are put there, by name, before
    it boots. ``poll`` gives the exit code when the command is done and the machine is off, or
    raises LabError saying how it ended instead. ``quiet``: it doesn't say that it waits for a slot.
    """

    variant: Variant
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    node_mebibytes: int = 1024
    stdout: BinaryIO | None = None
    stderr: BinaryIO | None = None
    terminal: Terminal | None = None
    quiet: bool = False
    share: Path = field(init=False)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)
    _qemu: subprocess.Popen[bytes] = field(init=False)
    _pumps: list[threading.Thread] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @property
    def console_log(self) -> Path:
        """What the kernel, and under systemd the console, said."""
        return self._work / "console.log"

    def poll(self) -> int | None:
        """The command's exit code once the machine is off, None before."""
        status = self._qemu.poll()
        if status is None:
            return None
        for pump in self._pumps:
            pump.join()
        with suppress(FileNotFoundError, ValueError):
            return int((self.share / "exit").read_text())
        if panic := self._panic():
            raise LabError("the lab's kernel panicked", detail=panic)
        if status:
            detail = (self._work / "qemu.log").read_text(errors="replace")
            raise LabError(f"QEMU ended with status {status}", detail=detail)
        raise LabError("the lab went down before its command had ended", detail=self.console_tail())

    def wait(self, timeout_seconds: float) -> int:
        """The command's exit code. Raises LabError if it isn't done in time."""
        deadline = time.monotonic() + timeout_seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline and not self.done():
                raise LabError(
                    f"the lab's command wasn't done after {timeout_seconds:g} s",
                    hint="a longer time is given with --timeout",
                    detail=self.console_tail(),
                )
            if time.monotonic() > deadline + POWER_OFF_SECONDS:
                self.stop()
            time.sleep(POLL_SECONDS)
        return code

    def done(self) -> bool:
        """Whether the command has left its exit code, be the machine off or not yet."""
        return (self.share / "exit").exists()

    def stop(self) -> None:
        """Ends the machine as pulling the plug would."""
        if self._qemu.poll() is None:
            self._qemu.send_signal(signal.SIGKILL)
        self._qemu.wait()

    def console_tail(self, n_lines: int = 40) -> str:
        """The end of the console log."""
        return "\n".join(self._console_lines()[-n_lines:])

    def _panic(self, n_lines: int = 40) -> str:
        """The console log around the first panic; empty without one."""
        lines = self._console_lines()
        for number, line in enumerate(lines):
            if "Kernel panic" in line:
                start = max(0, number - n_lines // 2)
                return "\n".join(lines[start : start + n_lines])
        return ""

    def _console_lines(self) -> list[str]:
        with suppress(FileNotFoundError):
            return self.console_log.read_text(errors="replace").splitlines()
        return []

    def _start(self, stack: ExitStack) -> None:
        image = ensure_image()
        stack.enter_context(machine_slot(quiet=self.quiet))
        self._work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gmemd-lab-")))
        stack.callback(self._keep_log)
        self.share = self._work / "share"
        self.share.mkdir()
        self._fill_share()
        streams = () if self.terminal else (self.stdout, self.stderr)
        sockets = [socket.socketpair() for _ in streams]
        for ours, theirs in sockets:
            stack.callback(ours.close)
            stack.callback(theirs.close)
        fds = [theirs.fileno() for _, theirs in sockets]
        command = qemu_command(
            self.variant, self._boot(image, fds), node_mebibytes=self.node_mebibytes
        )
        qemu_log = stack.enter_context((self._work / "qemu.log").open("wb"))
        self._qemu = subprocess.Popen(
            # No machine outlives the process that wants its result, however that ends.
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=None if self.terminal else subprocess.DEVNULL,
            stdout=None if self.terminal else qemu_log,
            stderr=qemu_log,
            pass_fds=fds,
            # Ctrl-C reaches this process, which ends the machine; in a shell it is for the inside.
            start_new_session=self.terminal is None,
        )
        stack.callback(self.stop)
        for (ours, theirs), stream in zip(sockets, streams, strict=True):
            theirs.close()
            pump = threading.Thread(target=_pump, args=(ours, stream), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def _boot(self, image: Image, fds: Sequence[int]) -> Boot:
        release = image.kernels()[-1 if self.variant.newest_kernel else 0]
        initramfs = self._work / "initramfs.cpio"
        build_initramfs(image, release, initramfs)
        return Boot(
            kernel=image.kernel(release),
            initramfs=initramfs,
            disk=image.disk,
            checkout=REPOSITORY,
            share=self.share,
            console_log=self.console_log,
            stdout_fd=fds[0] if fds else None,
            stderr_fd=fds[1] if fds else None,
        )

    def _fill_share(self) -> None:
        for name, text in self.files.items():
            (self.share / name).write_text(text)
        for name in ("agent.sh", "lab.target", "lab-command.service"):
            shutil.copy(GUEST_FILES / name, self.share / name)
        settings = {
            "LAB_CHECKOUT": CHECKOUT,
            "LAB_SYSTEMD": str(int(self.variant.systemd)),
            "LAB_SHELL": str(int(self.terminal is not None)),
            "LAB_ROWS": str(self.terminal.rows if self.terminal else 0),
            "LAB_COLUMNS": str(self.terminal.columns if self.terminal else 0),
        }
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb") if self.terminal else "dumb",
            "PYTHONPATH": CHECKOUT,
            "GMEMD_LAB": "1",
            "GMEMD_LAB_VARIANT": self.variant.name,
            **self.environment,
        }
        (self.share / "settings").write_text(_assignments(settings))
        exports = "".join(f"export {name}\n" for name in environment)
        (self.share / "command").write_text(
            _assignments(environment) + exports + f"exec {shlex.join(self.command)}\n"
        )

    def _keep_log(self) -> None:
        """The newest console log of each variant stays in the cache, for a look afterwards."""
        with suppress(FileNotFoundError):
            shutil.copy(self.console_log, cache_directory() / f"console-{self.variant.name}.log")


def _assignments(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _pump(source: socket.socket, target: BinaryIO | None) -> None:
    """Copies what comes to the target, at once; without a target it is dropped."""
    while data := source.recv(65536):
        if target is not None:
            with suppress(BrokenPipeError):
                target.write(data)
                target.flush()


@contextmanager
def machine_slot(*, quiet: bool = False) -> Iterator[None]:
    """One of the few machines that may run at once on this host; waits until one is free."""
    tell = (lambda _text: None) if quiet else say
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = [
            stack.enter_context((directory / f"machine-{number}.lock").open("w"))
            for number in range(MACHINES_AT_ONCE)
        ]
        # The first in the queue looks for a free slot; the kernel keeps the order behind it.
        with (directory / "queue.lock").open("w") as queue:
            if not _try_lock(queue.fileno()):
                tell("waiting: others wait for a lab too")
                fcntl.flock(queue, fcntl.LOCK_EX)
            told = False
            while not any(_try_lock(file.fileno()) for file in files):
                if not told:
                    tell(f"waiting: {MACHINES_AT_ONCE} labs are running already")
                    told = True
                time.sleep(0.5)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
