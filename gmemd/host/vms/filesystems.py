"""Which files guest memory is mapped from: told by their device, without asking the files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.host.vms.model import PieceKind
from gmemd.kernel.memfd import PAGE_SIZE, memfd_devices
from gmemd.kernel.procfs.text import ProcfsError, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Device = tuple[int, int]

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DEVICE = re.compile(r"(\d{1,9}):(\d{1,9})", re.ASCII)
_PAGE_SIZE = re.compile(r"pagesize=(\d{1,9})([KMG])", re.ASCII)
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True, slots=True)
class Filesystems:
    """Page sizes (bytes) by device: of the kernel's own files, and of mounted tmpfs and hugetlbfs.

    ``unnamed`` are the devices of files that have no mount: memfds, shared anonymous memory.
    """

    unnamed: Mapping[Device, int] = field(default_factory=dict)
    mounted: Mapping[Device, int] = field(default_factory=dict)

    def page_size(self, device: Device) -> int:
        """The size of the pages that such a file has, as far as it is fixed."""
        return self.unnamed.get(device) or self.mounted.get(device) or PAGE_SIZE

    def in_memory(self, device: Device) -> bool:
        """Whether such a file is memory alone, so that asking for its size can't block."""
        return device in self.unnamed or device in self.mounted

    def kind(self, device: Device) -> PieceKind:
        """How a shared mapping of such a file counts."""
        return PieceKind.MEMFD if device in self.unnamed else PieceKind.FILE


def read_filesystems(root: Path) -> Filesystems:
    """What this machine has; the kernel's own devices and those of mounts."""
    unnamed = {
        (os.major(device), os.minor(device)): page_size
        for device, page_size in memfd_devices(root).items()
    }
    return Filesystems(unnamed, read_mounts(root / "proc/self/mountinfo"))


def read_mounts(path: Path) -> dict[Device, int]:
    """Page sizes of the mounted file systems that live in memory, by device.

    Empty where the file can't be read.
    """
    found = {}
    try:
        lines = read_lines(path)
    except ProcfsError:
        return {}
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words = rest.split()
        device = _DEVICE.fullmatch("".join(fields.split()[2:3]))
        if not words or device is None:
            continue
        if words[0] == "hugetlbfs":
            found[int(device[1]), int(device[2])] = _page_size_of(words[-1])
        elif words[0] in _IN_MEMORY:
            found[int(device[1]), int(device[2])] = PAGE_SIZE
    return found


def _page_size_of(options: str) -> int:
    """``pagesize=2M`` of a hugetlbfs; the base page's where it isn't told."""
    for option in options.split(","):
        size = _PAGE_SIZE.fullmatch(option)
        if size is not None:
            return int(size[1]) * _UNITS[size[2]]
    return PAGE_SIZE
