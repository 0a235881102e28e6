"""Metrics as a file for node_exporter's textfile collector."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError
from gmemd.export.exposition import Exposition

if TYPE_CHECKING:
    from pathlib import Path

    from gmemd.export.snapshot import Snapshot

SUFFIX = ".prom"
"""node_exporter reads no other files."""


class TextfileError(GmemdError):
    """The file can't be written; what was there is as it was."""

    exit_code = Exit.HOST


def render_textfile(snapshot: Snapshot) -> bytes:
    """Return what one look at the running VMs found, in Prometheus' text format."""
    return Exposition().render(snapshot)[1]


def write_textfile(path: Path, content: bytes) -> None:
    """Replace the file whole: a reader sees the old one or the new one, never a part.

    It becomes readable for all, as node_exporter is another user. Raises TextfileError.
    """
    try:
        fd, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.replace(part, path)  # noqa: PTH105  both are names in one directory
        except BaseException:
            os.unlink(part)  # noqa: PTH108  as above
            raise
    except OSError as error:
        number = error.errno or 0
        raise TextfileError(
            f"{path}: cannot be written: {os.strerror(number)}", hint=_remedy(number, path)
        ) from error


def _remedy(number: int, path: Path) -> str | None:
    if number == errno.ENOENT:
        return f"make the directory: mkdir -p {path.parent}"
    if number in (errno.EACCES, errno.EPERM):
        return f"run gmemd as a user that may write to {path.parent}"
    return None
