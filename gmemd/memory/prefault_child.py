"""The prefault helper: a process that allocates the chunks that it is dealt, on its threads.

It is what the kernel's OOM killer takes first, runs beside the memory it makes, and decides by its
own task policy where that goes when the memory has none. It imports nothing but what it calls the
kernel with, so that it is at work in 12 ms; the modules that its requests come from take 65. Of
these ms ``os`` would take two, for the few functions of ``posix`` that are wanted of it.
"""

import _thread
import posix

from gmemd.kernel._kernel import ffi, lib

_OOM_SCORE_ADJ = 1000
_SIGKILL = 9
_EINTR = 4
_MOST_MESSAGE_BYTES = 1 << 17


class _FailedError(Exception):
    """A step of becoming what the region needs, and the errno that ended it."""


def main(channel_fd: int, parent_pid: int) -> None:
    """Take the settings, become what they say, and allocate chunks until the channel is closed.

    The settings are lines of a name and a value (prefault.py writes them), a chunk is two numbers:
    offset and length, in bytes. Each chunk is answered with the same and the errno, 0 if none.
    """
    lib.gm_prctl(lib.GM_PR_SET_PDEATHSIG, _SIGKILL)
    if posix.getppid() != parent_pid:
        raise SystemExit(1)
    lines = posix.read(channel_fd, _MOST_MESSAGE_BYTES).decode().splitlines()
    settings = dict(line.split(" ", 1) for line in lines)
    try:
        _settle(channel_fd, settings)
    except _FailedError as failed:
        step, number = failed.args
        posix.write(channel_fd, f"failed {step} {number}".encode())
        # Its end would be taken for what went wrong, so that is for the other side to bring about.
        while posix.read(channel_fd, _MOST_MESSAGE_BYTES):
            pass
        return
    fd = int(settings["fd"])
    for _ in range(int(settings["threads"]) - 1):
        _thread.start_new_thread(_work, (channel_fd, fd))
    _work(channel_fd, fd)


def _work(channel_fd: int, fd: int) -> None:
    """Allocate chunk by chunk; the threads take turns at the channel."""
    while chunk := posix.read(channel_fd, _MOST_MESSAGE_BYTES):
        offset, length = map(int, chunk.split())
        posix.write(channel_fd, b"done %d %d %d" % (offset, length, _allocate(fd, offset, length)))


def _allocate(fd: int, offset: int, length: int) -> int:
    """Allocate a chunk: an errno. An interruption keeps what was made, so starting over resumes."""
    while True:
        result = lib.gm_fallocate(fd, lib.GM_FALLOC_KEEP_SIZE, offset, length)
        if result != -_EINTR:
            return -result


def _settle(channel_fd: int, settings: dict[str, str]) -> None:
    """Become what the region needs: victim, payer, place, policy. New threads inherit them."""
    _write("oom", "/proc/self/oom_score_adj", str(_OOM_SCORE_ADJ))
    if "procs" in settings:
        _join(int(settings["procs"]))
    elif "cgroup" in settings:
        _write("cgroup", f"{settings['cgroup']}/cgroup.procs", "0")
    try:
        posix.sched_setaffinity(0, _numbers(settings["cpus"]))
    except OSError:
        posix.write(channel_fd, b"unpinned")
        try:
            posix.sched_setaffinity(0, _numbers(settings["any_cpus"]))
        except OSError as error:
            raise _FailedError("pin", error.errno) from error
    mode, *words = _numbers(settings["policy"])
    mask = ffi.new("uint64_t[]", words) if words else ffi.NULL
    result = lib.gm_set_mempolicy(mode, mask)
    if result < 0:
        raise _FailedError("policy", -result)


def _write(step: str, path: str, text: str) -> None:
    try:
        fd = posix.open(path, posix.O_WRONLY)
        try:
            posix.write(fd, text.encode())
        finally:
            posix.close(fd)
    except OSError as error:
        raise _FailedError(step, error.errno) from error


def _join(procs_fd: int) -> None:
    """Join a cgroup by the rights of who opened its cgroup.procs."""
    try:
        posix.write(procs_fd, b"0")
    except OSError as error:
        raise _FailedError("cgroup", error.errno) from error


def _numbers(words: str) -> list[int]:
    return [int(word) for word in words.split()]
