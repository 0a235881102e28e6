"""What is read from a QEMU's command line, against the memory that the real QEMU makes of it."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.kernel.procfs.maps import parse_maps
from gmemd.kernel.procfs.numa_maps import parse_numa_maps
from gmemd.spec.vmm.reading import read_command_line, vmm_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.spec.declared import DeclaredBackend

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
POLICIES = ("bind", "preferred", "interleave")

pytestmark = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"there is no {QEMU}")


@contextmanager
def running(*words: str) -> Iterator[int]:
    """A QEMU whose machine is made and whose guest never runs: its pid."""
    argv = [QEMU, "-accel", "tcg,tb-size=1", "-S", "-display", "none", "-nodefaults", *words]
    with subprocess.Popen(
        [*argv, "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert b"QMP" in process.stdout.readline()
            process.stdin.write(b'{"execute":"qmp_capabilities"}{"execute":"query-status"}\n')
            process.stdin.flush()
            assert b"return" in process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def declared(pid: int) -> tuple[DeclaredBackend, ...]:
    text = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape")
    argv = text.removesuffix("\0").split("\0")
    declaration = read_command_line(vmm_kind(argv[0]), argv)
    assert declaration.problems == ()
    return declaration.backends


def mapped(pid: int, sizes: set[int]) -> list[tuple[int, int, str]]:
    """Address, size and policy of the mappings of such sizes, from high addresses to low."""
    maps = parse_maps(Path(f"/proc/{pid}/maps").read_text())
    policies = {
        entry.start: entry.mode
        for entry in parse_numa_maps(Path(f"/proc/{pid}/numa_maps").read_text())
    }
    found = [
        (entry.start, entry.size_bytes, policies[entry.start])
        for entry in maps
        if entry.size_bytes in sizes and "r" in entry.permissions
    ]
    return sorted(found, reverse=True)


@pytest.mark.parametrize(
    "kind",
    [
        "ram",
        "ram,share=on",
        "memfd",
        "memfd,share=off",
        "memfd,hugetlb=on,hugetlbsize=2M,reserve=off",
        "file,mem-path={}",
        "file,mem-path={},share=on",
    ],
)
@pytest.mark.parametrize("nodes", [(0, 1, 2), (2, 0, 1)], ids=["forth", "mixed"])
def test_backends_lie_from_high_addresses_to_low_as_declared(
    kind: str, nodes: tuple[int, ...], tmp_path: Path
) -> None:
    words = ["-m", "96"]
    for number, policy in enumerate(POLICIES):
        rest = f"id=m{number},size=32M,host-nodes=0,policy={policy}"
        words += ["-object", f"memory-backend-{kind.format(tmp_path)},{rest}"]
    for number in nodes:
        words += ["-numa", f"node,memdev=m{number}"]
    with running(*words) as pid:
        backends = declared(pid)
        found = mapped(pid, {32 * MIB})
    assert [backend.parts[0][0] for backend in backends] == [nodes.index(n) for n in range(3)]
    assert [backend.policy.value for backend in backends] == list(POLICIES)
    assert [policy for _, _, policy in found] == list(POLICIES)


@pytest.mark.parametrize(
    "words",
    [
        "-m 112",
        "-m 0x40",
        "-m 100001k",
        "-m 0.125G -name x,,y",
        "-m 64 -object memory-backend-ram,id=a,size=80M -object memory-backend-ram,id=b,size=72M",
        "-M pc,memory-backend=a -object memory-backend-memfd,id=a,size=70M",
        "-m 64 -object memory-backend-ram,id=a,size=73400321",
        "-M microvm -m 72",
        (
            "-m 64,slots=2,maxmem=1G -object memory-backend-ram,id=a,size=0.125G -M pc,nvdimm=on "
            "-device nvdimm,memdev=b -object memory-backend-ram,id=b,size=96M "
            "-device pc-dimm,memdev=a"
        ),
        "-M pc-i440fx-4.2 -m 96 -numa node,mem=32 -numa node,mem=64M",
        "-m 72 -mem-path /dev/shm",
        '-m 64 -object {"qom-type":"memory-backend-ram","id":"a","size":83886080,"share":true}',
    ],
)
def test_sizes_are_those_of_the_mappings_in_their_order(words: str) -> None:
    with running(*words.split(" ")) as pid:
        sizes = [backend.size_bytes for backend in declared(pid)]
        found = mapped(pid, set(sizes))
    assert [size for _, size, _ in found] == sizes


def test_memfds_descriptors_ascend_as_declared() -> None:
    words = []
    for number in range(4):
        words += ["-object", f"memory-backend-memfd,id=m{number},size={40 + number}M"]
    with running("-m", "32", *words) as pid:
        sizes = [backend.size_bytes for backend in declared(pid)]
        fds = sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda fd: int(fd.name))
        found = [fd.stat().st_size for fd in fds if "memfd" in str(fd.readlink())]
    assert [size for size in found if size in sizes] == sizes[:-1]
