from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gmemd.spec.declared import Declaration
from gmemd.spec.vmm.reading import read_command_line, vmm_kind

VMMS = ("qemu", "cloud-hypervisor", "firecracker", "crosvm")

# As /proc/PID/cmdline may hold: no NUL, and bytes that are no UTF-8 as surrogates.
WORDS = st.binary(max_size=60).map(
    lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)
PIECES = st.sampled_from(
    [
        *("-m", "-M", "-machine", "-object", "-numa", "-device", "-name", "-uuid", "-smbios"),
        *("-mem-path", "-readconfig", "--memory", "--memory-zone", "--numa", "--platform"),
        *("--api-socket", "--id", "--mem", "--name", "--socket", "--kernel", "--", "-", "@"),
        *("memory-backend-ram", "memory-backend-memfd", "node", "dist", "pc-dimm", "type=none"),
        *(",", ",,", "=", "[", "]", '"', "{", "}", "{}", "[]", "@", ":", "-", "0", "1", "9" * 30),
        *("size=", "id=", "mem=", "memdev=", "host-nodes=", "policy=", "hugetlb=on", "share="),
        *("1G", "1.5G", "0x10", "bind", "interleave", "on", "mem0", "nodeid=", "src=0", "dst=1"),
        *("val=300", "0-4294967295", "guest_numa_id=", "distances=[1@2]", "memory_zones=[a,b]"),
        *('{"qom-type":"memory-backend-ram","id":"a","size":1e400}', '{"a":' * 40, "NaN"),
        *("host_numa_node=", "hugepage_size=", "tdx=maybe", "uuid=", "\ud800", "\udcff", "\x00"),
    ]
)
WORDS_LIKE_OPTIONS = st.lists(PIECES, max_size=6).map("".join)


@pytest.mark.parametrize("vmm", VMMS)
@given(words=st.lists(st.one_of(WORDS, WORDS_LIKE_OPTIONS, st.text(max_size=20)), max_size=12))
@example(words=[])
@example(words=["-object", '{"a":' + "[" * 100_000])
@example(words=["-object", '{"size":' + "9" * 5000 + "}"])
@example(words=["-object", '{"id":"\\ud800","qom-type":"memory-backend-ram","size":4096}'])
def test_any_words_are_read(vmm: str, words: list[str]) -> None:
    declaration = read_command_line(vmm, ["vmm", *words])
    assert declaration.vmm == vmm
    for text in (declaration.name, declaration.uuid, *(b.id for b in declaration.backends)):
        text.encode()  # no surrogates
    assert all(problem.isprintable() for problem in declaration.problems)
    for backend in declaration.backends:
        assert backend.size_bytes > 0
        assert sum(size for _, size in backend.parts) == backend.size_bytes
        assert bool(backend.host_nodes) == backend.policy.needs_nodes
    assert read_command_line(vmm, []) == read_command_line(vmm, ["vmm"])


@pytest.mark.parametrize("vmm", VMMS)
@pytest.mark.parametrize(
    "words",
    [
        ["-object", "," * 2_000_000],
        ["-object", "memory-backend-ram,id=" + "a,," * 500_000],
        ["-name", "=" * 2_000_000],
        ["-m", "9" * 2_000_000],
        ["-object", "{" * 2_000_000],
        ["--memory-zone", "[" * 2_000_000],
        ["--memory-zone", "id=a," * 400_000],
        ["-object", "memory-backend-ram,size=1G,host-nodes=" + "0-1023,host-nodes=" * 2000],
        ["-object", "memory-backend-ram"] * 50_000,
        ["-numa", "node"] * 20_000,
    ],
    ids=lambda words: words[0] + " " + words[1][:30],
)
def test_reading_takes_no_longer_than_the_command_line_is_long(vmm: str, words: list[str]) -> None:
    started = time.process_time()
    declaration = read_command_line(vmm, ["vmm", *words])
    assert time.process_time() - started < 5
    assert len(declaration.problems) < 30
    assert all(len(problem) < 300 for problem in declaration.problems)


NAMES = st.text(min_size=1, max_size=300).filter(lambda name: "\0" not in name)


@given(NAMES)
@example('it\'s "quoted", =twice=\nand {more}')
@example("dienst-ä-服务")
def test_names_come_back_as_they_were_given(name: str) -> None:
    escaped = name.replace(",", ",,")
    zone = json.dumps({"qom-type": "memory-backend-ram", "id": name, "size": 4096})
    declaration = read_command_line(
        "qemu",
        ["qemu-system-x86_64", "-name", f"guest={escaped},debug-threads=on", "-object", zone],
    )
    assert declaration.name == name
    assert declaration.backends[0].id == name
    assert read_command_line("firecracker", ["firecracker", "--id", name]).name == name
    assert read_command_line("crosvm", ["crosvm", "run", "--name", name]).name == name


@given(st.binary(min_size=1, max_size=20).filter(lambda raw: not set(raw) & set(b"\0,=\\")))
def test_bytes_of_a_name_that_are_no_utf8_are_escaped(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    declaration = read_command_line("qemu", ["kvm", "-name", f"guest={name}"])
    assert declaration.name == raw.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    ("program", "vmm"),
    [
        ("/usr/bin/qemu-system-x86_64", "qemu"),
        ("qemu-system-aarch64", "qemu"),
        ("/usr/bin/qemu-system-x86_64 (deleted)", "qemu"),
        ("/nix/store/abc-qemu-9.1/bin/.qemu-system-x86_64-wrapped", "qemu"),
        ("/opt/kata/bin/qemu-lite-system-x86_64", "qemu"),
        ("/opt/kata/bin/qemu-system-x86_64-snp-experimental", "qemu"),
        ("/usr/libexec/qemu-kvm", "qemu"),
        ("/usr/bin/kvm", "qemu"),
        ("cloud-hypervisor", "cloud-hypervisor"),
        ("/usr/local/bin/cloud-hypervisor-static", "cloud-hypervisor"),
        ("cloud-hypervisor-v44.0", "cloud-hypervisor"),
        ("/firecracker", "firecracker"),
        ("firecracker-v1.7.0-x86_64", "firecracker"),
        ("/usr/bin/crosvm", "crosvm"),
        ("", ""),
        ("/", ""),
        ("qemu-img", ""),
        ("qemu-storage-daemon", ""),
        ("qemu-system-", ""),
        ("firecrackers", ""),
        ("jailer", ""),
        ("libvirtd", ""),
        ("/home/kvm/bash", ""),
        ("cloud-hypervisor\nx", ""),
    ],
)
def test_programs(program: str, vmm: str) -> None:
    assert vmm_kind(program) == vmm


def test_another_program_declares_nothing() -> None:
    assert read_command_line("", ["python3", "-m", "4G"]) == Declaration()


@pytest.mark.parametrize(
    ("words", "name", "problems"),
    [
        (["--api-sock", "/run/firecracker.socket"], "", ()),
        (["--id", "551e7604-e35c-42b3-b825-416853441234", "--start-time-us", "1"], None, ()),
        (["--id", "anonymous-instance"], "", ()),
        (["--id=vm1"], "vm1", ()),
        (["--no-api", "--id", "a"], "a", ()),
        (["--id", "a", "--", "--id", "b"], "a", ()),
        (["--id"], "", ()),
        (["--config-file", "vm.json"], "", ("--config-file: the file 'vm.json' isn't read",)),
    ],
)
def test_firecracker(words: list[str], name: str | None, problems: tuple[str, ...]) -> None:
    declaration = read_command_line("firecracker", ["firecracker", *words])
    assert declaration == Declaration(
        vmm="firecracker",
        name=words[1] if name is None else name,
        one_node=True,
        problems=problems,
    )


@pytest.mark.parametrize(
    ("words", "memory", "name"),
    [
        (["run", "vmlinux"], 256, ""),
        (["run", "-m", "2048", "-c", "4", "vmlinux"], 2048, ""),
        (["run", "--mem", "size=512", "--name", "web", "vmlinux"], 512, "web"),
        (["--log-level", "debug", "run", "--mem=1024", "-s", "/run/vms/web.sock"], 1024, "web"),
        (["run", "--socket", "/run/vm/web/crosvm.sock"], 256, ""),
        (["run", "-p", "-m", "--mem", "300"], 300, ""),
        (["run", "--cfg", "vm.json"], None, ""),
        (["run", "-m", "much"], None, ""),
    ],
)
def test_crosvm(words: list[str], memory: int | None, name: str) -> None:
    declaration = read_command_line("crosvm", ["crosvm", *words])
    assert declaration.memory_bytes == (None if memory is None else memory << 20)
    assert (declaration.name, declaration.one_node) == (name, True)
    assert bool(declaration.problems) == (memory is None)
    assert not declaration.confidential


def test_a_protected_crosvm_is_confidential() -> None:
    assert read_command_line("crosvm", ["crosvm", "run", "--protected-vm", "k"]).confidential
