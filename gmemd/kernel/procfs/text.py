"""Reading the kernel's small text files: one typed error, id lists, single numbers."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from pathlib import Path

HIGHEST_ID = 1 << 16
"""No node or CPU number of any Linux is as high; more in a list is damage, not a machine."""


LONGEST_NUMBER = 20
"""Digits of the largest 64-bit number."""

_CHUNK_BYTES = 1 << 16


class ProcfsError(GmemdError):
    """A file below /proc, /sys or a cgroup that can't be read, or isn't what it should be.

    ``path`` names the file as far as it is known; ``errno`` is the system's, or 0 for bad text.
    """

    exit_code = Exit.HOST

    def __init__(self, path: str, why: str, *, error: int = 0, hint: str | None = None) -> None:
        super().__init__(_printable(f"{path}: {why}"), hint=hint)
        self.path = path
        self.why = why
        self.errno = error


def _printable(text: str) -> str:
    """Escape what isn't printable: names of cgroups and files are anybody's."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def below(root: Path, name: str) -> str:
    """Return the path of a file below a root; a Path takes longer to make than /proc to read."""
    return f"{str(root).rstrip('/')}/{name}"


def read_text(path: Path | str) -> str:
    """Return the file's text. Raises ProcfsError with the system's errno."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, _CHUNK_BYTES):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts).decode("utf-8", "surrogateescape")
    except ValueError as error:  # of a NUL, in the path of a cgroup
        raise ProcfsError(str(path), "no file has such a name", error=errno.EINVAL) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def list_names(directory: Path | str) -> list[str]:
    """Return the names in a directory, of which /proc has thousands. Raises ProcfsError."""
    try:
        return os.listdir(directory)  # noqa: PTH208  a Path for each takes longer
    except OSError as error:
        raise _unreadable(directory, error) from error


def _unreadable(path: Path | str, error: OSError) -> ProcfsError:
    number = error.errno or 0
    name = errno.errorcode.get(number, "?")
    why = f"cannot be read: {name} ({os.strerror(number)})"
    return ProcfsError(str(path), why, error=number, hint=_remedy(number))


def read_lines(path: Path | str) -> list[str]:
    """Return the file's lines; they end at line feeds alone, as names hold all else.

    Raises ProcfsError with the system's errno.
    """
    return read_text(path).removesuffix("\n").split("\n")


def _remedy(number: int) -> str | None:
    if number in (errno.EACCES, errno.EPERM):
        return "run gmemd as root, or as a user that may read this file"
    return None


def parse_number(text: str, path: str) -> int:
    """Return a whole number that isn't negative. Raises ProcfsError."""
    stripped = text.strip()
    if not (stripped.isascii() and stripped.isdigit() and len(stripped) <= LONGEST_NUMBER):
        raise ProcfsError(path, f"a number was expected, not {stripped[:40]!r}")
    return int(stripped)


def read_number(path: Path) -> int:
    """Return the one number that the file holds. Raises ProcfsError."""
    return parse_number(read_text(path), str(path))


def parse_id_list(text: str, path: str) -> frozenset[int]:
    """Return the kernel's list format, ``0-3,8``, as a set; empty text is the empty set.

    Raises ProcfsError for anything else.
    """
    found: set[int] = set()
    stripped = text.strip()
    if not stripped:
        return frozenset()
    for part in stripped.split(","):
        first, dash, last = part.partition("-")
        low = parse_number(first, path)
        high = parse_number(last, path) if dash else low
        if high < low or high >= HIGHEST_ID:
            raise ProcfsError(path, f"{part[:40]!r} is no range of numbers")
        found.update(range(low, high + 1))
    return frozenset(found)


def read_id_list(path: Path) -> frozenset[int]:
    """Return the file's id list as a set. Raises ProcfsError."""
    return parse_id_list(read_text(path), str(path))
