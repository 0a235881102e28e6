from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gmemd.errors import GmemdError
from gmemd.kernel.errors import KernelError
from gmemd.memory import child

LIGHT = """
import sys
import gmemd.memory.{module}
print(*sorted({{name.split(".")[0] for name in sys.modules}} & {{"pydantic", "yaml", "rich"}}))
"""


def test_messages_and_descriptors_arrive_together() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Path("/dev/null").open() as null:
        child.send(ours, {"sizes": [1, 2]}, [null.fileno(), null.fileno()])
        message, fds = child.receive(theirs)
        assert message == {"sizes": [1, 2]}
        assert [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds] == ["/dev/null"] * 2
        assert not any(os.get_inheritable(fd) for fd in fds)
        child.close_all(fds)


def test_the_end_of_the_talk_is_an_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        with pytest.raises(child.ChildError, match="went away"):
            child.receive(theirs)


def test_silence_is_an_error_after_the_timeout() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.settimeout(0.01)
        with pytest.raises(child.ChildError, match="no answer in time"):
            child.receive(theirs)


def test_errors_cross_as_what_they_are() -> None:
    kernel = KernelError("fallocate", errno.ENOSPC, "allocating", hint="add some")
    crossed = child.error_from_message(child.error_to_message(kernel))
    assert isinstance(crossed, KernelError)
    assert (crossed.call, crossed.errno, crossed.what) == ("fallocate", errno.ENOSPC, "allocating")
    assert crossed.hint == "add some"
    other = child.error_from_message(child.error_to_message(GmemdError("no zones", hint="look")))
    assert (other.message, other.hint) == ("no zones", "look")


@pytest.mark.parametrize("module", ["creator_child", "prefault_child"])
def test_helpers_import_none_of_the_heavy_ones(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(module=module)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
