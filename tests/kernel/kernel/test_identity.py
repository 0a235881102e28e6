"""What is taken for guest memory, for a process and for a cgroup, and what never is."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.identity import (
    FileKind,
    NotACgroupError,
    NotAPidfdError,
    NotMemoryError,
    cgroup_of_procs,
    guest_memfd_device,
    identify_memory,
    pid_of_pidfd,
)
from gmemd.kernel.kvm import Kvm
from gmemd.kernel.process import pidfd_open
from tests.kernel.fuse import Fuse, Opcode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmemd.kernel.kvm import KvmVm

SIZE = 16 << 20
HUGE = 2 << 20


@pytest.fixture
def device() -> int | None:
    """The device of guest_memfds here."""
    try:
        with Kvm() as kvm, kvm.create_vm() as vm:
            fd = vm.create_guest_memfd(4096, 0)
    except KernelError:
        return None
    found = guest_memfd_device(fd)
    os.close(fd)
    return found


def refusal(fd: int, device: int | None = None) -> str:
    with pytest.raises(NotMemoryError) as caught:
        identify_memory(fd, guest_memfd_device=device)
    return caught.value.reason


def test_a_memfd(memfd: int, device: int | None) -> None:
    found = identify_memory(memfd, guest_memfd_device=device)
    status = os.fstat(memfd)
    assert (found.kind, found.size_bytes, found.page_size) == (FileKind.MEMFD, SIZE, 4096)
    assert found.inode == (status.st_dev, status.st_ino)


def test_a_memfd_of_huge_pages(huge_fd: int) -> None:
    found = identify_memory(huge_fd, guest_memfd_device=None)
    assert (found.kind, found.size_bytes, found.page_size) == (FileKind.MEMFD, 8 * HUGE, HUGE)


@pytest.mark.parametrize("flags", [0, 1, 3])
def test_a_guest_memfd_of_any_flags(vm: KvmVm, device: int | None, flags: int) -> None:
    if flags & ~vm.guest_memfd_flags():
        pytest.skip("this kernel has no guest_memfd with these flags")
    fd = vm.create_guest_memfd(SIZE, flags)
    try:
        found = identify_memory(fd, guest_memfd_device=device)
        status = os.fstat(fd)
        assert (found.kind, found.size_bytes) == (FileKind.GUEST_MEMFD, SIZE)
        assert found.inode == (status.st_dev, status.st_ino)
        assert "neither" in refusal(fd, None)
    finally:
        os.close(fd)


def test_seals_that_leave_it_writable_are_no_matter() -> None:
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    sealable = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(sealable, fcntl.F_ADD_SEALS, seals)
        found = identify_memory(sealable, guest_memfd_device=None)
        assert (found.kind, found.size_bytes) == (FileKind.MEMFD, 0)
    finally:
        os.close(sealable)


def test_a_memfd_sealed_against_writing_is_of_no_use() -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert refusal(fd) == "/memfd:sealed (deleted) is sealed against writing"
    finally:
        os.close(fd)


def open_read_only_memfd() -> int:
    fd = os.memfd_create("read-only")
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def open_path_of_memfd() -> int:
    fd = os.memfd_create("path")
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH)
    finally:
        os.close(fd)


def open_file_in(directory: str) -> int:
    with tempfile.NamedTemporaryFile(dir=directory, prefix="memfd:") as file:
        return os.dup(file.fileno())


def open_fifo() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fifo")
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)


def open_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def open_fifo_in_memory() -> int:
    path = Path("/dev/shm/gmemd-test-fifo")  # noqa: S108  a tmpfs is meant
    os.mkfifo(path)
    try:
        return os.open(path, os.O_RDWR)
    finally:
        path.unlink()


WRONG: dict[str, tuple[Callable[[], int], str]] = {
    "read-only memfd": (open_read_only_memfd, "not open for reading and writing"),
    "O_PATH of a memfd": (open_path_of_memfd, "open as a path only"),
    "FIFO": (open_fifo, "neither"),
    "FIFO on a tmpfs": (open_fifo_in_memory, "neither"),
    "socket": (open_socket, "neither"),
    "regular file": (lambda: open_file_in("/var/tmp"), "a memfd"),  # noqa: S108
    "tmpfs file": (lambda: open_file_in("/dev/shm"), "of a mounted file system"),  # noqa: S108
    "/dev/zero": (lambda: os.open("/dev/zero", os.O_RDWR), "neither"),
    "/dev/null": (lambda: os.open("/dev/null", os.O_WRONLY), "not open for reading and writing"),
    "directory": (lambda: os.open("/dev/shm", os.O_RDONLY), "not open for reading"),  # noqa: S108
    "eventfd": (lambda: os.eventfd(0), "neither"),
    "pidfd": (lambda: pidfd_open(os.getpid()), "anon_inode:[pidfd] is neither"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_anything_else_is_refused_in_one_sentence(kind: str, device: int | None) -> None:
    make, said = WRONG[kind]
    fd = make()
    try:
        reason = refusal(fd, device)
    finally:
        os.close(fd)
    assert said in reason
    assert "\n" not in reason


def test_the_vm_itself_and_its_device_are_no_memory(vm: KvmVm, device: int | None) -> None:
    assert refusal(vm.fd, device) == "anon_inode:kvm-vm is neither a guest_memfd nor a memfd"


def test_a_descriptor_that_is_none(device: int | None) -> None:
    with pytest.raises(KernelError) as caught:
        identify_memory(1 << 20, guest_memfd_device=device)
    assert caught.value.errno_name == "EBADF"


def test_a_name_that_no_terminal_should_see_is_spelled_out(tmp_path: Path) -> None:
    for name in (b"line\nfeed", b"\xff\xfe", b"\x1b[31m"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118  bytes
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        reason = refusal(fd)
        os.close(fd)
        assert reason.isprintable()
        reason.encode()


def test_a_very_long_name(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(20):
            os.mkdir("d" * 250)  # noqa: PTH102  a path would be too long
            os.chdir("d" * 250)
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
    finally:
        os.chdir(before)
    assert "very long name" in refusal(fd)
    os.close(fd)
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", ["[kvm-gmem]", "memfd:ram"])
def test_a_file_system_that_may_never_answer_is_not_asked(name: str, device: int | None) -> None:
    with Fuse(name) as fuse:
        fd = fuse.open(os.O_RDWR)
        fuse.path.unlink()
        fuse.detach()
        assert Path(f"/proc/self/fd/{fd}").readlink() == Path(f"/{name} (deleted)")
        before = list(fuse.asked)
        assert "neither a guest_memfd nor a memfd" in refusal(fd, device)
        assert fuse.asked == before
        os.fstat(fd)
        assert fuse.asked == [*before, Opcode.GETATTR]
        os.close(fd)


def test_a_file_system_named_like_a_cgroup_is_not_asked() -> None:
    with Fuse("cgroup.procs") as fuse:
        fd = fuse.open(os.O_WRONLY)
        before = list(fuse.asked)
        with pytest.raises(NotACgroupError, match="of no cgroup v2"):
            cgroup_of_procs(fd)
        assert fuse.asked == before
        os.close(fd)


def test_a_pidfd_is_of_its_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        pidfd = pidfd_open(child.pid)
        try:
            assert pid_of_pidfd(pidfd) == child.pid
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert pid_of_pidfd(pidfd) == child.pid
            child.wait()
            with pytest.raises(NotAPidfdError, match="has exited"):
                pid_of_pidfd(pidfd)
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("kind", ["memfd", "/proc/self/stat"])
def test_what_is_no_pidfd(kind: str, memfd: int) -> None:
    fd = os.dup(memfd) if kind == "memfd" else os.open(kind, os.O_RDONLY)
    try:
        with pytest.raises(NotAPidfdError, match="is no pidfd"):
            pid_of_pidfd(fd)
    finally:
        os.close(fd)


def test_a_pidfd_of_a_thread_is_none_of_a_process() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = libc.syscall(434, os.getpid(), os.O_EXCL)
    if pidfd < 0:
        pytest.skip("this kernel has no pidfds of threads")
    with pytest.raises(NotAPidfdError, match="of a thread"):
        pid_of_pidfd(pidfd)
    os.close(pidfd)


def test_a_process_of_a_namespace_that_is_not_seen_has_no_pid() -> None:
    """unshare's child sees none of the processes outside, by its own /proc."""
    program = (
        "import os, sys\n"
        "from gmemd.kernel.identity import NotAPidfdError, pid_of_pidfd\n"
        "try:\n    print(pid_of_pidfd(int(sys.argv[1])))\n"
        "except NotAPidfdError as error:\n    print(error)\n"
    )
    pidfd = pidfd_open(os.getpid())
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    try:
        done = subprocess.run(
            [*command, str(pidfd)], pass_fds=[pidfd], capture_output=True, text=True, check=False
        )
    finally:
        os.close(pidfd)
    if "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.stdout.strip() == (
        "the pidfd's process is in a PID namespace that gmemd doesn't see"
    ), done.stderr


@pytest.fixture
def mount() -> Path:
    """Where cgroup v2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    pytest.skip("no cgroup v2 here")


@pytest.fixture
def group(mount: Path) -> Iterator[Path]:
    directory = mount / "gmemd-test-identity" / "below"
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield directory
    directory.rmdir()
    directory.parent.rmdir()


def test_a_cgroup_is_known_by_its_procs(mount: Path, group: Path) -> None:
    fd = os.open(group / "cgroup.procs", os.O_WRONLY)
    assert cgroup_of_procs(fd, mount) == group
    os.close(fd)


def test_a_cgroup_by_another_name_is_found(mount: Path, group: Path, tmp_path: Path) -> None:
    """As from a container, whose /sys/fs/cgroup is a part of the host's."""
    done = subprocess.run(["mount", "--bind", str(group.parent), str(tmp_path)], check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    fd = os.open(tmp_path / "below" / "cgroup.procs", os.O_WRONLY)
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    assert Path(f"/proc/self/fd/{fd}").readlink() == Path("/below/cgroup.procs")
    assert cgroup_of_procs(fd, mount) == group
    os.close(fd)


ELSEWHERE = """
import os, socket, subprocess, sys
subprocess.run(["mount", "--bind", sys.argv[2], sys.argv[3]], check=True)
with socket.socket(fileno=int(sys.argv[1])) as channel:
    fd = os.open(os.path.join(sys.argv[3], "cgroup.procs"), os.O_WRONLY)
    socket.send_fds(channel, [b"."], [fd])
    channel.recv(1)
"""


def test_a_name_that_means_another_file_here_is_not_looked_at(mount: Path, group: Path) -> None:
    """From a namespace where a cgroup is mounted at a place that is somebody's own here."""
    with Fuse("cgroup.procs") as fuse:
        ours, theirs = socket.socketpair()
        command = ["unshare", "--mount", sys.executable, "-c", ELSEWHERE, str(theirs.fileno())]
        command += [str(group), str(fuse.path.parent)]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]), ours:
            theirs.close()
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            if not fds:
                pytest.skip("no namespaces here")
            assert Path(f"/proc/self/fd/{fds[0]}").readlink() == fuse.path
            asked = list(fuse.asked)
            assert cgroup_of_procs(fds[0], mount) == group
            assert fuse.asked == asked
            os.close(fds[0])


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("cgroup.procs", os.O_RDONLY, "not open for writing"),
        ("cgroup.procs", os.O_PATH, "not open for writing"),
        ("cgroup.max.depth", os.O_WRONLY, "no cgroup's cgroup.procs"),
    ],
)
def test_what_is_no_cgroups_procs(
    mount: Path, group: Path, name: str, flags: int, said: str
) -> None:
    fd = os.open(group / name, flags)
    with pytest.raises(NotACgroupError, match=said):
        cgroup_of_procs(fd, mount)
    os.close(fd)


def test_a_file_of_that_name_elsewhere(mount: Path, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "cgroup.procs", os.O_WRONLY | os.O_CREAT)
    for where in (mount, tmp_path, tmp_path / "not there"):
        with pytest.raises(NotACgroupError, match="of no cgroup v2"):
            cgroup_of_procs(fd, where)
    os.close(fd)


def test_a_cgroup_that_is_gone(mount: Path, group: Path) -> None:
    doomed = group / "doomed"
    doomed.mkdir()
    fd = os.open(doomed / "cgroup.procs", os.O_WRONLY)
    doomed.rmdir()
    with pytest.raises(NotACgroupError):
        cgroup_of_procs(fd, mount)
    os.close(fd)
