"""What of a VMM's address space may be guest memory, and how its pages count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.host.vms.descriptors import read_descriptors
from gmemd.host.vms.filesystems import Filesystems, read_mounts
from gmemd.host.vms.model import Piece, PieceKind
from gmemd.host.vms.pieces import large_mappings, maps_a_vcpu, read_pieces
from gmemd.kernel.procfs.text import ProcfsError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.host.vms.conftest import ProcTree

MIB = 1 << 20
FILESYSTEMS = Filesystems(unnamed={(0, 1): 4096, (0, 16): 2 * MIB}, mounted={(0, 40): 1 << 30})
MEMFD = "/memfd:memory-backend-memfd (deleted)"


def pieces(tree: ProcTree, maps: str, fds: dict[int, str] | None = None) -> list[Piece]:
    tree.add(7, ["qemu-system-x86_64"], maps=maps, fds=fds)
    descriptors = read_descriptors(7, tree.root)
    return list(read_pieces(7, descriptors, FILESYSTEMS, tree.root))


def line(mib: float, rest: str, at: int = 0x7F0000000000) -> str:
    return f"{at:x}-{at + int(mib * MIB):x} {rest}\n"


def test_anonymous_memory(tree: ProcTree) -> None:
    (piece,) = pieces(tree, line(256, "rw-p 00000000 00:00 0 "))
    assert piece == Piece(PieceKind.ANONYMOUS, 256 * MIB, 4096, address=0x7F0000000000)


def test_what_is_no_memory_of_a_guest(tree: ProcTree) -> None:
    maps = (
        line(256, "---p 00000000 00:00 0 ")
        + line(1024, "rwxp 00000000 00:00 0 ")
        + line(64, "r--p 00000000 fe:00 99                 /usr/lib/libbig.so")
        + line(0.5, "rw-p 00000000 00:00 0 ")
        + line(12, "rw-p 00000000 00:00 0                  [heap]")
        + line(8, "rw-p 00000000 00:00 0                  [stack]")
    )
    assert pieces(tree, maps) == []


def test_a_shared_memfd_and_its_descriptor(tree: ProcTree) -> None:
    maps = line(64, f"rw-s 00000000 00:01 1009                 {MEMFD}")
    (piece,) = pieces(tree, maps, {9: MEMFD, 10: "socket:[5]"})
    assert (piece.kind, piece.shared, piece.fds) == (PieceKind.MEMFD, True, (9,))
    assert piece.inode == (0, 1, 1009)


def test_another_files_descriptor_with_the_same_inode_number(tree: ProcTree) -> None:
    maps = line(64, f"rw-s 00000000 00:01 1009                 {MEMFD}")
    (piece,) = pieces(tree, maps, {9: "/var/lib/images/disk.raw"})
    assert piece.fds == ()


def test_a_private_mapping_of_a_file_is_anonymous_memory(tree: ProcTree) -> None:
    maps = line(64, f"rw-p 00000000 00:10 1009                 {MEMFD}")
    (piece,) = pieces(tree, maps, {9: MEMFD})
    assert (piece.kind, piece.file, piece.page_size) == (
        PieceKind.ANONYMOUS,
        PieceKind.MEMFD,
        2 * MIB,
    )
    assert piece.allocated_bytes is None


def test_huge_pages_by_the_files_device(tree: ProcTree) -> None:
    maps = line(2048, "rw-s 00000000 00:28 77  /dev/hugepages/qemu_back_mem.m0.AbCdEf (deleted)")
    (piece,) = pieces(tree, maps)
    assert (piece.kind, piece.page_size) == (PieceKind.FILE, 1 << 30)


def test_a_file_in_a_mount_namespace_of_its_own(tree: ProcTree) -> None:
    folder = tree.add(7, ["vmm"], maps=line(64, "rw-s 00000000 00:99 77  /pages/ram"))
    (folder / "mountinfo").write_text(
        "50 40 0:153 / /pages rw,relatime - hugetlbfs hugetlbfs rw,pagesize=2M\n"
    )
    found = read_pieces(7, read_descriptors(7, tree.root), FILESYSTEMS, tree.root)
    assert [piece.page_size for piece in found] == [2 * MIB]


def test_a_guest_memfd_that_only_maps_can_tell(tree: ProcTree) -> None:
    maps = line(64, "rw-s 00000000 00:0f 1012                 /[kvm-gmem] (deleted)")
    folder = tree.add(7, ["vmm"], maps=maps, fds={12: "/[kvm-gmem] (deleted)"})
    descriptors = read_descriptors(7, tree.root)
    without_links = type(descriptors)(None, {12: 1012}, userfaultfd=False)
    found = read_pieces(7, without_links, FILESYSTEMS, tree.root)
    assert [(piece.kind, piece.size_bytes, piece.fds, piece.address) for piece in found] == [
        (PieceKind.GUEST_MEMFD, 64 * MIB, (12,), None)
    ]
    assert folder.is_dir()


def test_a_vcpu_is_told_by_its_mapping(tree: ProcTree) -> None:
    tree.add(1, ["a"], maps="7f00-7f10 rw-s 00000000 00:10 26     anon_inode:kvm-vcpu:0\n")
    tree.add(2, ["a"], maps="7f00-7f10 rw-p 00000000 fe:00 26     /tmp/kvm-vcpu:0\n")
    tree.add(3, ["a"], maps="7f00-7f10 rw-s 00000000 00:10 26     /[kvm-vcpu:0] (deleted)\n")
    assert [maps_a_vcpu(pid, tree.root) for pid in (1, 2, 3)] == [True, False, True]


def test_mounts_that_are_memory(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(
        "24 27 0:6 / /dev rw - devtmpfs devtmpfs rw\n"
        "25 24 0:23 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw,size=1k\n"
        "26 24 0:40 / /dev/hugepages rw - hugetlbfs hugetlbfs rw,gid=0,pagesize=1024M\n"
        "27 1 254:0 / / rw - ext4 /dev/root rw\n"
        "nonsense\n"
    )
    assert read_mounts(path) == {(0, 6): 4096, (0, 23): 4096, (0, 40): 1 << 30}
    assert read_mounts(tmp_path / "missing") == {}


def test_devices_and_sizes_that_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(
        f"25 24 0:² /a rw - tmpfs tmpfs rw\n26 24 0:{'9' * 5000} /a rw - tmpfs tmpfs rw\n"
        "27 24 0:40 / /a rw - hugetlbfs hugetlbfs rw,pagesize=²M\n"
        f"28 24 0:41 / /a rw - hugetlbfs hugetlbfs rw,pagesize={'9' * 5000}M\n"
    )
    assert read_mounts(path) == {(0, 40): 4096, (0, 41): 4096}


def test_a_mount_s_name_adds_no_other_mount(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_text("25 24 0:23 / /a\x0c9 9 0:99 / / rw - tmpfs - - ext4 /dev/a rw\n")
    assert (0, 99) not in read_mounts(path)


def test_damaged_mappings_are_a_typed_error(tree: ProcTree) -> None:
    tree.add(7, ["vmm"], maps="7f0000000000-7f00g rw-s 00000000 00:28 77  /a\n")
    descriptors = read_descriptors(7, tree.root)
    with pytest.raises(ProcfsError, match="is no mapping"):
        read_pieces(7, descriptors, FILESYSTEMS, tree.root)
    with pytest.raises(ProcfsError, match="is no mapping"):
        large_mappings(7, tree.root, MIB)


def test_an_inode_s_number_that_is_none(tree: ProcTree) -> None:
    folder = tree.add(7, ["vmm"], fds={9: "/memfd:ram"})
    (folder / "fdinfo/9").write_text(f"ino:\t{'9' * 5000}\n")
    assert read_descriptors(7, tree.root).inodes == {9: 0}
