"""Short-lived processes of gmemd's own: how they start, and how the two sides talk.

The talk is one JSON object per message of a SOCK_SEQPACKET pair; file descriptors travel beside
it. Both sides import this module, so it stays light: a helper starts in milliseconds.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

from gmemd.errors import GmemdError
from gmemd.kernel import process
from gmemd.kernel.errors import KernelError, system_call
from gmemd.kernel.memfd import create_memfd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

# A message may carry SCM_MAX_FD (253) descriptors; include/net/scm.h.
MAX_FDS = 250
_MAX_MESSAGE_BYTES = 1 << 16
_CONTROL_TRUNCATED = socket.MSG_CTRUNC | socket.MSG_TRUNC
# Nothing is imported here that the helper may do without: each of its milliseconds is waited for.
_BOOTSTRAP = """\
import sys
module, channel, parent, *sys.path[:] = sys.argv[1:]
__import__(module, fromlist=["main"]).main(int(channel), int(parent))
"""


class ChildError(Exception):
    """The other side is gone, late, or said something that is no message."""


class TruncatedError(ChildError):
    """Descriptors were lost on the way, for want of room in this process' table."""


@contextmanager
def talking(call: str) -> Iterator[None]:
    """Have what goes wrong with a channel be a ChildError where it is the other side that is.

    What is this side's own (no memory, no room for descriptors) is a KernelError of the call.
    """
    try:
        with system_call(call, "talking to a helper process"):
            yield
    except KernelError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise ChildError("no answer in time") from error
        if isinstance(error.__cause__, ConnectionError):
            raise ChildError("it went away") from error
        raise


def send(channel: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message, with descriptors beside it. Raises ChildError, KernelError."""
    payload = [json.dumps(message, separators=(",", ":")).encode()]
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    with talking("sendmsg"):
        channel.sendmsg(payload, [rights] if fds else [])


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message and its descriptors, which are close-on-exec and the caller's to close.

    Raises ChildError at the end of the talk and at the socket's timeout, TruncatedError where
    descriptors were lost, KernelError.
    """
    room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    with talking("recvmsg"):
        payload, ancillary, flags, _ = channel.recvmsg(
            _MAX_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC
        )
    fds = _descriptors(ancillary)
    if flags & _CONTROL_TRUNCATED:
        close_all(fds)
        raise TruncatedError("file descriptors were lost on the way")
    if not payload:
        raise ChildError("it went away")
    message: dict[str, Any] = json.loads(payload)
    return message, fds


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors. The last one of a region frees its memory, which takes time."""
    for fd in fds:
        os.close(fd)


def error_to_message(error: GmemdError) -> dict[str, Any]:
    """An error as the fields that error_from_message() takes."""
    if isinstance(error, KernelError):
        return {"call": error.call, "errno": error.errno, "what": error.what, "hint": error.hint}
    return {"message": error.message, "hint": error.hint}


def error_from_message(fields: dict[str, Any]) -> GmemdError:
    """The error that the other side met; a KernelError where it was one."""
    if "call" in fields:
        return KernelError(fields["call"], fields["errno"], fields["what"], hint=fields["hint"])
    return GmemdError(fields["message"], hint=fields["hint"])


class Child:
    """A process of ours that runs ``module.main(channel_fd, parent_pid)``.

    It dies with the thread that started it (PR_SET_PDEATHSIG), and with the channel. Leaving the
    ``with`` block ends and reaps it, whatever state it is in. It inherits ``fds`` as they are.
    Raises KernelError where it can't be started.
    """

    def __init__(self, module: str, *, fds: Sequence[int] = ()) -> None:
        with ExitStack() as undo:
            with system_call("socketpair", f"starting {module}"):
                self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self.channel)
            with theirs:
                fd = create_memfd(f"stderr of {module}", 0)
                self._stderr = undo.enter_context(open(fd, "w+b"))  # noqa: PTH123
                command = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP]
                command += [module, str(theirs.fileno()), str(os.getpid()), *sys.path]
                with system_call("execve", f"{sys.executable} for {module}"):
                    self.process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=self._stderr,
                        pass_fds=[theirs.fileno(), *fds],
                    )
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(grace_seconds=0)
        self.channel.close()
        self._stderr.close()

    def end(self, *, grace_seconds: float) -> int:
        """End the process: by itself within the grace time, else by SIGKILL. Its return code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        return self.process.wait()

    def last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def tie_to_parent(parent_pid: int) -> None:
    """Die when the thread that started this process ends, also if it has ended already.

    Where that can't be asked for, the end of the channel is what ends it.
    """
    with contextlib.suppress(KernelError):
        process.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
