"""Runs a program in which some system calls fail with EPERM, as a container's seccomp profile does.

python forbidden.py move_pages,pidfd_getfd PROGRAM ARGUMENTS…
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# x86-64's numbers.
NUMBERS = {
    "ptrace": 101,
    "move_pages": 279,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "pidfd_getfd": 438,
}

_LOAD_NUMBER = struct.pack("=HBBI", 0x20, 0, 0, 0)
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _FILTER = 22, 2


def forbid(calls: list[str]) -> None:
    """Install a filter for this thread and all that comes of it; root's business."""
    program = _LOAD_NUMBER
    for call in calls:
        program += struct.pack("=HBBI", _JUMP_IF_EQUAL, 0, 1, NUMBERS[call])
        program += struct.pack("=HBBI", _RETURN, 0, 0, _FAIL | errno.EPERM)
    program += struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)
    code = ctypes.create_string_buffer(program, len(program))
    told = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(told, len(told)), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    forbid(sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  it becomes that program
