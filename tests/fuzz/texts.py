"""Texts of one line and of /proc, damaged: where they begin, and the words of their formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.mutation import LARGEST_BYTES, mutate
from tests.fuzz.yamls import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random


def damaged(beginnings: Sequence[bytes], words: Sequence[bytes]) -> Callable[[Random], bytes]:
    """Return what makes such texts: one of the beginnings, rarely as it is."""

    def make(rng: Random) -> bytes:
        begun = rng.choice(beginnings)
        return begun if rng.random() < 0.03 else mutate(rng, begun, words, beginnings)

    return make


NODESETS = (b"0", b"0-3", b"0-3,^1", b" 0 - 3 , 8", b"0-1023", b"^1,0-3", b"7-7")
NODESET_WORDS = (b",", b"-", b"^", b"0", b"1023", b"1024", b" ", b"0-1023,", b"^0,", b"3-1")
SIZES = (
    b"16GiB",
    b"16Gi",
    b"1.5GiB",
    b"512 MiB",
    b"4KiB",
    b"16G",
    b"1024",
    b"4PiB",
    b"0.000000001Ti",
)
SIZE_WORDS = (b"K", b"Mi", b"GiB", b"T", b"PiB", b"EiB", b"B", b"iB", b".", b"0", b"9")
RATIOS = (b"1%", b"0.5%", b"100%", b"95 %", b"99.99%", b"0.01", b"1", b".5")
DURATIONS = (b"500ms", b"60s", b"5m", b"1h", b"1.5 min", b"24h", b"60", b"0s")
UNIT_WORDS = (b"%", b".", b"ms", b"s", b"m", b"min", b"h", b"d", b" ")
ADDRESSES = (
    b"127.0.0.1:9989",
    b"[::1]:9989",
    b":9989",
    b"localhost:0",
    b"::1:9989",
    b"9989",
    b"[::1]",
)
NAMES = (b"db-01", b"a", b"0", b"root", b"_x$", b"/a.slice/b", b"none", b"peer", b"true", b"create")

_HOSTS = REPOSITORY / "tests/fixtures/hosts"
ZONEINFOS = tuple(path.read_bytes() for path in sorted(_HOSTS.glob("*/proc/zoneinfo")))
ZONEINFO_WORDS = (
    *(b"Node 0, zone   Normal\n", b"Node ", b"  pages free     1\n"),
    b"        protection: (0, 0)\n",
    *(b"\n  pagesets\n", b"managed ", b"nr_free_cma ", b"protection: ()", b"zone", b"(", b")"),
    b" ",
)  # fmt: skip
MEMINFOS = (
    b"Node 3 MemTotal:  2048 kB\nNode 3 MemFree:   1024 kB\nNode 3 HugePages_Total:  7\n",
    b"MemTotal:  2048 kB\nMemFree:   1024 kB\nActive(anon): 5 kB\n",
)
MAPS = (
    (
        b"7f0000000000-7f0000200000 rw-s 00100000 00:01 2051    /memfd:guest ram (deleted)\n"
        b"7f0000200000-7f0000201000 ---p 00000000 00:00 0 \n"
        b"7f0000400000-7f0040400000 rw-p 00000000 00:00 0    [anon:ram]\n"
        b"7f0040400000-7f0080400000 rw-s 00000000 00:0f 77   /[kvm-gmem] (deleted)\n"
        b"7f0080400000-7f0080403000 rw-s 00000000 00:0e 10   anon_inode:kvm-vcpu:0\n"
        b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n"
    ),
)
MAPS_WORDS = (
    b"-",
    b" ",
    b"rw-s",
    b"rw-p",
    b"00:00 0",
    b"7f0000000000-7fffffffffff ",
    b"kvm-vcpu",
    b"\n",
)
NUMA_MAPS = (
    (
        b"7f0000000000 bind:0-1 file=/memfd:a\\040b\\040(deleted) dirty=5 active=0 N0=3 N1=2\n"
        b"7f0000400000 prefer (many):0,2 anon=1 N2=1 kernelpagesize_kB=4\n"
        b"7f0000600000 weighted interleave=static:0-3 file=/x huge N1=7 kernelpagesize_kB=2048\n"
        b"7f0000800000 default stack anon=3 dirty=3 N0=3 kernelpagesize_kB=4\n"
        b"7f0000a00000 prefer=static|balancing:1\n7f0000c00000 local\n"
    ),
)
NUMA_MAPS_WORDS = (
    *(b"bind", b"prefer (many)", b"interleave", b"=static|relative", b":0-3", b" N0=1"),
    b" N65535=1",
    *(b" file=", b"\\040", b"\\777", b" kernelpagesize_kB=", b"=", b" ", b"|", b"0-65535", b"\n"),
)  # fmt: skip
NUMA_STATS = (
    b"anon N0=4096 N1=0\nfile N0=8192 N1=16384\nunevictable N0=0 N1=12288\n",
    b"total=5 N0=2 N1=3\nfile=3 N0=1 N1=2\nhierarchical_total=5 N0=2 N1=3\n",
    b"total=4194304 N0=0 N1=4194304\nhierarchical_total=6291456 N0=2097152 N1=4194304\n",
)
NUMA_STAT_WORDS = (b"N0=", b"=", b" ", b"\n", b"total", b"N", b"N18446744073709551616=1")

COMMAND_LINES = (
    *(
        b"\0".join(path.read_bytes().split())
        for path in sorted((REPOSITORY / "tests/fixtures/command-lines").glob("*.txt"))
    ),
    b"\0".join(
        (
            b"cloud-hypervisor",
            *(b"--memory", b"size=0", b"--memory-zone", b"id=mem0,size=1G,host_numa_node=1"),
            *(
                b"id=b,size=2G",
                b"--numa",
                b"guest_numa_id=0,memory_zones=[mem0,b],distances=[1@20]",
            ),
            *(b"--api-socket", b"path=/run/a.sock"),
        )
    ),
    b"firecracker\0--id\0vm-1\0--config-file\0/a.json\0--api-sock\0/run/a",
    b"crosvm\0run\0--mem\0size=2048\0--name\0a\0--protected-vm\0-s\0/run/vm.sock",
)
COMMAND_LINE_WORDS = (
    *(b"\0-m\0", b"\0-object\0", b"\0-numa\0", b"\0-machine\0", b"\0-name\0", b"\0-smbios\0"),
    b"\0-uuid\0",
    *(b"\0-device\0", b"\0--memory\0", b"\0--memory-zone\0", b"\0--numa\0", b"\0--platform\0"),
    b"\0",
    *(b"\0-readconfig\0", b"\0@/a\0", b"\0-preconfig\0", b"\0--\0", b"\0-mem-path\0", b"-", b"--"),
    *(b"memory-backend-ram,id=a,size=1G", b"node,nodeid=0,memdev=a", b"dist,src=0,dst=1,val=20"),
    *(b",", b",,", b"=", b"[", b"]", b'"', b"{", b"}", b"@", b":", b"host-nodes=0-1023"),
    b"policy=bind",
    *(b'{"qom-type":"memory-backend-ram","id":"a","size":1e400}', b'{"a":' * 40, b"NaN"),
    b"[" * 2000,
    *(b"0-4294967295", b"guest_numa_id=", b"memory_zones=[a,b]", b"hugepage_size=", b"tdx=on"),
)  # fmt: skip


def argv_of(data: bytes) -> list[str]:
    """A command line as /proc/PID/cmdline has it."""
    return data[:LARGEST_BYTES].decode("utf-8", "surrogateescape").split("\0")
