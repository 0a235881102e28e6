import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from gmemd.kernel.errors import KernelError
from gmemd.kernel.process import pidfd_getfd, pidfd_open, set_affinity


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
