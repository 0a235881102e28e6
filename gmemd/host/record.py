"""Writes down a host: the files of /sys and /proc that `read_host` reads, and the features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.host.errors import HostError
from gmemd.host.reading import LIVE_ROOT, NODES, PANIC_ON_OOM, POOLS, WEIGHTS
from gmemd.host.recorded import Record, write_record
from gmemd.kernel.procfs.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gmemd.host.model import Host

_PATTERNS = (
    f"{NODES}/online",
    f"{NODES}/possible",
    f"{NODES}/has_*",
    f"{NODES}/node[0-9]*/meminfo",
    f"{NODES}/node[0-9]*/distance",
    f"{NODES}/node[0-9]*/cpulist",
    f"{NODES}/node[0-9]*/hugepages/*/*_hugepages",
    f"{WEIGHTS}/node[0-9]*",
    f"{POOLS}/*/resv_hugepages",
    "proc/zoneinfo",
    "proc/sys/kernel/osrelease",
    PANIC_ON_OOM,
)
_STATUS = "proc/self/status"
_STATUS_KEYS = ("Cpus_allowed_list:", "Mems_allowed_list:")


def record(directory: Path, host: Host, root: Path = LIVE_ROOT) -> int:
    """Write the host below ``root`` into a new or empty directory; the number of files written.

    Nothing that tells who or what runs on the machine is in it. Raises HostError where the
    directory isn't empty or can't be written, ProcfsError where a file can't be read.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise HostError(f"{directory} isn't empty", hint="name a directory that is new")
        written = 0
        for path, text in _texts(root):
            copy = directory / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)
            written += 1
        write_record(directory, Record(host.page_size, host.features))
    except OSError as error:
        raise HostError(f"recording to {directory}: {error.strerror}: {error.filename}") from error
    return written + 1


def _texts(root: Path) -> Iterator[tuple[str, str]]:
    """Path below the root and text of each file of the record."""
    for pattern in _PATTERNS:
        for path in sorted(root.glob(pattern)):
            yield str(path.relative_to(root)), read_text(path)
    status = read_text(root / _STATUS).splitlines(keepends=True)
    yield _STATUS, "".join(line for line in status if line.startswith(_STATUS_KEYS))
