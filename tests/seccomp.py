"""Seccomp filters for processes under test: one system call denied, or a container's profile.

Both are made by libseccomp, as systemd's and the container runtimes' own are.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

DENIED = "GMEMD_TESTS_DENIED"
"""Names of system calls, between spaces, that are denied to the process with EPERM (ONLY)."""

PROFILE = "GMEMD_TESTS_PROFILE"
"""The path of the profile that the process runs under."""

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
ACTIONS = {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": ERRNO}
OPERATIONS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
UNKNOWN = -1
"""What libseccomp says of a name that no machine has; calls of other machines are below."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


ONLY = {"": [], "KVM": [_Comparison(1, OPERATIONS.index("MASKED_EQ") + 1, 0xFF00, 0xAE00)]}
"""Which uses of a call are meant by ``call:WORD``: all, or ioctls of KVM's."""


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def number_of(name: str) -> int | None:
    """A call's number on this machine; None where it has none. Raises ValueError: no such call."""
    number = int(_library().seccomp_syscall_resolve_name(name.encode()))
    if number == UNKNOWN:
        raise ValueError(f"{name} is no system call")
    return number if number >= 0 else None


@contextmanager
def _filter(default: int) -> Iterator[ctypes.c_void_p]:
    context = ctypes.c_void_p(_library().seccomp_init(ctypes.c_uint32(default)))
    try:
        yield context
        _must(_library().seccomp_load(context), "loading the filter")
    finally:
        _library().seccomp_release(context)


def _must(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, what)


def deny(names: Iterable[str]) -> None:
    """Deny calls to this process and all that come from it, for good."""
    with _filter(ALLOW) as context:
        for name in names:
            call, _, only = name.partition(":")
            number = number_of(call)
            array = (_Comparison * len(ONLY[only]))(*ONLY[only])
            rule = (context, ctypes.c_uint32(ERRNO | errno.EPERM), number, len(array), array)
            _must(_library().seccomp_rule_add_array(*rule), name)


def confine(profile: dict[str, Any], capabilities: Collection[str] = ()) -> None:
    """Put this process and all that come from it under a profile, in Docker's format.

    ``capabilities`` are those that its container would have.
    """
    with _filter(_action(profile["defaultAction"], profile)) as context:
        for group in profile["syscalls"]:
            if not _is_meant(group, capabilities):
                continue
            comparisons = [_comparison(one) for one in group.get("args", [])]
            array = (_Comparison * len(comparisons))(*comparisons)
            action = ctypes.c_uint32(_action(group["action"], group))
            for name in group["names"]:
                number = number_of(name)
                if number is not None:
                    rule = (context, action, number, len(comparisons), array)
                    _must(_library().seccomp_rule_add_array(*rule), name)


def _action(name: str, beside: dict[str, Any]) -> int:
    told = beside.get("errnoRet", beside.get("defaultErrnoRet", errno.EPERM))
    return ACTIONS[name] | (told if name == "SCMP_ACT_ERRNO" else 0)


def _comparison(told: dict[str, Any]) -> _Comparison:
    operation = OPERATIONS.index(told["op"].removeprefix("SCMP_CMP_")) + 1
    return _Comparison(told["index"], operation, told["value"], told.get("valueTwo", 0))


def _is_meant(group: dict[str, Any], capabilities: Collection[str]) -> bool:
    wanted = group.get("includes", {})
    return set(wanted.get("caps", ())) <= set(capabilities)


def obey(environment: os._Environ[str]) -> None:
    """Do to this process what its environment says, and forget it."""
    if names := environment.pop(DENIED, ""):
        deny(names.split())
    if path := environment.pop(PROFILE, ""):
        confine(json.loads(Path(path).read_text()))


def main() -> NoReturn:
    """Become a command under a profile: ``PROFILE COMMAND…``."""
    confine(json.loads(Path(sys.argv[1]).read_text()))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  that is what it is for


if __name__ == "__main__":
    main()
