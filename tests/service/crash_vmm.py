"""A VMM whose guest writes a pattern over and over, and each time finds it as it left it.

As a program it does what it is told, a line of JSON at a time, as the daemon tests' VMM does;
``running`` starts it in a unit of its own. Each dword of the guest's memory is the guest-physical
address of its page plus the number of the round that wrote it, so that no page, and no state of
one, is like another.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.numa.counting import counted_bytes, policy_of
from tests.numa.vcpu import PAGE, Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parents[2]
SOCKET = "/run/gmemd/io.gmemd"
SECONDS = 240
NAME = "firecracker"
"""What the program is called: a VMM whose guests have one node, so that it can be adopted."""

PAUSE_SECONDS = 1.0
"""Between two rounds: an emulated machine has other things to do than to run guests."""

_SHARED = 3  # MMAP | INIT_SHARED
_DWORDS = PAGE // 4

# Real mode: ebx pages from edi on. Each dword of a page has to be its address plus edx, and becomes
# its address plus esi; the guest halts behind the last page, or (ebx is not 0) at what is wrong.
_CODE = bytes.fromhex(
    "66b900040000"  # mov ecx, 1024
    "67668d0417"  # lea eax, [edi + edx]
    "6766f3af"  # repe scasd
    "751a"  # jne to the hlt
    "6681ef00100000"  # sub edi, 4096
    "66b900040000"  # mov ecx, 1024
    "67668d0437"  # lea eax, [edi + esi]
    "6766f3ab"  # rep stosd
    "664b"  # dec ebx
    "75d5"  # jnz to the start
    "f4"  # hlt
)


@dataclass(frozen=True)
class Piece:
    """Part of a file that is the guest's memory, and where."""

    fd: int
    gpa: int
    memory: mmap.mmap

    def page(self, offset: int, round_: int) -> bytes:
        """What a page holds after a round."""
        return struct.pack("<I", (self.gpa + offset + round_) & 0xFFFFFFFF) * _DWORDS


class Vmm:
    """The program's state: a guest, its memory, and how far it is."""

    def __init__(self) -> None:
        self._guest = Guest(_CODE)
        self._pieces: list[Piece] = []
        self._round = 0
        self._wrong = ""
        self._stop = threading.Event()
        self._writing: threading.Thread | None = None

    def acquire(self, vm: str, spec: str | None = None) -> None:
        """Takes a VM's memory, and uses it as the API says."""
        from gmemd.client import Client  # noqa: PLC0415  adopted VMMs know nothing of it

        memory = Client(SOCKET).acquire(vm, spec=spec, timeout_seconds=SECONDS)
        for region in memory.regions:
            for extent in region.extents:
                window = self._guest.add_memory(
                    region.fd, extent.size, bound=False, gpa=extent.gpa, offset=extent.offset
                )
                self._pieces.append(Piece(region.fd, extent.gpa, window))

    def make(self, *sizes: int) -> None:
        """Makes guest_memfds of its own, one behind the other in the guest's memory."""
        gpa = 0
        for size in sizes:
            fd = self._guest.create_guest_memfd(size, _SHARED)
            window = self._guest.add_memory(fd, size, bound=True, gpa=gpa)
            self._pieces.append(Piece(fd, gpa, window))
            gpa += size

    def register(self, vm: str) -> None:
        """Hands over what it made, a guest node each."""
        from gmemd.client import Client, Offered  # noqa: PLC0415

        pieces = enumerate(self._pieces)
        offered = [Offered(node, piece.fd, len(piece.memory)) for node, piece in pieces]
        Client(SOCKET).register(vm, offered)

    def fill(self) -> None:
        """Writes the pattern of round 0."""
        for piece in self._pieces:
            for offset in range(0, len(piece.memory), PAGE):
                piece.memory[offset : offset + PAGE] = piece.page(offset, 0)

    def begin(self) -> None:
        """Has the guest write from now on."""
        self._writing = threading.Thread(target=self._write)
        self._writing.start()

    def rounds(self) -> int:
        """How many the guest has done, in each of which it found all as it was."""
        assert not self._wrong, self._wrong
        return self._round

    def finish(self) -> dict[str, Any]:
        """Ends the guest's writing; how many rounds it did and what was wrong then."""
        self._stop.set()
        if self._writing is not None:
            self._writing.join()
        return {"rounds": self._round, "wrong": self._wrong or self.wrong(self._round)}

    def wrong(self, round_: int) -> str:
        """The first page that is not as that round left it, by the VMM's own look at every byte."""
        for piece in self._pieces:
            for offset in range(0, len(piece.memory), PAGE):
                if piece.memory[offset : offset + PAGE] != piece.page(offset, round_):
                    return f"the page at {piece.gpa + offset:#x} is not as round {round_} left it"
        return ""

    def look(self, *, count: bool = False) -> list[dict[str, Any]]:
        """What each piece is, and which policy the kernel keeps for it, seen in two mappings."""
        found = []
        for piece in self._pieces:
            status = os.fstat(piece.fd)
            with mmap.mmap(piece.fd, len(piece.memory)) as fresh:
                policies = [policy_of(piece.memory), policy_of(fresh)]
            counts = counted_bytes(piece.fd, 0, len(piece.memory)) if count else {}
            found.append(
                {
                    "inode": [status.st_dev, status.st_ino],
                    "size": len(piece.memory),
                    "policies": policies,
                    "by_node": {str(node): size for node, size in counts.items()},
                }
            )
        return found

    def _write(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS) and not self._wrong:
            for piece in self._pieces:
                left = self._guest.run(
                    rbx=len(piece.memory) // PAGE,
                    rdi=piece.gpa,
                    rdx=self._round,
                    rsi=self._round + 1,
                )
                if left["rbx"]:
                    self._wrong = f"round {self._round + 1} found another dword at {left['rdi']:#x}"
                    return
            self._round += 1


class Running:
    """The program in its unit; its methods are called by name."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rw", encoding="utf-8")
        self.pid = int(self._answer())
        self._pidfd = os.pidfd_open(self.pid)

    def do(self, what: str, *args: object, **options: object) -> Any:  # noqa: ANN401  whatever it does
        """Has it do something; what came of it."""
        self._stream.write(json.dumps({"do": what, "args": args, "options": options}) + "\n")
        self._stream.flush()
        return self._answer()

    def exit(self) -> None:
        """Has it end, and waits for that."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._wait()

    def kill(self) -> None:
        """Ends it as a crash would, and waits for that."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._wait()

    def _wait(self) -> None:
        assert select.select([self._pidfd], [], [], SECONDS)[0], "the VMM goes on"

    def _answer(self) -> Any:  # noqa: ANN401  as above
        line = self._stream.readline()
        assert line, "the VMM ended"
        answer = json.loads(line)
        assert "error" not in answer, answer
        return answer["ok"]


@contextmanager
def running(unit: str) -> Iterator[Running]:
    """The program in a unit of that name, until the block ends or it is told to exit."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        path = f"{folder}/socket"
        listening.bind(path)
        listening.listen()
        listening.settimeout(SECONDS)
        streams = [f"--property=Standard{stream}=file:{path}" for stream in ("Input", "Output")]
        options = ["--quiet", "--collect", f"--unit={unit}", *streams]
        options += [f"--working-directory={CHECKOUT}", f"--setenv=PYTHONPATH={CHECKOUT}"]
        program = ["bash", "-c", f'exec -a {NAME} "$0" "$@"', sys.executable]
        program += ["-m", "tests.service.crash_vmm"]
        subprocess.run(["systemd-run", *options, *program], cwd="/", check=True)
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(SECONDS)
            vmm = Running(connection)
            try:
                yield vmm
            finally:
                vmm.kill()


def main() -> None:
    """Does what it is told, until its input ends."""
    vmm = Vmm()
    _say(os.getpid())
    for line in sys.stdin:
        order = json.loads(line)
        try:
            _say(getattr(vmm, order["do"])(*order["args"], **order["options"]))
        except Exception as error:  # noqa: BLE001  whoever told it is told
            print(json.dumps({"error": repr(error)}), flush=True)  # noqa: T201
    os._exit(0)  # as it is, its guest writing


def _say(done: object) -> None:
    print(json.dumps({"ok": done}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
