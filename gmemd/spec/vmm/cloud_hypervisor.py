"""cloud-hypervisor's command line: memory, its zones, and the guest nodes that they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gmemd.spec.declared import BackendKind, Declaration, DeclaredBackend
from gmemd.spec.model import PolicyMode
from gmemd.spec.nodeset import HIGHEST_NODE
from gmemd.spec.vmm.long_options import read_flags
from gmemd.spec.vmm.values import (
    LARGEST_BYTES,
    NotUnderstood,
    Problems,
    quoted,
    readable,
    switch,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_DEFAULT_ZONE = "mem0"
_DEFAULT_MEMORY = "512M"
_PAYLOADS = ("--kernel", "--firmware", "--igvm")
_LOW_RAM_BYTES = {"x86_64": 3 << 30, "aarch64": 0xFC00_0000 - 0x4000_0000}
"""How much of the guest's memory lies below the hole before 4 GiB (RAM_START and
MEM_32BIT_RESERVED_START in cloud-hypervisor's arch/src/*/layout.rs)."""

_SIZE = re.compile("([0-9]{1,20})([KMG]?)")
_HIGHEST_GUEST_NODE = (1 << 32) - 1
_HIGHEST_DISTANCE = 255
_LOCAL = 10
_GENERIC_NAMES = frozenset(
    {
        *("", "api", "ch", "ch-api", "chv", "clh", "clh-api", "cloud-hypervisor"),
        *("cloud-hypervisor-api", "hypervisor", "socket", "sock", "vmm"),
        *("run", "shm", "tmp", "var"),
    }
)


@dataclass(frozen=True, slots=True)
class _Fields:
    """``key=value,key=[value,value]`` of one option, its last values."""

    option: str
    values: Mapping[str, str]

    def get(self, key: str, default: str = "") -> str:
        return self.values.get(key) or default

    def size(self, key: str, default: str = "0") -> int:
        found = _SIZE.fullmatch(self.get(key, default).strip())
        size = int(found[1]) << (10 * " KMG".index(found[2] or " ")) if found else -1
        if not 0 <= size <= LARGEST_BYTES:
            raise NotUnderstood(f"{key}={quoted(self.get(key))} is no size")
        return size

    def switch(self, key: str) -> bool:
        return switch(self.get(key, "off"))

    def items(self, key: str) -> list[str]:
        text = self.get(key).strip().strip("[]")
        return [item.strip() for item in _split(text)] if text else []


def read_cloud_hypervisor(argv: Sequence[str], machine: str = "x86_64") -> Declaration:
    """Read what a cloud-hypervisor was told; sizes in bytes.

    One that was given neither memory nor anything to boot gets its VM through its API, and declares
    nothing. A guest without zones of its own is one node, in as many mappings as it may be: it
    declares no backends. ``machine`` tells where a zone is cut in two by the hole below 4 GiB.
    """
    problems = Problems()
    flags = read_flags(argv[1:], up_to=None)
    platform = _fields(flags, "--platform", problems)
    zones = _fields(flags, "--memory-zone", problems)
    memory = _fields(flags, "--memory", problems)
    nodes, distances = _read_numa(_fields(flags, "--numa", problems), problems)
    backends: list[DeclaredBackend] = []
    size: int | None = None
    if memory or zones or any(flag in flags for flag in _PAYLOADS):
        main = memory[-1] if memory else _Fields("--memory", {})
        backends = _read_zones(main, zones, problems)
        size = _memory_bytes(main, backends, zoned=bool(zones))
        if not zones and not nodes:
            backends = []
    owners = {zone: node for node, names in nodes.items() for zone in names}
    for name in owners.keys() - {backend.id for backend in backends}:
        problems.add("--numa memory_zones=", f"there is no zone {quoted(name)}")
    return Declaration(
        vmm="cloud-hypervisor",
        name=readable(_name(flags.get("--api-socket", []))),
        uuid=_uuid(platform),
        memory_bytes=size,
        one_node=len(nodes) <= 1,
        backends=tuple(_laid_out(backends, owners, machine, numa=bool(nodes))),
        distances=distances,
        confidential=_is_confidential(platform, problems),
        problems=problems.sentences(),
    )


def _fields(flags: Mapping[str, Sequence[str]], flag: str, problems: Problems) -> list[_Fields]:
    found = []
    for text in flags.get(flag, []):
        items = [item.partition("=") for item in _split(text.strip())]
        stray = next((key for key, assigned, _ in items if key and not assigned), None)
        if stray is not None:
            problems.add(flag, f"{quoted(stray)} has no value")
        values = {key: value.strip() for key, assigned, value in items if assigned}
        found.append(_Fields(f"{flag} {text}", values))
    return found


def _split(text: str) -> list[str]:
    """Split at commas that stand neither in brackets nor in quotes; drop the quotes."""
    items: list[str] = []
    start = depth = 0
    in_quotes = False
    for place, char in enumerate(text):
        if char == '"':
            in_quotes = not in_quotes
        elif char == "[":
            depth += 1
        elif char == "]":
            depth = max(depth - 1, 0)
        elif char == "," and not depth and not in_quotes:
            items.append(text[start:place])
            start = place + 1
    items.append(text[start:])
    return [item.replace('"', "") for item in items]


def _read_zones(
    memory: _Fields, zones: Sequence[_Fields], problems: Problems
) -> list[DeclaredBackend]:
    """The zones in the order in which they fill the guest's memory; one of all without any."""
    backends = []
    for zone in zones or [_Fields(memory.option, {"id": _DEFAULT_ZONE, **memory.values})]:
        try:
            backends.append(_read_zone(zone, _DEFAULT_MEMORY if not zones else "0"))
        except NotUnderstood as error:
            problems.add(zone.option, error)
    return [backend for backend in backends if backend.size_bytes]


def _read_zone(zone: _Fields, default_size: str) -> DeclaredBackend:
    size = zone.size("size", default_size)
    huge = zone.switch("hugepages")
    shared = zone.switch("shared")
    path = zone.get("file")
    node = zone.get("host_numa_node")
    host_nodes = frozenset([whole_number(node, highest=HIGHEST_NODE)] if node else [])
    without_path = BackendKind.MEMFD if shared or huge else BackendKind.ANY
    return DeclaredBackend(
        id=readable(zone.get("id")),
        kind=BackendKind.FILE if path else without_path,
        size_bytes=size,
        parts=((None, size),),
        policy=PolicyMode.BIND if host_nodes else PolicyMode.DEFAULT,
        host_nodes=host_nodes,
        shared=shared,
        page_size=zone.size("hugepage_size") if huge and not path else None,
        path=path,
    )


def _memory_bytes(
    memory: _Fields, backends: Iterable[DeclaredBackend], *, zoned: bool
) -> int | None:
    """The guest's memory at boot: the zones', else what ``--memory`` says."""
    if zoned:
        return sum(backend.size_bytes for backend in backends)
    try:
        return memory.size("size", _DEFAULT_MEMORY)
    except NotUnderstood:
        return None  # noted when it was read as a zone


def _laid_out(
    zones: Iterable[DeclaredBackend], owners: Mapping[str, int], machine: str, *, numa: bool
) -> Iterable[DeclaredBackend]:
    """Zones as they are mapped: one that reaches over the hole is two files, or a file twice.

    Anonymous memory isn't cut: the kernel joins its two mappings, or they lie side by side.
    """
    start = 0
    hole = _LOW_RAM_BYTES.get(machine)
    for zone in zones:
        node = owners.get(zone.id, None if numa else 0)
        low = hole - start if hole is not None else zone.size_bytes
        start += zone.size_bytes
        if 0 < low < zone.size_bytes and zone.kind is not BackendKind.ANY:
            high = zone.size_bytes - low
            yield replace(zone, size_bytes=low, parts=((node, low),))
            yield replace(zone, id=f"{zone.id} above 4 GiB", size_bytes=high, parts=((node, high),))
        else:
            yield replace(zone, parts=((node, zone.size_bytes),))


def _read_numa(
    options: Iterable[_Fields], problems: Problems
) -> tuple[dict[int, list[str]], dict[int, dict[int, int]]]:
    """Each guest node's zones by their ids, and its distances, itself at 10."""
    nodes: dict[int, list[str]] = {}
    distances: dict[int, dict[int, int]] = {}
    for option in options:
        try:
            node = whole_number(option.get("guest_numa_id"), highest=_HIGHEST_GUEST_NODE)
            nodes[node] = [readable(name) for name in option.items("memory_zones")]
            told = [item.partition("@") for item in option.items("distances")]
            mine = {
                whole_number(other, highest=_HIGHEST_GUEST_NODE): whole_number(
                    value, highest=_HIGHEST_DISTANCE
                )
                for other, _, value in told
            }
            if mine:
                distances[node] = {node: _LOCAL, **mine}
        except NotUnderstood as error:
            problems.add(option.option, error)
    return nodes, distances


def _name(sockets: Sequence[str]) -> str:
    """The API socket's name, else its directory's, unless it is one that any VM's may have."""
    if not sockets:
        return ""
    text = sockets[-1]
    fields = dict(item.partition("=")[::2] for item in _split(text))
    if "fd" in fields:
        return ""
    folder, _, name = fields.get("path", text).rpartition("/")
    stem = re.sub(r"\.(?:sock|socket)\Z", "", name)
    parent = folder.rpartition("/")[2]
    return next((found for found in (stem, parent) if found not in _GENERIC_NAMES), "")


def _uuid(platform: Iterable[_Fields]) -> str:
    told = [fields.get("uuid") or fields.get("system_uuid") for fields in platform]
    return readable(told[-1]).lower() if told else ""


def _is_confidential(platform: Iterable[_Fields], problems: Problems) -> bool:
    try:
        return any(fields.switch(key) for fields in platform for key in ("tdx", "sev_snp", "snp"))
    except NotUnderstood as error:
        problems.add("--platform", error)
        return False
