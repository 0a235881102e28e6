"""Which files guest memory is mapped from: told by their device, without asking the files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.host.vms.model import PieceKind
from gmemd.kernel.memfd import PAGE_SIZE, memfd_devices
from gmemd.kernel.procfs.text import ProcfsError, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Device = tuple[int, int]

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
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
        text = read_text(path)
    except ProcfsError:
        return {}
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        words = rest.split()
        device = fields.split()[2] if len(fields.split()) > 2 else ""  # noqa: PLR2004  its place
        major, _, minor = device.partition(":")
        if not words or not (major.isdigit() and minor.isdigit()):
            continue
        if words[0] == "hugetlbfs":
            found[int(major), int(minor)] = _page_size_of(words[-1])
        elif words[0] in _IN_MEMORY:
            found[int(major), int(minor)] = PAGE_SIZE
    return found


def _page_size_of(options: str) -> int:
    """``pagesize=2M`` of a hugetlbfs; the base page's where it isn't told."""
    for option in options.split(","):
        key, _, value = option.partition("=")
        if key == "pagesize" and value[:-1].isdigit() and value[-1] in _UNITS:
            return int(value[:-1]) * _UNITS[value[-1]]
    return PAGE_SIZE
