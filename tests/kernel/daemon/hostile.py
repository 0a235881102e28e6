"""A client of another user that wants to harm the daemon's others, as a program.

``python hostile.py UID ATTACK [FD]``, in the socket's directory: it says ``ready`` once the attack
is under way, goes on with it until its input ends, and then says how often it did it.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

LIST = b'{"method": "io.gmemd.List", "parameters": {}}\0'
ACQUIRE = b'{"method": "io.gmemd.Acquire", "parameters": {"vm": "theirs", "timeout_ms": 100}}\0'
REGISTER = (
    b'{"method": "io.gmemd.Register", "parameters": {"vm": "offered", "regions": '
    b'[{"guest_node": 0, "fd_index": 0, "offset": 0, "size": 8388608}]}}\0'
)
REFUSALS = (b"FdRejected", b"LayoutMismatch", b"PermissionDenied")
MIB = 1 << 20
MOST_FDS = 253


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("io.gmemd")
    connection.settimeout(60)
    return connection


def say_ready(n_done: int) -> bool:
    """Say so once; returns whether to go on."""
    if n_done == 0:
        say("ready")
    return not select.select([sys.stdin], [], [], 0)[0]


def wait() -> int:
    say("ready")
    sys.stdin.read()
    return 1


def repeat(once: object) -> int:
    n_done = 0
    assert callable(once)
    once()
    while say_ready(n_done):
        with suppress(BrokenPipeError, ConnectionResetError):
            once()
        n_done += 1
    return n_done


def reply(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\0"):
        chunk = connection.recv(1 << 16)
        if not chunk:
            break
        received += chunk
    return received


def send(connection: socket.socket, content: bytes, fds: list[int]) -> None:
    """Send as far as the daemon listens, and as the kernel lets: so many may be on their way."""
    while True:
        try:
            socket.send_fds(connection, [content], fds)
        except (BrokenPipeError, ConnectionResetError):
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(0.01)
        else:
            return


def stall() -> int:
    HELD.extend(connect() for _ in range(300))
    return wait()


def half() -> int:
    """Halves of messages, as much as the daemon takes, with file descriptors."""
    null = os.open(os.devnull, os.O_RDONLY)
    for _ in range(250):
        connection = connect()
        send(connection, LIST[:20], [null] * MOST_FDS)
        connection.setblocking(False)
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            connection.send(b" " * (MIB - 30))
        HELD.append(connection)
    return wait()


def large() -> int:
    """100 MB without an end, or as much of it as the daemon takes."""

    def once() -> None:
        with connect() as connection, suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                connection.sendall(b"x" * 1_000_000)

    return repeat(once)


def deep() -> int:
    def once() -> None:
        for content in (
            b"[" * 900_000,
            b'{"a":' * 150_000,
            b'{"method": ' + b"9" * 900_000 + b"}",
        ):
            with connect() as connection, suppress(ConnectionError):
                connection.sendall(content + b"\0" + LIST)
                while connection.recv(1 << 16):
                    pass

    return repeat(once)


def many_fds() -> int:
    """1,000 in one message that never ends, and as many as one sendmsg takes with a call."""
    null = os.open(os.devnull, os.O_RDONLY)

    def once() -> None:
        with connect() as connection:
            for _ in range(4):
                send(connection, b"{", [null] * 250)
        with connect() as connection:
            for call in (LIST, REGISTER):
                send(connection, call, [null] * MOST_FDS)
                reply(connection)

    return repeat(once)


def wrong_fds() -> int:
    """Everything that isn't memory, with calls that ignore it and with one that doesn't."""
    directory = Path(tempfile.mkdtemp())
    os.mkfifo(directory / "fifo")
    (directory / "file").write_text("x")
    epoll = select.epoll()
    pair = socket.socketpair()
    fds = [
        os.open(directory / "fifo", os.O_RDWR),
        os.open(directory / "file", os.O_RDWR),
        os.open(directory, os.O_RDONLY),
        os.open(directory, os.O_PATH),
        os.open("/dev/zero", os.O_RDWR),
        os.open("/proc/self/maps", os.O_RDONLY),
        os.pidfd_open(os.getpid()),
        os.memfd_create("empty"),
        epoll.fileno(),
        pair[0].fileno(),
        *os.pipe(),
    ]

    def once() -> None:
        with connect() as connection:
            send(connection, LIST, fds)
            reply(connection)
            for fd in fds:
                send(connection, REGISTER, [fd])
                refused = reply(connection)
                assert any(name in refused for name in REFUSALS), refused
            send(connection, LIST[:9], fds)
        with connect() as connection:
            send(connection, b"no json\0", fds)

    return repeat(once)


def lingering_fds() -> int:
    """TCP sockets whose last close waits for an hour, for somebody who reads what they sent."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    for content in (LIST, LIST[:9], b"no json\0", REGISTER) * 5:
        sender = socket.socket()
        sender.connect(listener.getsockname())
        HELD.append(listener.accept()[0])
        sender.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sender.send(b"x" * MIB)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        connection = connect()
        send(connection, content, [sender.fileno()])
        # If the daemon was quick it is this close that waits.
        threading.Thread(target=sender.close, daemon=True).start()
        HELD.append(connection)
    return wait()


def fuse_fds() -> int:
    """A file, passed on the command line, whose close never ends."""
    trap = int(sys.argv[3])
    for content in (LIST, LIST[:9], b"no json\0", REGISTER) * 5:
        connection = connect()
        send(connection, content, [trap])
        HELD.append(connection)
        if content.endswith(LIST):
            assert reply(connection)
    return wait()


def fd_limit() -> int:
    """Calls whose replies' file descriptors don't fit into its own limit."""
    connection = connect()
    most = max(int(name) for name in os.listdir("/proc/self/fd")) + 2  # noqa: PTH208  names alone
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)

    def once() -> None:
        connection.sendall(LIST + ACQUIRE)
        received = b""
        while received.count(b"\0") < 2:
            received += connection.recv(1 << 16)

    return repeat(once)


def no_reading() -> int:
    """Calls without end, whose replies are never read, on several connections."""
    for _ in range(20):
        connection = connect()
        HELD.append(connection)
        connection.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                connection.send(LIST * 1000)
    return wait()


def coming_and_going() -> int:
    def once() -> None:
        connect().close()
        with connect() as connection:
            connection.sendall(LIST)
        with connect() as connection:
            connection.sendall(ACQUIRE)

    return repeat(once)


ATTACKS = {
    attack.__name__: attack
    for attack in (stall, half, large, deep, many_fds, wrong_fds, lingering_fds,
                   fd_limit, no_reading, coming_and_going)
}  # fmt: skip
HELD: list[socket.socket] = []


def main(uid: int, attack: str) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    n_done = (ATTACKS | {"fuse_fds": fuse_fds})[attack]()
    say(str(n_done))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
