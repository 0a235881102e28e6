from __future__ import annotations

import shlex

import pytest

from gmemd.spec.declared import BackendKind, Declaration, DeclaredBackend
from gmemd.spec.model import PolicyMode
from gmemd.spec.vmm.cloud_hypervisor import read_cloud_hypervisor
from tests.unit.spec.vmm.command_lines import argv

MIB = 1 << 20
GIB = 1 << 30


def read(words: str, machine: str = "x86_64") -> Declaration:
    return read_cloud_hypervisor(["cloud-hypervisor", *shlex.split(words)], machine)


def zone(
    name: str,
    size: int,
    node: int | None,
    host_node: int | None = None,
    *,
    kind: BackendKind = BackendKind.ANY,
    shared: bool = False,
    page_size: int | None = None,
    path: str = "",
) -> DeclaredBackend:
    return DeclaredBackend(
        id=name,
        kind=kind,
        size_bytes=size,
        parts=((node, size),),
        policy=PolicyMode.DEFAULT if host_node is None else PolicyMode.BIND,
        host_nodes=frozenset() if host_node is None else frozenset({host_node}),
        shared=shared,
        page_size=page_size,
        path=path,
    )


def test_zones_and_guest_nodes() -> None:
    declaration = read_cloud_hypervisor(argv("cloud-hypervisor-zones"))
    memfd = BackendKind.MEMFD
    assert declaration == Declaration(
        vmm="cloud-hypervisor",
        name="cache-7",
        uuid="c27b4b0e-9a5d-4f64-9c3a-db0a6e0b1d11",
        memory_bytes=4 * GIB + 512 * MIB,
        one_node=False,
        backends=(
            zone("mem0", 2 * GIB, 0, 0, kind=memfd, shared=True),
            zone("mem1", GIB, 2, 1, kind=memfd, page_size=GIB),
            zone("mem1 above 4 GiB", GIB, 2, 1, kind=memfd, page_size=GIB),
            zone("mem2", 512 * MIB, 0, kind=BackendKind.FILE, path="/dev/shm/zone2"),  # noqa: S108
        ),
        distances={0: {0: 10, 1: 15, 2: 30}, 2: {0: 30, 2: 10}},
    )


def test_kata_gives_the_vm_through_the_api() -> None:
    assert read_cloud_hypervisor(argv("kata-cloud-hypervisor")) == Declaration(
        vmm="cloud-hypervisor", name="8f3c1dd91a55", one_node=True
    )


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        ("--kernel vmlinux", 512 * MIB),
        ("--firmware fw --memory size=1G", GIB),
        ("--kernel k --memory=size=1024M,shared=on", GIB),
        ("--kernel k --memory size=1073741824,hugepages=on,hugepage_size=2M", GIB),
        ("--kernel k --memory shared=on", 512 * MIB),
        ("--restore source_url=file:///tmp/snapshot", None),
        ("--api-socket /tmp/ch.sock", None),
    ],
)
def test_a_guest_without_zones_is_one_node(words: str, memory: int | None) -> None:
    declaration = read(words)
    assert declaration.memory_bytes == memory
    assert declaration.one_node
    assert declaration.backends == ()
    assert declaration.problems == ()


def test_all_memory_may_be_one_guest_node() -> None:
    words = "--kernel k --memory size=1G,shared=on --numa guest_numa_id=1,memory_zones=mem0"
    declaration = read(words)
    assert declaration.backends == (zone("mem0", GIB, 1, kind=BackendKind.MEMFD, shared=True),)
    assert declaration.problems == ()


@pytest.mark.parametrize(
    ("machine", "low"), [("x86_64", 3 * GIB), ("aarch64", 3008 * MIB), ("riscv64", None)]
)
def test_a_shared_zone_is_cut_by_the_hole(machine: str, low: int | None) -> None:
    words = "--kernel k --memory size=0 --memory-zone id=a,size=1G,shared=on id=b,size=4G,shared=on"
    memfd = BackendKind.MEMFD
    first = zone("a", GIB, 0, kind=memfd, shared=True)
    backends = read(words, machine).backends
    if low is None:
        assert backends == (first, zone("b", 4 * GIB, 0, kind=memfd, shared=True))
    else:
        assert backends == (
            first,
            zone("b", low - GIB, 0, kind=memfd, shared=True),
            zone("b above 4 GiB", 5 * GIB - low, 0, kind=memfd, shared=True),
        )


def test_an_anonymous_zone_is_not_cut() -> None:
    words = "--kernel k --memory size=0 --memory-zone id=a,size=4G,host_numa_node=2 id=b,size=4G"
    assert read(words).backends == (zone("a", 4 * GIB, 0, 2), zone("b", 4 * GIB, 0))


def test_a_zone_of_no_guest_node() -> None:
    words = (
        "--kernel k --memory size=0 --memory-zone id=a,size=1G --memory-zone id=b,size=1G "
        "--numa guest_numa_id=0,memory_zones=[a]"
    )
    assert read(words).backends == (zone("a", GIB, 0), zone("b", GIB, None))


@pytest.mark.parametrize(
    ("socket", "name"),
    [
        ("/run/vms/web.sock", "web"),
        ("/run/vms/web.socket", "web"),
        ("path=/run/vms/web.sock", "web"),
        ("web", "web"),
        ("/run/vms/web/api.sock", "web"),
        ("/run/vc/vm/3f1c/clh-api.sock", "3f1c"),
        ("/var/lib/vms/web/cloud-hypervisor.sock", "web"),
        ("/run/ch/api.sock", ""),
        ("/tmp/ch.sock", ""),  # noqa: S108
        ("fd=3", ""),
        ("", ""),
    ],
)
def test_names_are_those_of_sockets(socket: str, name: str) -> None:
    assert read(f"--api-socket '{socket}'").name == name
    assert read(f"--api-socket='{socket}'").name == name


@pytest.mark.parametrize(
    ("words", "confidential"),
    [("tdx=on", True), ("sev_snp=on", True), ("tdx=off", False), ("uuid=x", False)],
)
def test_confidential_guests(words: str, *, confidential: bool) -> None:
    assert read(f"--kernel k --platform {words}").confidential is confidential


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--memory size=lots", "--memory size=lots: size='lots' is no size"),
        ("--memory size", "--memory: 'size' has no value"),
        (
            "--memory size=0 --memory-zone id=a,size=1G,host_numa_node=x",
            "--memory-zone id=a,size=1G,host_numa_node=x: 'x' is no number from 0 to 1023",
        ),
        (
            "--memory size=0 --memory-zone id=a,size=1G,shared=maybe",
            "--memory-zone id=a,size=1G,shared=maybe: 'maybe' is neither on nor off",
        ),
        (
            "--numa guest_numa_id=0,memory_zones=[zz]",
            "--numa memory_zones=: there is no zone 'zz'",
        ),
        (
            "--numa guest_numa_id=0,distances=[1-20]",
            "--numa guest_numa_id=0,distances=[1-20]: '1-20' is no number from 0 to 4294967295",
        ),
        ("--platform tdx=perhaps", "--platform: 'perhaps' is neither on nor off"),
    ],
)
def test_what_is_not_understood_is_told(words: str, problem: str) -> None:
    declaration = read(f"--api-socket /run/web.sock --kernel k {words}")
    assert declaration.problems == (problem,)
    assert declaration.name == "web"
