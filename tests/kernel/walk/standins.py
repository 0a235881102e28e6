"""Stand-ins for the modules that gmemd calls the kernel by besides its own: os, socket, and others.

A module of gmemd that has one sees each call go through the faults, and otherwise the real module.
They are put in place in the walk's own processes, and nowhere else.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import posix
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from tests.kernel.walk.faults import of_a_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    ErrnoOf = Callable[[str], int]

LAYERS = ("kernel", "host", "memory", "audit", "daemon", "export")

_BY_PATH = ("open", "readlink", "listdir", "stat", "getxattr")
_PLAIN = ("dup", "fstat", "fsync", "memfd_create", "pidfd_open", "pwrite", "sched_setaffinity")
_FCNTL = {
    getattr(fcntl, name): name for name in ("F_DUPFD_CLOEXEC", "F_GETFL", "F_GET_SEALS", "F_SETFD")
}


def put_in_place(errno_of: ErrnoOf, prefix: str = "gmemd.") -> None:
    """Have every module of gmemd that is loaded see the stand-ins."""
    instead: dict[int, object] = {
        id(os): _StandIn(os, _of_os(os, errno_of)),
        id(posix): _StandIn(posix, _of_os(posix, errno_of)),
        id(fcntl): _StandIn(fcntl, {"fcntl": partial(_fcntl, errno_of)}),
        id(subprocess): _StandIn(
            subprocess, {"Popen": _through(errno_of, lambda *_: "clone", subprocess.Popen)}
        ),
        id(socket): _StandIn(socket, _of_socket(errno_of)),
        id(pathlib.Path): _path_class(errno_of),
        id(threading.Thread): _thread_class(errno_of),
        id(ThreadPoolExecutor): _pool_class(errno_of),
    }
    wanted = tuple(f"{prefix}{layer}" for layer in LAYERS)
    for name, module in list(sys.modules.items()):
        if name.startswith(wanted):
            for attribute, value in list(vars(module).items()):
                if id(value) in instead:
                    setattr(module, attribute, instead[id(value)])


class _StandIn:
    """A module, but for some of its functions."""

    def __init__(self, module: ModuleType, functions: Mapping[str, object]) -> None:
        self._module = module
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def _refuse(errno_of: ErrnoOf, call: str) -> None:
    if number := errno_of(call):
        raise OSError(number, os.strerror(number))


def _through(
    errno_of: ErrnoOf, name_of: Callable[..., str], function: Callable[..., object]
) -> Callable[..., object]:
    """The function, which fails as is wanted of the call that its arguments make of it."""

    def call(*args: object, **kwargs: object) -> object:
        _refuse(errno_of, name_of(*args))
        return function(*args, **kwargs)

    return call


def _of_os(module: ModuleType, errno_of: ErrnoOf) -> dict[str, object]:
    functions: dict[str, object] = {}
    for name in (*_BY_PATH, *_PLAIN, "read", "write"):
        if hasattr(module, name):
            functions[name] = _through(errno_of, _name_of(name), getattr(module, name))
    return functions


def _name_of(name: str) -> Callable[..., str]:
    if name in _BY_PATH:
        return lambda path, *_: of_a_path(name, path)
    if name in {"read", "write"}:
        return lambda fd, *_: of_a_path(name, _path_of(fd))
    return lambda *_: name


def _path_of(fd: int) -> str:
    """What an fd is of, without the process that it is seen from."""
    try:
        path = str(pathlib.Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return "?"
    return path.partition(":")[0] if ":[" in path else path


def _fcntl(errno_of: ErrnoOf, fd: int, command: int, argument: int = 0) -> int:
    _refuse(errno_of, f"fcntl {_FCNTL.get(command, command)}")
    return fcntl.fcntl(fd, command, argument)


def _of_socket(errno_of: ErrnoOf) -> dict[str, object]:
    class Socket(socket.socket):
        def send(self, *args: object, **kwargs: object) -> int:
            _refuse(errno_of, "send")
            return super().send(*args, **kwargs)

        def recv(self, *args: object, **kwargs: object) -> bytes:
            _refuse(errno_of, "recv")
            return super().recv(*args, **kwargs)

        def sendmsg(self, *args: object, **kwargs: object) -> int:
            _refuse(errno_of, "sendmsg")
            return super().sendmsg(*args, **kwargs)

        def recvmsg(self, *args: object, **kwargs: object) -> object:
            _refuse(errno_of, "recvmsg")
            return super().recvmsg(*args, **kwargs)

    def pair(*args: object) -> tuple[socket.socket, socket.socket]:
        _refuse(errno_of, "socketpair")
        ours, theirs = socket.socketpair(*args)
        return Socket(fileno=ours.detach()), Socket(fileno=theirs.detach())

    return {"socket": Socket, "socketpair": pair}


def _thread_class(errno_of: ErrnoOf) -> type[threading.Thread]:
    class Thread(threading.Thread):
        def start(self) -> None:
            if errno_of("thread"):
                raise RuntimeError("can't start new thread")
            super().start()

    return Thread


def _pool_class(errno_of: ErrnoOf) -> type[ThreadPoolExecutor]:
    class Pool(ThreadPoolExecutor):
        def _adjust_thread_count(self) -> None:
            """Where no thread is idle, start one."""
            needed = not self._idle_semaphore._value and len(self._threads) < self._max_workers
            if needed and errno_of("thread"):
                raise RuntimeError("can't start new thread")
            super()._adjust_thread_count()

    return Pool


def _path_class(errno_of: ErrnoOf) -> type[pathlib.Path]:
    class Path(type(pathlib.Path())):  # type: ignore[misc]
        """Paths that a module makes itself; those that it is given are what they are."""

        def open(self, *args: object, **kwargs: object) -> object:
            _refuse(errno_of, of_a_path("open", self))
            return super().open(*args, **kwargs)

        def stat(self, *args: object, **kwargs: object) -> os.stat_result:
            _refuse(errno_of, of_a_path("stat", self))
            return super().stat(*args, **kwargs)

        def readlink(self) -> pathlib.Path:
            _refuse(errno_of, of_a_path("readlink", self))
            return super().readlink()

        def mkdir(self, *args: object, **kwargs: object) -> None:
            _refuse(errno_of, of_a_path("mkdir", self))
            super().mkdir(*args, **kwargs)

        def rmdir(self) -> None:
            _refuse(errno_of, of_a_path("rmdir", self))
            super().rmdir()

        def iterdir(self) -> object:
            _refuse(errno_of, of_a_path("listdir", self))
            return super().iterdir()

    return Path
