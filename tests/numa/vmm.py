"""A VMM that isn't gmemd: its own KVM VM, whose memory is gmemd's or is registered with it.

``python -m tests.numa.vmm SOCKET`` does what it is told, a line of JSON at a time, as the daemon
tests' VMM does; ``start`` starts it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.client import Client, Offered
from gmemd.client.errors import CallError
from tests.kernel.daemon import vmms
from tests.numa.counting import counted_bytes
from tests.numa.vcpu import PAGE, Guest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gmemd.client import Placed

REPOSITORY = Path(__file__).parents[2]
MMAP, INIT_SHARED = 1, 2

_KEEP_SIZE = 1
_LIBC = ctypes.CDLL(None)


class Vmm:
    """The program's state: a guest, and the files of its memory by number."""

    def __init__(self, socket: str) -> None:
        self._client = Client(socket)
        self._guest = Guest()
        self._files: list[int] = []

    def acquire(self, vm: str, cgroup: str | None = None, *, use: bool = True) -> dict[str, Any]:
        """A file for each region; each is the guest's memory where its extents say."""
        memory = self._client.acquire(vm, cgroup=_open_procs(cgroup))
        for region in memory.regions if use else ():
            self._files.append(region.fd)
            for extent in region.extents:
                self._guest.add_memory(
                    region.fd, extent.size, bound=False, gpa=extent.gpa, offset=extent.offset
                )
        return {"regions": list(map(asdict, memory.regions)), "warnings": memory.warnings}

    def make(self, size: int, flags: int) -> int:
        """A guest_memfd of its own."""
        self._files.append(self._guest.create_guest_memfd(size, flags))
        return len(self._files) - 1

    def bind(self, file: int, gpa: int, size: int, offset: int = 0) -> None:
        """Gives it to the guest, bound (KVM_MEM_GUEST_MEMFD)."""
        self._guest.add_memory(self._files[file], size, bound=True, gpa=gpa, offset=offset)

    def register(
        self,
        vm: str,
        *pieces: tuple[int, int, int, int],
        remove: Sequence[int] = (),
        cgroup: str | None = None,
    ) -> dict[str, Any]:
        """Pieces are guest node, number of the file, size, offset."""
        offered = [
            Offered(node, self._files[file], size, offset) for node, file, size, offset in pieces
        ]
        placed: Placed = self._client.register(
            vm, offered, remove=remove, cgroup=_open_procs(cgroup)
        )
        return asdict(placed)

    def write(self, gpa: int, size: int) -> None:
        """Has the guest write to each page of a range."""
        self._guest.write(0, size // PAGE, gpa=gpa)

    def touch(self, file: int, offset: int, size: int) -> None:
        """Writes to each page of a range of a file by itself."""
        with mmap.mmap(self._files[file], size, offset=offset) as window:
            for page in range(0, size, PAGE):
                window[page] = 1

    def fallocate(self, file: int, offset: int, size: int) -> None:
        where = ctypes.c_long(offset), ctypes.c_long(size)
        assert _LIBC.fallocate(self._files[file], _KEEP_SIZE, *where) == 0

    def count(self, file: int, offset: int, size: int) -> dict[int, int]:
        """Bytes per node of a range that was written to."""
        return counted_bytes(self._files[file], offset, size)

    def fill(self, file: int, seed: int) -> None:
        """Writes a pattern to all of a file that differs from page to page."""
        with mmap.mmap(self._files[file], 0) as window:
            window[:] = _pattern(len(window), seed)

    def holds(self, file: int, seed: int) -> bool:
        """Whether a file has that pattern."""
        with mmap.mmap(self._files[file], 0) as window:
            return window[:] == _pattern(len(window), seed)


def _open_procs(cgroup: str | None) -> int | None:
    return os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY) if cgroup is not None else None


def _pattern(length: int, seed: int) -> bytes:
    return b"".join(
        ((page + 1) * seed).to_bytes(8, "little") * (PAGE // 8) for page in range(length // PAGE)
    )


def main() -> None:
    vmm = Vmm(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        try:
            done = getattr(vmm, order["do"])(*order["args"], **order["options"])
        except CallError as error:
            answer = {"error": error.error, "parameters": error.parameters}
        else:
            answer = {"ok": done}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


@contextmanager
def start(socket: Path, prefix: Sequence[str] = ()) -> Iterator[vmms.Vmm]:
    """A program of the above until the block ends; ``prefix`` is a command that becomes it."""
    command = [*prefix, sys.executable, "-m", "tests.numa.vmm", str(socket)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield vmms.Vmm(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
