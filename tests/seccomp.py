"""Seccomp filters for processes under test: one system call denied, or a container's profile.

Both are made by libseccomp, as systemd's and the container runtimes' own are.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DENIED = "GMEMD_TESTS_DENIED"
"""Names of system calls, between spaces, that are denied to the process with EPERM (ONLY)."""

PROFILE = "GMEMD_TESTS_PROFILE"
"""The path of the profile that the process runs under."""

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
ACTIONS = {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_ERRNO": ERRNO}
OPERATIONS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}
NEW = {"cachestat": 451}
"""Calls that came after Debian 12's libseccomp; their number is the same everywhere."""


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
    """A call's number on this machine; None where it has none."""
    number = int(_library().seccomp_syscall_resolve_name(name.encode()))
    if number >= 0:
        return number
    return NEW.get(name)


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
            if number is None:
                raise ValueError(f"{call} is no system call here")
            array = (_Comparison * len(ONLY[only]))(*ONLY[only])
            rule = (context, ctypes.c_uint32(ERRNO | errno.EPERM), number, len(array), array)
            _must(_library().seccomp_rule_add_array(*rule), name)


def confine(profile: dict[str, Any]) -> None:
    """Put this process and all that come from it under a profile, in Docker's format."""
    with _filter(_action(profile["defaultAction"], profile)) as context:
        for group in profile["syscalls"]:
            if not _is_meant(group):
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


def _is_meant(group: dict[str, Any]) -> bool:
    """Whether a group is for this machine and a container without capabilities."""
    wanted = group.get("includes", {})
    here = ARCHITECTURE.get(os.uname().machine)
    return not wanted.get("caps") and here in wanted.get("arches", [here])


def obey(environment: os._Environ[str]) -> None:
    """Do to this process what its environment says, and forget it."""
    if names := environment.pop(DENIED, ""):
        deny(names.split())
    if path := environment.pop(PROFILE, ""):
        confine(json.loads(Path(path).read_text()))
