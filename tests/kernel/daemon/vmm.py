"""A VMM of the tests' own, as a program: it does what it is told, a line of JSON at a time.

``python vmm.py SOCKET``: each line names what to do and its arguments, and is answered by a line:
``{"ok": …}``, or ``{"error": NAME, "parameters": …}`` for a varlink error, or one that the daemon's
end is (NoDaemon).
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gmemd.client import Client, Offered
from gmemd.client.blocking import call
from gmemd.client.errors import CallError, NoDaemonError
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm, KvmVm

MIB = 1 << 20


class Vmm:
    """The program's state: its memory, by VM."""

    def __init__(self, path: str) -> None:
        self.socket = Path(path)
        self.client = Client(self.socket)
        self.fds: dict[str, list[int]] = {}
        self.kvm_vm: KvmVm | None = None

    def acquire(
        self,
        vm: str,
        *,
        holder: int | None = None,
        timeout_seconds: float | None = None,
        spec: str | None = None,
    ) -> list[dict[str, Any]]:
        pidfd = os.pidfd_open(holder) if holder is not None else None
        memory = self.client.acquire(vm, holder=pidfd, timeout_seconds=timeout_seconds, spec=spec)
        self.fds[vm] = [os.dup(region.fd) for region in memory.regions]
        told = [
            {
                "guest_node": region.guest_node,
                "size": region.size,
                "offset": region.offset,
                "inode": os.fstat(region.fd).st_ino,
                "inheritable": os.get_inheritable(region.fd),
                "policy_outcome": region.policy_outcome,
                "extents": [[each.gpa, each.offset, each.size] for each in region.extents],
            }
            for region in memory.regions
        ]
        memory.close()
        return told

    def fill(self, vm: str, byte: int) -> None:
        for fd in self.fds[vm]:
            with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
                memory[:] = bytes([byte]) * len(memory)

    def look(self, vm: str) -> list[int]:
        """The first byte of each file, if all others are the same; else -1."""
        found = []
        for fd in self.fds[vm]:
            with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
                whole = memory[:]
            found.append(whole[0] if whole.count(whole[:1]) == len(whole) else -1)
        return found

    def make(self, vm: str, *sizes: int) -> None:
        """Memfds of the program's own."""
        self.fds[vm] = []
        for size in sizes:
            fd = os.memfd_create("guest")
            os.ftruncate(fd, size)
            self.fds[vm].append(fd)

    def make_guest_memfd(self, vm: str, size: int) -> None:
        """One more file, of a KVM VM of the program's own."""
        if self.kvm_vm is None:
            with Kvm() as kvm:
                self.kvm_vm = kvm.create_vm()
        flags = GUEST_MEMFD_MMAP | GUEST_MEMFD_INIT_SHARED
        self.fds.setdefault(vm, []).append(self.kvm_vm.create_guest_memfd(size, flags))

    def drop(self, vm: str) -> None:
        """Close a VM's memory."""
        for fd in self.fds.pop(vm, []):
            os.close(fd)

    def make_wrong(self, vm: str, kind: str) -> None:
        """A descriptor of something that is no memory, or can't be written."""
        if kind == "pipe":
            made = os.pipe()[1]
        elif kind == "socket":
            made = socket.socket(socket.AF_UNIX).detach()
        elif kind == "zero":
            made = os.open("/dev/zero", os.O_RDWR)
        elif kind == "file":
            with tempfile.TemporaryFile() as file:
                made = os.dup(file.fileno())
        else:
            memory = os.memfd_create("guest")
            os.ftruncate(memory, 8 * MIB)
            flags = os.O_PATH if kind == "path" else os.O_RDONLY
            made = os.open(f"/proc/self/fd/{memory}", flags)
        self.fds[vm] = [made]

    def rename(self, vm: str, other: str) -> None:
        """Take a VM's memory for another's."""
        self.fds[other] = self.fds[vm]

    def register(
        self,
        vm: str,
        pieces: list[tuple[int, int, int, int]],
        remove: tuple[int, ...] = (),
        spec: str | None = None,
    ) -> dict[str, Any]:
        """Pieces are guest node, number of the file, offset, size."""
        offered = [
            Offered(node, self.fds[vm][number], size, offset)
            for node, number, offset, size in pieces
        ]
        placed = self.client.register(vm, offered, remove=remove, spec=spec)
        return {
            "state": placed.state,
            "pid": placed.pid,
            "warnings": list(placed.warnings),
            "regions": [
                {
                    "id": region.id,
                    "guest_node": region.guest_node,
                    "index": region.index,
                    "resident": region.resident,
                    "strategy": region.strategy,
                    "policy_outcome": region.policy_outcome,
                }
                for region in placed.regions
            ],
        }

    def hand_over(self, vm: str, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self.client.handover(vm, pidfd)
        os.close(pidfd)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Any method without descriptors."""
        return call(self.socket, method, timeout_seconds=60, **parameters)

    def become(self, uid: int) -> None:
        """Another user, for good; the next call is a connection of that user's."""
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    def churn(self, vm: str, times: int) -> float:
        """Has children acquire the memory and die by SIGKILL with it; seconds that it took."""
        began = time.monotonic()
        for _ in range(times):
            read, write = os.pipe()
            child = os.fork()
            if not child:
                memory = self.client.acquire(vm, timeout_seconds=60)
                os.write(write, bytes([len(memory.regions)]))
                signal.pause()
            os.close(write)
            got = os.read(read, 1)
            os.close(read)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if not got:
                raise RuntimeError("a child could not acquire")
        return time.monotonic() - began


def main() -> None:
    vmm = Vmm(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        try:
            done = getattr(vmm, order["do"])(*order["args"], **order["options"])
        except CallError as error:
            answer = {"error": error.error, "parameters": error.parameters}
        except NoDaemonError as error:
            answer = {"error": "NoDaemon", "parameters": {"message": str(error)}}
        else:
            answer = {"ok": done}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
