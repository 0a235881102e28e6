"""A process that calls the API from a unit and as a user of its own, and counts what it is given.

As a program it makes the calls that it reads, a line of JSON each, and answers each with a line.
It imports nothing of gmemd, so that it sees every descriptor that comes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKET = "/run/gmemd/io.gmemd"
SECONDS = 240


class Answer(NamedTuple):
    """What came back: an error's name or nothing, its parameters, how many descriptors."""

    error: str
    parameters: dict[str, Any]
    fds: int


class Caller:
    """A running program."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rw", encoding="utf-8")

    def call(self, method: str, **parameters: object) -> Answer:
        """Makes a call of io.gmemd, its own pidfd beside it as descriptor 0; the first reply."""
        said = {"method": f"io.gmemd.{method}", "parameters": parameters}
        more = {"more": True} if method == "Watch" else {}
        self._stream.write(json.dumps(said | more) + "\n")
        self._stream.flush()
        line = self._stream.readline()
        assert line, "it ended"
        return Answer(**json.loads(line))


@contextmanager
def calling(unit: str, user: str) -> Iterator[Caller]:
    """A program in a unit of that name, as that user, until the block ends."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        path = f"{folder}/socket"
        listening.bind(path)
        listening.listen()
        streams = [f"--property=Standard{stream}=file:{path}" for stream in ("Input", "Output")]
        options = ["--quiet", "--collect", f"--unit={unit}", f"--uid={user}", *streams]
        program = Path(__file__).read_text()
        subprocess.run(["systemd-run", *options, "python3", "-c", program], cwd="/", check=True)
        listening.settimeout(SECONDS)
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(SECONDS)
            yield Caller(connection)
            connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Calls; keeps what descriptors it gets until its input ends."""
    pidfd = os.pidfd_open(os.getpid())
    for line in sys.stdin:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(SOCKET)
            socket.send_fds(connection, [line.strip().encode() + b"\0"], [pidfd])
            got, fds = b"", []
            while not got.endswith(b"\0"):
                data, more, _, _ = socket.recv_fds(connection, 1 << 20, 253)
                assert data, "the daemon hung up"
                got += data
                fds += more
        reply = json.loads(got.split(b"\0")[0])
        answer = Answer(reply.get("error", ""), reply.get("parameters", {}), len(fds))
        sys.stdout.write(json.dumps(answer._asdict()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
