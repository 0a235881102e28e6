"""A small initramfs: the modules that the lab needs, busybox, and a script that finds the root."""

from __future__ import annotations

import lzma
import stat
from typing import TYPE_CHECKING

from tests.lab.definition import GUEST_FILES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.lab.image import Image

# crc32c is what ext4 wants by a soft dependency in kernels that have it as a module.
WANTED_MODULES = (
    "crc32c_generic",
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
)


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths of the wanted modules and of all they need, each after what it needs.

    ``modules_dep`` is the text of a modules.dep. A module that isn't in it is built in, or not in
    this kernel, and left out.
    """
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[module_name(path)] = path
    order: list[str] = []

    def add(path: str) -> None:
        for needed in reversed(needs[path]):
            add(needed)
        if path not in order:
            order.append(path)

    for name in wanted:
        found = by_name.get(module_name(name))
        if found is not None:
            add(found)
    return order


def module_name(path: str) -> str:
    """The name the kernel uses: "kernel/fs/x/kvm-amd.ko.xz" is "kvm_amd"."""
    return path.rsplit("/", 1)[-1].split(".ko", maxsplit=1)[0].replace("-", "_")


def build_initramfs(image: Image, release: str, target: Path) -> None:
    """Writes the initramfs for one of the image's kernels, an uncompressed cpio archive."""
    modules = image.modules(release)
    order = load_order((modules / "modules.dep").read_text(), WANTED_MODULES)
    with target.open("wb") as archive:
        for folder in ("bin", "dev", "proc", "sys", "modules", "root"):
            archive.write(cpio_entry(folder, b"", stat.S_IFDIR | 0o755))
        archive.write(cpio_entry("bin/busybox", image.busybox.read_bytes(), stat.S_IFREG | 0o755))
        archive.write(cpio_entry("bin/sh", b"busybox", stat.S_IFLNK | 0o777))
        for number, path in enumerate(order):
            name = f"modules/{number:02}-{module_name(path)}.ko"
            archive.write(cpio_entry(name, module_content(modules / path), stat.S_IFREG | 0o644))
        for name in ("init", "stage2"):
            script = (GUEST_FILES / f"{name}.sh").read_bytes()
            archive.write(cpio_entry(name, script, stat.S_IFREG | 0o755))
        archive.write(cpio_entry("TRAILER!!!", b"", 0))


def module_content(path: Path) -> bytes:
    """A module as insmod of busybox takes it: not compressed."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def cpio_entry(name: str, content: bytes, mode: int) -> bytes:
    """One member of a cpio archive in the "newc" format (the kernel's initramfs buffer format)."""
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (0, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
