"""QEMU's command line, as libvirt, Proxmox, Nova and people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.spec.declared import BackendKind, Declaration, DeclaredBackend
from gmemd.spec.vmm.qemu_memory import in_pages, is_backend, read_backend
from gmemd.spec.vmm.qemu_numa import HIGHEST_GUEST_NODE, read_numa, split_legacy
from gmemd.spec.vmm.qemu_options import (
    OptionGroup,
    merge_groups,
    read_group,
    read_options,
    read_size,
)
from gmemd.spec.vmm.values import NotUnderstood, Problems, quoted, readable, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gmemd.spec.vmm.qemu_numa import NumaNode

_MIB = 1 << 20
_DEFAULT_MEMORY_BYTES = 128 * _MIB
_MEMORY_GRAIN_BYTES = 8192  # what -m is rounded up to

_FIRST_KEYS = {
    "device": "driver",
    "m": "size",
    "machine": "type",
    "name": "guest",
    "object": "qom-type",
    "smbios": "",
}
_DIMMS = re.compile(r"pc-dimm|nvdimm|virtio-(?:mem|pmem)(?:-.*)?")
_CONFIDENTIAL = frozenset(
    {"sev-guest", "sev-snp-guest", "tdx-guest", "pef-guest", "s390-pv-guest", "rme-guest"}
)
_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PROGRAM = re.compile(r".*qemu(?:-[a-z]+)*-system-([a-z0-9_]+)")
_DEFAULT_RAM_IDS = {
    "aarch64": "mach-virt.ram",
    "arm": "mach-virt.ram",
    "loongarch64": "loongarch.ram",
    "ppc64": "ppc_spapr.ram",
    "riscv64": "riscv_virt_board.ram",
    "s390x": "s390.ram",
}


@dataclass(frozen=True, slots=True)
class _Words:
    """The options that matter: values by the option's name, ``M`` under ``machine``."""

    values: Mapping[str, Sequence[str]]

    def every(self, name: str) -> Sequence[str]:
        return self.values.get(name, ())

    def last(self, name: str) -> str:
        return self.values[name][-1] if self.values.get(name) else ""

    def groups(self, name: str, problems: Problems) -> list[OptionGroup]:
        groups = []
        for value in self.every(name):
            try:
                groups.append(read_group(value, _FIRST_KEYS[name]))
            except NotUnderstood as error:
                problems.add(f"-{name}", error)
        return groups


def read_qemu(argv: Sequence[str]) -> Declaration:
    """Read what a QEMU was told; sizes in bytes. Backends are in the order QEMU makes them in.

    That order is the command line's, and memory without a backend of its own is made last, when
    the machine is: tried with QEMU 7.2.
    """
    problems = Problems()
    words = _sort(argv)
    _note_unread(words, problems)
    machine = merge_groups(words.groups("machine", problems))
    objects = words.groups("object", problems)
    nodes, distances = read_numa(words.every("numa"), problems)
    found = [read_backend(group, problems) for group in objects if is_backend(group)]
    declared = [backend for backend in found if backend is not None]
    owners = _owners(machine, nodes, words.groups("device", problems), declared, problems)
    backends = [
        replace(backend, parts=((owners[backend.id], backend.size_bytes),))
        if backend.id in owners
        else backend
        for backend in declared
    ]
    memory = _memory_bytes(words, machine, backends, problems)
    if memory is not None and not _has_memdev(machine, nodes):
        parts = split_legacy(nodes, memory, problems)
        backends.append(_default_ram(argv, words, machine, memory, parts))
    guest_nodes = {node.id for node in nodes}
    guest_nodes |= {node for backend in backends for node, _ in backend.parts if node is not None}
    return Declaration(
        vmm="qemu",
        name=readable(merge_groups(words.groups("name", problems)).get("guest")),
        uuid=_read_uuid(words, problems),
        memory_bytes=memory,
        one_node=len(guest_nodes) <= 1 and not (memory is None and words.every("readconfig")),
        backends=tuple(backends),
        distances=distances,
        confidential=_is_confidential(machine, objects),
        problems=problems.sentences(),
    )


def _sort(argv: Sequence[str]) -> _Words:
    values: dict[str, list[str]] = {}
    for option in read_options(argv):
        name = "machine" if option.name == "M" else option.name
        values.setdefault(name, []).append(option.value)
    return _Words(values)


def _note_unread(words: _Words, problems: Problems) -> None:
    """Say what else may declare memory: other files, and what is told after the start."""
    for value in words.every("readconfig"):
        problems.add("-readconfig", f"the file {quoted(value)} isn't read")
    for word in words.every(""):
        if word.startswith("@"):
            problems.add(word[:1], f"the file {quoted(word[1:])} isn't read")
    if "preconfig" in words.values:
        problems.add("-preconfig", "NUMA nodes may have been declared through QMP instead")


def _memory_bytes(
    words: _Words, machine: OptionGroup, backends: Sequence[DeclaredBackend], problems: Problems
) -> int | None:
    """Memory that isn't in DIMMS; None where it isn't told, or isn't understood."""
    if machine.get("type") == "none":
        return None
    told = merge_groups(words.groups("m", problems)).get("size")
    option, unit = ("-m", _MIB) if told else ("-machine memory.size=", 1)
    told = told or machine.get("memory.size")
    try:
        size = read_size(told, unit=unit) if told else 0
    except NotUnderstood as error:
        problems.add(option, error)
        return None
    if size:
        return in_pages(size, _MEMORY_GRAIN_BYTES)
    if "memory-backend" in machine:
        name = readable(machine.get("memory-backend"))
        return next((backend.size_bytes for backend in backends if backend.id == name), None)
    return None if words.every("readconfig") and not told else _DEFAULT_MEMORY_BYTES


def _has_memdev(machine: OptionGroup, nodes: Iterable[NumaNode]) -> bool:
    return "memory-backend" in machine or any(node.memdev for node in nodes)


def _owners(
    machine: OptionGroup,
    nodes: Iterable[NumaNode],
    devices: Iterable[OptionGroup],
    backends: Iterable[DeclaredBackend],
    problems: Problems,
) -> dict[str, int]:
    """The guest node of each backend that is a guest's RAM, by the backend's id."""
    ids = {backend.id for backend in backends}
    owners: dict[str, int] = {}

    def give(name: str, node: int, option: str) -> None:
        if readable(name) in ids:
            owners[readable(name)] = node
        else:
            problems.add(option, f"there is no memory backend {quoted(name)}")

    if "memory-backend" in machine:
        give(machine.get("memory-backend"), 0, "-machine memory-backend=")
    for node in nodes:
        if node.memdev:
            give(node.memdev, node.id, f"-numa node,nodeid={node.id},memdev=")
    for device in devices:
        driver = device.get("driver")
        if _DIMMS.fullmatch(driver) and "memdev" in device:
            try:
                number = whole_number(device.get("node", "0"), highest=HIGHEST_GUEST_NODE)
            except NotUnderstood as error:
                problems.add(f"-device {driver},node=", error)
            else:
                give(device.get("memdev"), number, f"-device {driver},memdev=")
    return owners


def _default_ram(
    argv: Sequence[str],
    words: _Words,
    machine: OptionGroup,
    size: int,
    parts: tuple[tuple[int | None, int], ...],
) -> DeclaredBackend:
    """The one block that QEMU makes by itself, under the name that it has there."""
    program = _PROGRAM.match(argv[0]) if argv else None
    name = _DEFAULT_RAM_IDS.get(program[1] if program else "", "pc.ram")
    path = words.last("mem-path")
    return DeclaredBackend(
        id="microvm.ram" if machine.get("type") == "microvm" else name,
        kind=BackendKind.FILE if path else BackendKind.RAM,
        size_bytes=size,
        parts=parts,
        shared=False,
        path=path,
    )


def _read_uuid(words: _Words, problems: Problems) -> str:
    """The VM's UUID in lower case: QEMU's own, else that of its SMBIOS tables."""
    smbios = [group for group in words.groups("smbios", problems) if group.get("type") == "1"]
    for option, text in (
        ("-uuid", words.last("uuid")),
        ("-smbios type=1,uuid=", merge_groups(smbios).get("uuid")),
    ):
        if _UUID.fullmatch(text):
            return text.lower()
        if text:
            problems.add(option, f"{quoted(text)} is no UUID")
    return ""


def _is_confidential(machine: OptionGroup, objects: Iterable[OptionGroup]) -> bool:
    told = "confidential-guest-support" in machine or "memory-encryption" in machine
    return told or any(group.get("qom-type") in _CONFIDENTIAL for group in objects)
