import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gmemd.kernel import process
from gmemd.kernel.errors import KernelError
from gmemd.kernel.identity import pid_of_pidfd
from gmemd.kernel.process import has_exited, peer_pidfd, pidfd_getfd, pidfd_open, set_affinity


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    program = f"from gmemd.kernel.process import *\nfrom pathlib import Path\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_an_fd_of_another_process_is_taken() -> None:
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE)
    pidfd = pidfd_open(child.pid)
    try:
        taken = pidfd_getfd(pidfd, 0)
        assert os.fstat(taken).st_ino == os.fstat(child.stdin.fileno()).st_ino  # type: ignore[union-attr]
        assert not os.get_inheritable(taken)
        os.close(taken)
        with pytest.raises(KernelError) as caught:
            pidfd_getfd(pidfd, 999)
        assert caught.value.errno_name == "EBADF"
    finally:
        child.kill()
        child.wait()
        os.close(pidfd)


def test_a_process_that_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(KernelError) as caught:
        pidfd_open(child.pid)
    assert caught.value.errno_name == "ESRCH"
    assert caught.value.hint == "the process is gone"


def test_taking_fds_of_a_stranger_needs_ptrace(
    stranger: Callable[[Callable[[], object]], str],
) -> None:
    said = stranger(lambda: pidfd_getfd(pidfd_open(1), 0))
    assert "pidfd_getfd: EPERM" in said
    assert "CAP_SYS_PTRACE" in said


CALLER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect(sys.argv[1])
    sys.stdin.read()
"""


@pytest.mark.parametrize("asked", ["the socket", "the pid"])
def test_who_is_at_the_other_end_of_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """By its pid where the kernel doesn't know what is asked, as before 6.5."""
    if asked == "the pid":
        monkeypatch.setattr(process, "_SO_PEERPIDFD", 9999)
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        command = [sys.executable, "-c", CALLER, path]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as caller:
            peer, _ = listener.accept()
            pidfd = peer_pidfd(peer)
            assert pid_of_pidfd(pidfd) == caller.pid
            assert not os.get_inheritable(pidfd)
            assert not has_exited(pidfd)
            caller.kill()
            os.waitid(os.P_PID, caller.pid, os.WEXITED | os.WNOWAIT)
            assert has_exited(pidfd)
        assert has_exited(pidfd)
        os.close(pidfd)
        with peer:
            assert whom_a_gone_peer_was(peer) in (["ESRCH"] if asked == "the pid" else GONE)


# Since 6.16 the kernel knows a peer that is gone, as one that has exited.
GONE = ["ESRCH", "exited"]


def whom_a_gone_peer_was(peer: socket.socket) -> str:
    try:
        pidfd = peer_pidfd(peer)
    except KernelError as error:
        return error.errno_name
    exited = has_exited(pidfd)
    os.close(pidfd)
    return "exited" if exited else "alive"


def test_a_helper_makes_itself_the_first_victim() -> None:
    assert run("set_oom_score_adj(1000); print(Path('/proc/self/oom_score_adj').read_text())") == (
        "1000"
    )


def test_a_helper_dumps_no_core() -> None:
    code = "forbid_core_dumps(); print(resource.getrlimit(resource.RLIMIT_CORE))"
    assert run(f"import resource\n{code}") == "(0, 0)"
    assert resource.getrlimit(resource.RLIMIT_CORE)[1] != 0


def test_a_helper_dies_with_its_parent() -> None:
    code = f"set_parent_death_signal({int(signal.SIGKILL)}); import ctypes; n = ctypes.c_int()"
    read = "ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    assert run(f"{code}\n{read}") == str(int(signal.SIGKILL))


def test_pinning_elsewhere_is_refused() -> None:
    with pytest.raises(KernelError) as caught:
        set_affinity(frozenset({1000}))
    assert caught.value.errno_name == "EINVAL"
