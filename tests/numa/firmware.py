"""QEMU with a guest that does as it is told: 104 bytes of firmware write to the pages it names.

The guest reads the address of a first page and a number of pages from its serial port, writes one
byte to each of them, and answers with a byte. Between two orders QEMU has it paused, as it waits
by asking again and again.
"""

from __future__ import annotations

import socket
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.qemu import PATIENCE_SECONDS, Qemu, start_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = 4096
LOWEST = 1 << 20
"""Guest-physical: below it there are ROMs and nothing else that a test should write to."""

_ROM_BYTES = 0x10000
_RESET = 0xFFF0
_JUMP_TO_START = bytes.fromhex("e90d00")
_FIRMWARE = bytes.fromhex(
    "fa"  # cli
    "2e660f01164e00"  # lgdt cs:[gdtr]
    "0f20c0 0c01 0f22c0"  # protected mode
    "bb0800 8edb"  # ds reaches 4 GiB
    "24fe 0f22c0"  # and real mode again
    "b90800"  # next: cx = 8 bytes to come
    "bafd03 ec a801 74fb"  # byte: wait until the line status says that there is one
    "b2f8 ec"  # al = it
    "660facfe08 66c1ef08 66c1e018 6609c7"  # edi:esi = edi:esi >> 8 | al << 56
    "e2e3"  # loop to byte; then esi is the first page, edi the number of pages
    "67c6062a"  # page: mov byte [esi], 0x2a
    "6681c600100000 664f 75f1"  # the next page, until all are written
    "b02a ee"  # the answer
    "ebcc"  # jmp to next
    "0f00 5800ffff 8db40000"  # gdtr: two descriptors, in ROM below 4 GiB; padding
    "0000000000000000"  # gdt
    "ffff00000093cf00"  # data: base 0, 4 GiB
)


def _rom() -> bytes:
    """A BIOS: the code at its start, and the jump to it where a CPU begins."""
    rom = bytearray(_FIRMWARE.ljust(_ROM_BYTES, b"\0"))
    rom[_RESET : _RESET + len(_JUMP_TO_START)] = _JUMP_TO_START
    return bytes(rom)


class Guest:
    """A running QEMU and its guest, paused except while it writes."""

    def __init__(self, qemu: Qemu, serial: socket.socket) -> None:
        self.qemu = qemu
        self.pid = qemu.pid
        self._serial = serial

    def write(self, address: int, size_bytes: int) -> None:
        """Has the guest write to each page of that range of guest-physical memory."""
        assert address >= LOWEST
        self.qemu.command("cont")
        self._serial.sendall(struct.pack("<II", address, size_bytes // PAGE))
        assert self._serial.recv(1) == b"*"
        self.qemu.command("stop")


@contextmanager
def start_guest(
    *arguments: str, name: str | None = None, prefix: Sequence[str] = ()
) -> Iterator[Guest]:
    """A QEMU under KVM until the block ends; as start_qemu, with the firmware."""
    with tempfile.TemporaryDirectory(prefix="guest-") as folder:
        bios, port = Path(folder, "bios"), Path(folder, "serial")
        bios.write_bytes(_rom())
        more = ("-bios", str(bios), "-serial", f"unix:{port},server=on,wait=off")
        with (
            start_qemu(*arguments, *more, name=name, accel="kvm", prefix=prefix) as qemu,
            socket.socket(socket.AF_UNIX) as serial,
        ):
            serial.settimeout(PATIENCE_SECONDS)
            serial.connect(str(port))
            yield Guest(qemu, serial)
