import lzma
import stat
import subprocess
from pathlib import Path

import pytest

from tests.lab.image import Image
from tests.lab.initramfs import build_initramfs, cpio_entry, load_order, module_content

MODULES_DEP = """\
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/ccp.ko.xz kernel/arch/x86/kvm/kvm.ko.xz kernel/irq.ko.xz
kernel/arch/x86/kvm/kvm.ko.xz: kernel/irq.ko.xz
kernel/drivers/ccp.ko.xz:
kernel/irq.ko.xz:
kernel/fs/ext4.ko.xz: kernel/fs/jbd2.ko.xz
kernel/fs/jbd2.ko.xz:
"""  # noqa: E501


def test_modules_come_after_what_they_need() -> None:
    assert load_order(MODULES_DEP, ["ext4", "kvm-amd"]) == [
        "kernel/fs/jbd2.ko.xz",
        "kernel/fs/ext4.ko.xz",
        "kernel/irq.ko.xz",
        "kernel/arch/x86/kvm/kvm.ko.xz",
        "kernel/drivers/ccp.ko.xz",
        "kernel/arch/x86/kvm/kvm-amd.ko.xz",
    ]


@pytest.mark.parametrize("name", ["kvm_amd", "kvm-amd"])
def test_dashes_and_underscores_are_one(name: str) -> None:
    assert load_order(MODULES_DEP, [name])[-1] == "kernel/arch/x86/kvm/kvm-amd.ko.xz"


def test_what_is_built_in_is_left_out() -> None:
    assert load_order(MODULES_DEP, ["virtio_pci"]) == []


@pytest.mark.parametrize("length", range(5))
def test_cpio_entries_are_padded_to_four_bytes(length: int) -> None:
    assert len(cpio_entry("n" * length, b"c" * length, stat.S_IFREG)) % 4 == 0


def test_a_module_is_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "a.ko.xz"
    packed.write_bytes(lzma.compress(b"module"))
    plain = tmp_path / "b.ko"
    plain.write_bytes(b"module")
    assert module_content(packed) == module_content(plain) == b"module"


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    folder = tmp_path / "modules" / "7.3.4-amd64"
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/ext4.ko:\n")
    (folder / "kernel" / "ext4.ko").write_bytes(b"module")
    (tmp_path / "busybox").write_bytes(b"busy")
    archive = tmp_path / "initramfs"
    build_initramfs(Image(tmp_path), "7.3.4-amd64", archive)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    with archive.open("rb") as stream:
        subprocess.run(["cpio", "-id", "--quiet"], stdin=stream, cwd=unpacked, check=True)
    assert (unpacked / "modules" / "00-ext4.ko").read_bytes() == b"module"
    assert (unpacked / "bin" / "busybox").read_bytes() == b"busy"
    assert (unpacked / "bin" / "sh").readlink() == Path("busybox")
    assert stat.S_IMODE((unpacked / "init").stat().st_mode) == 0o755
