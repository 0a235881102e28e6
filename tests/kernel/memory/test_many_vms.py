"""The tax of KVM VMs on an audit: none, where a creator process made them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Self

import pytest

pytestmark = [
    pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared"),
    pytest.mark.timeout(900),
]

ROUNDS = 31

# Holds the guest_memfds of as many VMs as told, made by creators or by itself, fills one region,
# and tells the nanoseconds of CPU time that an audit of it takes, once per line read. The windows
# are smaller than the audit's own, as the tax is one per window.
HOLDER = """
import sys, time
from gmemd.audit.scan import scan_region
from gmemd.kernel import fallocate
from gmemd.kernel.kvm import Kvm
from gmemd.memory.creator import create_guest_memfds

SIZE = 16 << 20
maker, count = sys.argv[1], int(sys.argv[2])
held = create_guest_memfds([SIZE], flags=3)
for _ in range(count - 1):
    if maker == "creator":
        held += create_guest_memfds([4096], flags=3)
    else:
        with Kvm() as kvm, kvm.create_vm() as vm:
            held.append(vm.create_guest_memfd(4096, 3))
fallocate.allocate(held[0], 0, SIZE)

def audit():
    began = time.thread_time_ns()
    seen = scan_region(
        held[0], guest_node=0, index=0, size_bytes=SIZE, page_size=4096, window_bytes=64 << 10
    )
    assert seen.resident_bytes == SIZE
    return time.thread_time_ns() - began

audit()
print("ready", flush=True)
for _ in sys.stdin:
    print(audit(), flush=True)
"""


class Holder:
    """A process that holds VMs' memory, as the daemon does."""

    def __init__(self, maker: str, vms: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, maker, str(vms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[3],
        )
        self.costs: list[int] = []

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def audit(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("audit\n")
        self.costs.append(int(self.answer()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def test_250_created_vms_do_not_slow_an_audit_down() -> None:
    with ExitStack() as holders:
        one = holders.enter_context(Holder("creator", 1))
        many = holders.enter_context(Holder("creator", 250))
        own = holders.enter_context(Holder("itself", 250))
        assert [holder.answer() for holder in (one, many, own)] == ["ready"] * 3
        for _ in range(ROUNDS):
            for holder in (one, many, own):
                holder.audit()
    assert median(many.costs) <= 1.1 * median(one.costs)
    assert median(own.costs) > 1.1 * median(one.costs), "the measurement sees what it looks for"
