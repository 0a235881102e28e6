"""A stand-in for systemd as the daemon meets it: keeps what it is given, and gives it back.

What systemd itself does is tested under systemd; here a daemon dies and comes back within a second.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from pathlib import Path

MOST = 6000
_KCMP, _KCMP_FILE = (312 if os.uname().machine == "x86_64" else 272), 0
_LIBC = ctypes.CDLL(None)


class Kept(NamedTuple):
    """A descriptor that is kept, and its name."""

    name: str
    fd: int

    @property
    def inode(self) -> tuple[int, int]:
        """What it is of: device and inode."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino


@dataclass
class Store:
    """The store of one service, until the block ends. ``limit`` is how many it takes."""

    path: Path
    limit: int = MOST
    kept: list[Kept] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _socket: socket.socket = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        self.clear()

    @property
    def environment(self) -> dict[str, str]:
        """What a process is told of it."""
        return {"NOTIFY_SOCKET": str(self.path), "FDSTORE": str(self.limit)}

    def passed(self) -> list[Kept]:
        """What a process is given at its start, the newest first."""
        with self._lock:
            return self.kept[::-1]

    def names(self, kind: str = "") -> list[str]:
        """The names of what is kept, of a kind ("r", "h", "s") or all, in order."""
        with self._lock:
            return sorted(one.name for one in self.kept if one.name.startswith(kind))

    def put(self, name: str, fd: int) -> None:
        """Keep a descriptor, which is the store's from then on."""
        with self._lock:
            if len(self.kept) >= self.limit or any(_same(fd, one.fd) for one in self.kept):
                os.close(fd)
            else:
                self.kept.append(Kept(name, fd))

    def remove(self, name: str) -> None:
        """Close all of a name."""
        with self._lock:
            for one in [one for one in self.kept if one.name == name]:
                self.kept.remove(one)
                os.close(one.fd)

    def clear(self) -> None:
        """Close all."""
        with self._lock:
            for one in self.kept:
                os.close(one.fd)
            self.kept.clear()

    def _serve(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, 253)
            if not data:
                return
            said = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in said:
                for fd in fds:
                    self.put(said.get("FDNAME", "stored"), fd)
                continue
            if "FDSTOREREMOVE" in said:
                self.remove(said["FDNAME"])
            for fd in fds:
                os.close(fd)


def _same(one: int, other: int) -> bool:
    """Whether two descriptors are of one opened file, which systemd keeps once."""
    pid = os.getpid()
    return bool(_LIBC.syscall(_KCMP, pid, pid, _KCMP_FILE, one, other) == 0)
