"""What a hostile text takes grows with its size, and never with the square of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from gmemd.spec.loading import parse_spec
from gmemd.spec.problems import SpecError
from gmemd.spec.vmm.reading import read_command_line
from tests.fuzz.running import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = 1 << 12, 1 << 15
"""Bytes; the second is eight times the first."""

LEAST_SECONDS = 0.002
MOST_TIMES = 32
"""Eight times as much would take 64 times as long if it were with the square; usually 8."""

HEAD = b"version: 1\nvm: a\nsource: create\nguest_nodes:\n"


def repeated(unit: bytes, opening: bytes = b"") -> Callable[[int], bytes]:
    return lambda size: opening + unit * (size // len(unit))


def numbered(unit: str, opening: bytes = b"") -> Callable[[int], bytes]:
    return lambda size: (
        opening
        + "".join(unit.replace("#", str(number)) for number in range(size // len(unit))).encode()
    )


SPECS = {
    "brackets": repeated(b"["),
    "braces": repeated(b"{a: "),
    "brackets-and-an-error": lambda size: b"[" * size + b"`",
    "keys-in-keys": repeated(b"? "),
    "dashes": repeated(b"- "),
    "colons": repeated(b"a:"),
    "items": repeated(b"x,", b"a: ["),
    "keys": numbered("key#: 1\n"),
    "the-same-key": repeated(b"vm: a\n"),
    "unknown-keys-in-nodes": numbered("  - {id: 1, key#: 1}\n", HEAD),
    "bad-values": repeated(b"  - {id: x}\n", HEAD),
    "nothing": repeated(b"  -\n", HEAD),
    "nodes": numbered("  - {id: #, memory: 1GiB, host_nodes: 0, vcpus: #}\n", HEAD),
    "the-same-node": repeated(b"  - {id: 1, memory: 1GiB}\n", HEAD),
    "shared-vcpus": repeated(b"  - {id: 1, vcpus: 0-4095}\n", HEAD),
    "one-vcpu-then-all": lambda size: (
        numbered("  - {id: #, vcpus: #}\n", HEAD)(size // 2)
        + numbered("  - {id: 9#, vcpus: 0-4095}\n")(size // 2)
    ),
    "ranges": lambda size: HEAD + b"  - {vcpus: '" + b"0-4095," * (size // 7) + b"0'}\n",
    "a-list-of-ranges": lambda size: HEAD + b"  - {vcpus: [" + b"0-4095," * (size // 7) + b"0]}\n",
    "exclusions": lambda size: HEAD + b"  - {vcpus: '0-4095" + b",^0" * (size // 3) + b"'}\n",
    "distances-to-nowhere": numbered("  - {id: #, distances: {9#: 20}}\n", HEAD),
    "backslashes": repeated(b"\\\\", b'a: "'),
    "lines": repeated(b"\n"),
    "folded": repeated(b" x\n", b"a: >\n"),
    "a-word-of-many-lines": repeated(b"  x\n", b"a: x\n"),
    "documents": repeated(b"---\n"),
    "directives": repeated(b"%A b\n"),
    "a-tag": repeated(b"a", b"!"),
    "a-number": repeated(b"9", b"guest_nodes: [{memory: "),
    "a-word-like-another": repeated(b"create", b"source: "),
    "no-utf-8": lambda size: b"a\n" * (size // 2) + b"\xff",
}
COMMAND_LINES = {
    "objects": numbered("-object\0memory-backend-ram,id=m#,size=1G\0"),
    "nodes": numbered("-numa\0node,nodeid=#,memdev=m#\0"),
    "distances": numbered("-numa\0dist,src=#,dst=1,val=20\0"),
    "commas": repeated(b",", b"-object\0"),
    "equals": repeated(b"a=", b"-object\0"),
    "braces": repeated(b'{"a":', b"-object\0"),
    "host-nodes": repeated(b"host-nodes=0-1023,", b"-object\0memory-backend-ram,id=a,size=1G,"),
    "zones": numbered("--memory-zone\0id=z#,size=1G\0"),
    "zones-of-a-node": repeated(
        b"a,", b"--memory\0size=1G\0--numa\0guest_numa_id=0,memory_zones=["
    ),
    "brackets": repeated(b"[", b"--numa\0"),
    "quotes": repeated(b'"', b"--memory\0"),
    "flags": numbered("--f#\0"),
}


def read_spec(data: bytes) -> None:
    try:
        parse_spec(data, file="f")
    except SpecError as error:
        str(error)


def read_argv(data: bytes) -> None:
    argv = ["vmm", *data.decode().split("\0")]
    for vmm in ("qemu", "cloud-hypervisor", "firecracker", "crosvm"):
        read_command_line(vmm, argv)


def check(read: Callable[[bytes], None], make: Callable[[int], bytes]) -> None:
    small, large = (
        min(cpu_seconds(partial(read, data)) for _ in range(2)) for data in map(make, SIZES)
    )
    assert large < max(LEAST_SECONDS, small) * MOST_TIMES, f"{small * 1e3} ms, {large * 1e3} ms"


@pytest.mark.parametrize("name", SPECS)
def test_specs(name: str) -> None:
    check(read_spec, SPECS[name])


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_command_lines(name: str) -> None:
    check(read_argv, COMMAND_LINES[name])


def test_what_grows_with_the_square_is_found() -> None:
    def read(data: bytes) -> None:
        for _ in range(len(data) // 4):
            data.count(b"x")

    with pytest.raises(AssertionError, match="ms"):
        check(read, repeated(b"y"))
