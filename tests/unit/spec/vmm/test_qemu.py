from __future__ import annotations

import shlex

import pytest

from gmemd.spec.declared import BackendKind, Declaration, DeclaredBackend
from gmemd.spec.model import PolicyMode
from gmemd.spec.vmm.qemu import read_qemu
from tests.unit.spec.vmm.command_lines import argv

MIB = 1 << 20
GIB = 1 << 30


def read(words: str, program: str = "qemu-system-x86_64") -> Declaration:
    return read_qemu([program, *shlex.split(words)])


def ram(
    name: str,
    size: int,
    node: int | None,
    policy: str = "default",
    nodes: tuple[int, ...] = (),
    *,
    kind: BackendKind = BackendKind.RAM,
    shared: bool = False,
    page_size: int | None = None,
    path: str = "",
) -> DeclaredBackend:
    return DeclaredBackend(
        id=name,
        kind=kind,
        size_bytes=size,
        parts=((node, size),),
        policy=PolicyMode(policy),
        host_nodes=frozenset(nodes),
        shared=shared,
        page_size=page_size,
        path=path,
    )


def test_libvirt_with_two_cells_and_a_dimm() -> None:
    assert read_qemu(argv("libvirt-two-cells")) == Declaration(
        vmm="qemu",
        name="db-01",
        uuid="4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
        memory_bytes=32 * GIB,
        one_node=False,
        backends=(
            ram("ram-node0", 16 * GIB, 0, "bind", (0,)),
            ram("ram-node1", 16 * GIB, 1, "interleave", (2, 3)),
            ram("memdimm0", GIB, 1, "preferred", (1,)),
        ),
        distances={0: {0: 10, 1: 21}, 1: {0: 21, 1: 10}},
    )


def test_libvirt_without_cells() -> None:
    assert read_qemu(argv("libvirt-no-cells")) == Declaration(
        vmm="qemu",
        name="web",
        uuid="0cd4e9a2-95b1-4f4b-a8a8-4f9b50b4ea35",
        memory_bytes=2 * GIB,
        one_node=True,
        backends=(ram("pc.ram", 2 * GIB, 0),),
    )


def test_nova_with_huge_pages() -> None:
    declaration = read_qemu(argv("nova-huge-pages"))
    path = "/dev/hugepages/libvirt/qemu/12-instance-0000002a"
    assert declaration.backends == (
        ram("ram-node0", 4 * GIB, 0, "bind", (0,), kind=BackendKind.FILE, shared=True, path=path),
        ram("ram-node1", 4 * GIB, 1, "bind", (1,), kind=BackendKind.FILE, shared=True, path=path),
    )
    assert declaration.name == "instance-0000002a"
    assert declaration.uuid == "7b5e8e0f-0f8c-4f93-a8b5-65ad6a7d62b7"
    assert declaration.memory_bytes == 8 * GIB
    assert declaration.problems == ()


def test_nova_with_four_cells() -> None:
    declaration = read_qemu(argv("nova-four-cells-memfd"))
    memfd = BackendKind.MEMFD
    assert declaration.backends == (
        ram("ram-node0", 4 * GIB, 0, "bind", (0,), kind=memfd, shared=True, page_size=GIB),
        ram("ram-node1", 4 * GIB, 1, "bind", (1,), kind=memfd, shared=True, page_size=GIB),
        ram("ram-node2", 4 * GIB, 2, "bind", (2,), kind=memfd, shared=True, page_size=0),
        ram("ram-node3", 4 * GIB, 3, "preferred", (3,), kind=memfd),
    )
    assert not declaration.one_node


def test_proxmox() -> None:
    declaration = read_qemu(argv("proxmox"))
    assert declaration.name == "mail"
    assert declaration.uuid == "d6ff2f5c-9bfb-4c2a-8a3c-5c1cf1d0e7a5"
    assert declaration.backends == (
        ram("ram-node0", 4 * GIB, 0, "interleave", (0, 1)),
        ram("ram-node1", 4 * GIB, 1, "preferred", (1,)),
    )
    assert declaration.problems == ()


def test_kata() -> None:
    declaration = read_qemu(argv("kata-qemu"))
    image = "/opt/kata/share/kata-containers/kata.img"
    assert declaration.name == "sandbox-8f3c1d"
    assert declaration.memory_bytes == 2 * GIB
    assert declaration.one_node
    assert declaration.backends == (
        ram("mem0", 256 * MIB, 0, kind=BackendKind.FILE, path=image),
        ram("dimm1", 2 * GIB, 0, kind=BackendKind.FILE, shared=True, path="/dev/shm"),  # noqa: S108
    )


@pytest.mark.parametrize(
    ("words", "mebibytes"),
    [
        ("", 128),
        ("-m 0", 128),
        ("-m 512", 512),
        ("-m 4G", 4096),
        ("-m 0x64", 100),
        ("-m size=4G,slots=2,maxmem=8G", 4096),
        ("-m 1.5g", 1536),
        ("-m 256 -m slots=2,maxmem=8G", 256),
        ("-m 256 --m 512", 512),
        ("-M q35,memory.size=256M", 256),
        ("-M q35,memory.size=256M -m 512", 512),
        ("-enable-kvm -m 512 disk.img", 512),
        ("-append '-m 64' -m 512 -kernel -m", 512),
        ("-serial -monitor stdio -m 512", 512),
        ("-m 512 -daemonize", 512),
    ],
)
def test_memory_of_one_block(words: str, mebibytes: int) -> None:
    declaration = read(words)
    assert declaration.memory_bytes == mebibytes * MIB
    assert declaration.backends == (ram("pc.ram", mebibytes * MIB, 0),)
    assert declaration.one_node
    assert declaration.problems == ()


def test_memory_is_rounded_up_as_qemu_does() -> None:
    assert read("-m 100001k").memory_bytes == 102408192
    backends = read("-object memory-backend-ram,id=a,size=104857601").backends
    assert backends[0].size_bytes == 104861696


def test_the_machines_own_memory_is_made_last() -> None:
    declaration = read("-m 512 -object memory-backend-ram,id=shared,size=300M,share=on")
    assert declaration.backends == (
        ram("shared", 300 * MIB, None, shared=True),
        ram("pc.ram", 512 * MIB, 0),
    )


def test_mem_path_makes_a_file_of_the_machines_memory() -> None:
    declaration = read("-m 512 -mem-path /dev/hugepages -mem-prealloc")
    assert declaration.backends == (
        ram("pc.ram", 512 * MIB, 0, kind=BackendKind.FILE, path="/dev/hugepages"),
    )


@pytest.mark.parametrize(
    ("program", "machine", "name"),
    [
        ("/usr/bin/qemu-system-aarch64", "virt", "mach-virt.ram"),
        ("qemu-system-s390x", "s390-ccw-virtio", "s390.ram"),
        ("qemu-system-x86_64", "microvm", "microvm.ram"),
        ("/usr/libexec/qemu-kvm", "q35", "pc.ram"),
    ],
)
def test_the_machines_memory_has_its_machines_name(program: str, machine: str, name: str) -> None:
    assert read(f"-M {machine}", program).backends[0].id == name


def test_a_machine_backend_is_the_guests_memory() -> None:
    declaration = read(
        "-object memory-backend-memfd,id=mem,size=2G,host-nodes=1,policy=bind "
        "-machine q35,accel=kvm --machine memory-backend=mem"
    )
    memfd = ram("mem", 2 * GIB, 0, "bind", (1,), kind=BackendKind.MEMFD, shared=True)
    assert declaration.backends == (memfd,)
    assert declaration.memory_bytes == 2 * GIB
    assert declaration.one_node


@pytest.mark.parametrize(
    ("words", "policy", "nodes"),
    [
        ("host-nodes=0-2,policy=bind", "bind", {0, 1, 2}),
        ("host-nodes=0,host-nodes=2,policy=bind", "bind", {0, 2}),
        ("host-nodes.0=1,host-nodes.1=3,policy=interleave", "interleave", {1, 3}),
        ("host-nodes=1,policy=preferred", "preferred", {1}),
        ("host-nodes=1-2,policy=preferred", "preferred-many", {1, 2}),
        ("policy=default", "default", set()),
        ("", "default", set()),
    ],
)
def test_policies(words: str, policy: str, nodes: set[int]) -> None:
    declaration = read(f"-object memory-backend-ram,id=m,size=1G,{words}")
    assert declaration.backends[0].policy == PolicyMode(policy)
    assert declaration.backends[0].host_nodes == nodes
    assert declaration.problems == ()


@pytest.mark.parametrize(
    ("words", "kind", "shared", "page_size", "path"),
    [
        ("ram", BackendKind.RAM, False, None, ""),
        ("ram,share=on", BackendKind.RAM, True, None, ""),
        ("ram,share", BackendKind.RAM, True, None, ""),
        ("memfd", BackendKind.MEMFD, True, None, ""),
        ("memfd,share=off", BackendKind.MEMFD, False, None, ""),
        ("memfd,hugetlb=on,hugetlbsize=2M", BackendKind.MEMFD, True, 2 * MIB, ""),
        ("memfd,hugetlb=on", BackendKind.MEMFD, True, 0, ""),
        ("memfd,hugetlb=off,hugetlbsize=2M", BackendKind.MEMFD, True, None, ""),
        ("file,mem-path=/mnt/a,,b", BackendKind.FILE, False, None, "/mnt/a,b"),
        ("shm", BackendKind.FILE, True, None, "/dev/shm"),  # noqa: S108
        ("new", BackendKind.ANY, None, None, ""),
    ],
)
def test_kinds(
    words: str, kind: BackendKind, *, shared: bool | None, page_size: int | None, path: str
) -> None:
    kind_of_object, _, rest = words.partition(",")
    declaration = read(f"-object memory-backend-{kind_of_object},id=m,size=1G,{rest}")
    backend = declaration.backends[0]
    assert (backend.kind, backend.shared, backend.page_size) == (kind, shared, page_size)
    assert backend.path == path
    assert declaration.problems == ()


def test_sgx_memory_is_no_guest_ram() -> None:
    words = "-m 64 -object memory-backend-epc,id=e,size=64M,prealloc=on"
    assert [backend.id for backend in read(words).backends] == ["pc.ram"]


def test_nodes_without_a_number_count_on() -> None:
    declaration = read(
        "-object memory-backend-ram,id=a,size=1G -object memory-backend-ram,id=b,size=1G "
        "-numa node,memdev=b -numa node,memdev=a -numa node,cpus=3 -m 2G"
    )
    assert declaration.backends == (ram("a", GIB, 1), ram("b", GIB, 0))
    assert not declaration.one_node
    assert declaration.problems == ()


@pytest.mark.parametrize(
    ("words", "parts", "n_problems"),
    [
        ("-numa node,mem=256 -numa node,mem=768", ((0, 256), (1, 768)), 0),
        ("-numa node,nodeid=1,mem=256M -numa node,nodeid=0,mem=768M", ((0, 768), (1, 256)), 0),
        ("-numa node,mem=1G -numa node", ((0, 1024),), 0),
        ("-numa node", ((0, 1024),), 0),
        ("-numa node,nodeid=3,mem=1024", ((3, 1024),), 0),
        ("-numa node -numa node", ((None, 1024),), 1),
        ("-numa node,mem=256 -numa node,mem=256", ((0, 256), (1, 256), (None, 512)), 1),
        ("-numa node,mem=2G -numa node,mem=2G", ((None, 1024),), 1),
    ],
)
def test_nodes_that_share_one_block(
    words: str, parts: tuple[tuple[int | None, int], ...], n_problems: int
) -> None:
    declaration = read(f"-M pc-i440fx-4.2 -m 1024 {words}")
    assert len(declaration.backends) == 1
    assert declaration.backends[0].parts == tuple((node, size * MIB) for node, size in parts)
    assert len(declaration.problems) == n_problems


@pytest.mark.parametrize(
    ("device", "node"),
    [
        ("pc-dimm,memdev=m", 0),
        ("pc-dimm,id=d,memdev=m,node=2", 2),
        ("nvdimm,memdev=m,node=1", 1),
        ("virtio-mem-pci,memdev=m,node=1,requested-size=1G", 1),
        ("virtio-pmem-pci,memdev=m", 0),
        ("ivshmem-plain,memdev=m", None),
        ("virtio-net-pci,netdev=m", None),
    ],
)
def test_devices_give_their_memory_to_a_node(device: str, node: int | None) -> None:
    declaration = read(f"-object memory-backend-ram,id=m,size=1G -device {device}")
    assert declaration.backends[0] == ram("m", GIB, node)
    assert declaration.backends[1] == ram("pc.ram", 128 * MIB, 0)
    assert declaration.one_node == (node in {0, None})


def test_distances_are_told_one_way_or_both() -> None:
    words = (
        "-numa dist,src=0,dst=1,val=20 -numa dist,src=1,dst=2,val=30 -numa dist,src=2,dst=1,val=31"
    )
    assert read(words).distances == {
        0: {0: 10, 1: 20},
        1: {0: 20, 1: 10, 2: 30},
        2: {1: 31, 2: 10},
    }


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("-name foo", "foo"),
        ("--name foo,process=vm:foo", "foo"),
        ("-name guest=foo,debug-threads=on,process=x", "foo"),
        ("-name a,,b,debug-threads=on", "a,b"),
        ("-name debug-threads=on", ""),
        ("-name foo -name debug-threads=on", "foo"),
        ("-name '{foo'", ""),
        ("", ""),
    ],
)
def test_names(words: str, name: str) -> None:
    assert read(words).name == name


@pytest.mark.parametrize(
    ("words", "uuid"),
    [
        ("-uuid 4DEA22B3-1d52-d8f3-2516-782e98ab3fa0", "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"),
        (
            "-uuid 4dea22b3-1d52-d8f3-2516-782e98ab3fa0 -smbios type=1,uuid=00000000",
            "4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
        ),
        ("-smbios type=0,uuid=00000000-1d52-d8f3-2516-782e98ab3fa0", ""),
    ],
)
def test_uuids(words: str, uuid: str) -> None:
    assert read(words).uuid == uuid


@pytest.mark.parametrize(
    ("words", "confidential"),
    [
        ("-machine q35,confidential-guest-support=sev0", True),
        ("-machine q35,memory-encryption=sev0", True),
        ("-object sev-snp-guest,id=s", True),
        ('-object \'{"qom-type":"tdx-guest","id":"t"}\'', True),
        ("-object rng-random,id=r", False),
        ("", False),
    ],
)
def test_confidential_guests(words: str, *, confidential: bool) -> None:
    assert read(words).confidential is confidential


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("-m lots", "-m: 'lots' is no size"),
        ("-m 0.5", "-m: '0.5' is no whole number of bytes"),
        ("-uuid 17", "-uuid: '17' is no UUID"),
        ("-readconfig /etc/q35.cfg", "-readconfig: the file '/etc/q35.cfg' isn't read"),
        ("@/etc/options", "@: the file '/etc/options' isn't read"),
        ("-preconfig", "-preconfig: NUMA nodes may have been declared through QMP instead"),
        ("-machine memory-backend=m", "-machine memory-backend=: there is no memory backend 'm'"),
        (
            "-numa node,memdev=m",
            "-numa node,nodeid=0,memdev=: there is no memory backend 'm'",
        ),
        (
            "-object memory-backend-ram,id=m,size=100MB",
            "-object memory-backend-ram,id=m: '100MB' is no size",
        ),
        ("-object memory-backend-ram,id=m", "-object memory-backend-ram,id=m: '' is no size"),
        (
            "-object memory-backend-ram,id=m,size=0",
            "-object memory-backend-ram,id=m: has no size",
        ),
        (
            "-object memory-backend-ram,id=m,size=1G,policy=local",
            "-object memory-backend-ram,id=m,policy=: 'local' is no policy that is known",
        ),
        (
            "-object memory-backend-ram,id=m,size=1G,policy=bind",
            "-object memory-backend-ram,id=m,policy=bind: names no host nodes",
        ),
        (
            "-object memory-backend-ram,id=m,size=1G,host-nodes=1",
            "-object memory-backend-ram,id=m,policy=default: takes no host nodes",
        ),
        (
            "-object memory-backend-ram,id=m,size=1G,policy=bind,host-nodes=0-9999",
            "-object memory-backend-ram,id=m,host-nodes=: '9999' is no number from 0 to 1023",
        ),
        (
            "-object memory-backend-ram,id=m,size=1G,share=perhaps",
            "-object memory-backend-ram,id=m,share=: 'perhaps' is neither on nor off",
        ),
        ("-object '{\"id\":'", "-object: '{\"id\":' is no JSON that can be read"),
        ("-numa node -numa node,nodeid=0,mem=1", None),
        ("-numa nodes", "-numa nodes: 'nodes' is no kind that is known"),
        (
            "-numa dist,src=0,dst=1,val=999",
            "-numa dist,src=0,dst=1,val=999: '999' is no number from 0 to 255",
        ),
    ],
)
def test_what_is_not_understood_is_told(words: str, problem: str | None) -> None:
    declaration = read(f"-name vm {words}")
    assert declaration.name == "vm"
    assert len(declaration.problems) == 1
    if problem is not None:
        assert declaration.problems == (problem,)


def test_what_is_not_understood_keeps_nothing_else_from_being_read() -> None:
    declaration = read(
        "-object memory-backend-ram,id=a,size=1G,policy=x -object '{' -numa node,memdev=a "
        "-numa node,nodeid=x -object memory-backend-ram,id=b,size=2G,share=x -m 1G -name vm"
    )
    assert declaration.backends == (ram("a", GIB, 0), ram("b", 2 * GIB, None))
    assert declaration.memory_bytes == GIB
    assert declaration.name == "vm"
    assert len(declaration.problems) == 4


def test_memory_in_a_file_is_unknown() -> None:
    declaration = read("-name c1 -readconfig /var/log/lxd/c1/qemu.conf")
    assert declaration.memory_bytes is None
    assert declaration.backends == ()
    assert not declaration.one_node


def test_a_machine_that_is_none_has_no_memory() -> None:
    declaration = read("-S -machine none,accel=kvm:tcg -display none")
    assert (declaration.memory_bytes, declaration.backends) == (None, ())


def test_paths_keep_bytes_that_are_no_utf8() -> None:
    path = b"/mnt/\xff".decode("utf-8", "surrogateescape")
    words = f"-object memory-backend-file,id=m,size=1G,mem-path={path}"
    assert read(words).backends[0].path == path
