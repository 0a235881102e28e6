"""A file system of this process' own (FUSE) that writes down what it is asked."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
import tempfile
import threading
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from types import TracebackType

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
_REQUEST = struct.Struct("=IIQQIIII")
_ANSWER = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_ROOT, _FILE = 1, 2
_ENOENT, _ENOSYS = 2, 38
_SIZE = 1 << 20


class Opcode(IntEnum):
    """What the kernel may ask; include/uapi/linux/fuse.h."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    UNLINK = 10
    OPEN = 14
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    BATCH_FORGET = 42


class Fuse:
    """A mounted directory with one file of ``name``; ``asked`` has the opcode of every request.

    It remembers no attributes, so that everybody who wants one asks. Skips where it can't be
    mounted.
    """

    def __init__(self, name: str) -> None:
        self.asked: list[int] = []
        self._name = name.encode()
        self._device = os.open("/dev/fuse", os.O_RDWR) if Path("/dev/fuse").exists() else -1
        self._directory = tempfile.TemporaryDirectory()
        self._mounted = False
        self.path = Path(self._directory.name, name)

    def __enter__(self) -> Self:
        where = self._directory.name.encode()
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if self._device < 0 or _LIBC.mount(b"test", where, b"fuse", 0, options) != 0:
            pytest.skip("no FUSE file system can be mounted here")
        self._mounted = True
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()
        self._directory.cleanup()

    def open(self, flags: int) -> int:
        return os.open(self.path, flags)

    def detach(self) -> None:
        """Unmounts; files that are open stay so, and their names begin at the mount's root."""
        if self._mounted:
            assert _LIBC.umount2(self._directory.name.encode(), _MNT_DETACH) == 0
            self._mounted = False

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 17)
            except OSError:  # the last file is closed: the file system is gone
                os.close(self._device)
                return
            _, opcode, unique, node, *_ = _REQUEST.unpack_from(request)
            if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
                continue
            self.asked.append(opcode)
            error, payload = self._answer(opcode, node, request[_REQUEST.size :])
            answer = _ANSWER.pack(_ANSWER.size + len(payload), -error, unique) + payload
            with contextlib.suppress(OSError):  # who asked waits no more
                os.write(self._device, answer)

    def _answer(self, opcode: int, node: int, arguments: bytes) -> tuple[int, bytes]:
        if opcode == Opcode.LOOKUP and arguments.rstrip(b"\0") != self._name:
            return _ENOENT, b""
        answers = {
            Opcode.INIT: struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 4096, 1, 1, 0, *[0] * 8),
            Opcode.LOOKUP: struct.pack("=4Q2I", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE),
            Opcode.GETATTR: struct.pack("=QII", 0, 0, 0) + _attributes(node),
            Opcode.OPEN: struct.pack("=QII", 0, 0, 0),
            Opcode.UNLINK: b"",
            Opcode.FLUSH: b"",
            Opcode.RELEASE: b"",
        }
        return (0, answers[Opcode(opcode)]) if opcode in answers else (_ENOSYS, b"")


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
    return _ATTRIBUTES.pack(node, _SIZE, *[0] * 7, mode, 1, 0, 0, 0, 4096, 0)
