"""A FUSE file system of one file whose close never ends, as long as it is armed."""

from __future__ import annotations

import errno
import os
import select
import struct
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LOOKUP, GETATTR, OPEN, FLUSH, INIT = 1, 3, 14, 25, 26
OF_A_CLOSE = {2, 18, FLUSH, 36}
"""FORGET, RELEASE, FLUSH and INTERRUPT."""
_REQUEST = struct.Struct("=IIQQIIII")


class Trap:
    """The file system, as a context manager; ``fd`` is its file, open for reading and writing.

    Once armed it lets closes of the file wait, those at a process' exit too, until the end.
    ``n_waiting`` counts these; ``asked`` has what it was asked besides, by FUSE's numbers.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        self._armed = threading.Event()
        self._ended = threading.Event()
        self.n_waiting = 0
        self.asked: list[int] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0"
        mounting = ["mount", "-i", "-t", "fuse", "-o", options, "trap", str(directory)]
        subprocess.run(mounting, check=True, pass_fds=[self._fuse])
        try:
            self.fd = os.open(directory / "file", os.O_RDWR)
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)

    def __enter__(self) -> Self:
        return self

    def arm(self) -> None:
        """Close the own file; whoever closes another from now on waits."""
        os.close(self.fd)
        self._armed.set()

    def end(self) -> None:
        """Have everybody's close return. Harmless when repeated."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        os.close(self._fuse)
        if not self._armed.is_set():
            os.close(self.fd)

    def __exit__(self, *_: object) -> None:
        self.end()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._fuse], [], [], 0.1)[0]:
                continue
            with suppress(OSError):  # nothing is mounted yet; or what takes no reply
                self._answer(os.read(self._fuse, 2 * MIB))

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = _REQUEST.unpack_from(request)
        if self._armed.is_set():
            if opcode not in OF_A_CLOSE:
                self.asked.append(opcode)
            if opcode == FLUSH:
                self.n_waiting += 1
                return
        replies = {
            LOOKUP: struct.pack("=4Q2I", 2, 0, 60, 60, 0, 0) + _attributes(2),
            GETATTR: struct.pack("=Q2I", 60, 0, 0) + _attributes(node),
            OPEN: struct.pack("=Q2I", 1, 0, 0),
            FLUSH: b"",
            INIT: struct.pack("=4I2H2I2HI7I", 7, 31, 0, 0, 10, 10, MIB, 1, 0, 0, 0, *[0] * 7),
        }
        content = replies.get(opcode, b"")
        error = 0 if opcode in replies else -errno.ENOSYS
        os.write(self._fuse, struct.pack("=IiQ", 16 + len(content), error, unique) + content)


def _attributes(node: int) -> bytes:
    mode = 0o40755 if node == 1 else 0o100666
    return struct.pack("=6Q10I", node, *[0] * 5, *[0] * 3, mode, 1, 0, 0, 0, 4096, 0)
