"""All kinds of text: how one is made, and what reads it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gmemd.kernel.procfs.maps import parse_maps
from gmemd.kernel.procfs.meminfo import parse_meminfo
from gmemd.kernel.procfs.numa_maps import parse_numa_maps
from gmemd.kernel.procfs.numa_stat import parse_hugetlb_numa_stat, parse_memory_numa_stat
from gmemd.kernel.procfs.text import ProcfsError, parse_id_list, parse_number
from gmemd.kernel.procfs.zoneinfo import parse_zoneinfo
from gmemd.spec import nodeset, scalars
from gmemd.spec.problems import FieldError, FieldErrors
from gmemd.spec.sizes import exact_size, format_size, parse_size
from gmemd.spec.vmm.reading import read_command_line
from tests.fuzz import checking, texts, trees, yamls
from tests.fuzz.checking import require
from tests.fuzz.running import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SPEC = "vm-spec"
OF_SEVERAL_FILES = frozenset({"process", "host", "web"})


def _nodeset(text: str) -> None:
    nodes = nodeset.parse_nodeset(text)
    spelled = nodeset.format_nodeset(nodes)
    require(nodeset.parse_nodeset(spelled) == nodes, f"spelled {spelled!r} it is another set")


def _size(text: str) -> None:
    size = parse_size(text)
    require(format_size(size), "no spelling")
    if size % 1024 == 0:
        require(parse_size(exact_size(size)) == size, f"spelled {exact_size(size)} it is another")


def _words(text: str) -> None:
    """All that read a word; each takes it or refuses it."""
    readers = (
        *(scalars.parse_vm_name, scalars.parse_user, scalars.parse_path, scalars.parse_cgroup),
        *(scalars.parse_boolean, scalars.parse_sample_pages, scalars.parse_jobs),
        partial(scalars.parse_distances, {text: text}, 1023),
    )
    for reader in readers:
        try:
            reader(text) if not isinstance(reader, partial) else reader()
        except (FieldError, FieldErrors):
            continue
    scalars.did_you_mean(text, ("bind", "memory", "host_nodes"))


def _ratios(text: str) -> None:
    for reader in (scalars.parse_margin, scalars.parse_confidence, scalars.parse_cpu_share):
        try:
            require(0 < reader(text) <= 1, "no ratio")
        except FieldError:
            continue
    require(0 <= scalars.parse_percent(text) <= 1, "no ratio")


def _command_line(data: bytes) -> bool:
    """Never an error: what isn't understood is one of the declaration's problems."""
    argv = texts.argv_of(data)
    understood = True
    for vmm in ("qemu", "cloud-hypervisor", "firecracker", "crosvm"):
        declared = read_command_line(vmm, argv)
        for text in (declared.name, declared.uuid, *(one.id for one in declared.backends)):
            text.encode()
        for problem in declared.problems:
            require(problem.isprintable(), f"not printable: {problem!r}")
        for backend in declared.backends:
            require(backend.size_bytes > 0, "a backend of nothing")
            require(
                sum(size for _, size in backend.parts) == backend.size_bytes,
                "parts of another size",
            )
        understood &= not declared.problems
    return understood


def _kind(
    name: str,
    parse: Callable[[str], object],
    beginnings: Sequence[bytes],
    words: Sequence[bytes],
    *errors: type[Exception],
) -> Kind:
    return Kind(name, texts.damaged(beginnings, words), checking.text(parse, *errors))


KINDS = (
    Kind(SPEC, yamls.vm_spec, checking.vm_spec),
    Kind("config", yamls.config, checking.config),
    Kind("web", yamls.web, trees.check_web),
    _kind("nodeset", _nodeset, texts.NODESETS, texts.NODESET_WORDS, FieldError),
    _kind("vcpus", nodeset.parse_vcpus, texts.NODESETS, texts.NODESET_WORDS, FieldError),
    _kind("size", _size, texts.SIZES, texts.SIZE_WORDS, FieldError),
    _kind("ratio", _ratios, texts.RATIOS, texts.UNIT_WORDS, FieldError),
    _kind("duration", scalars.parse_duration, texts.DURATIONS, texts.UNIT_WORDS, FieldError),
    _kind("address", scalars.parse_address, texts.ADDRESSES, (b":", b"[", b"]", b"."), FieldError),
    _kind("word", _words, texts.NAMES, (b".", b"-", b"/", b"..")),
    _kind("maps", parse_maps, texts.MAPS, texts.MAPS_WORDS, ProcfsError),
    _kind("numa-maps", parse_numa_maps, texts.NUMA_MAPS, texts.NUMA_MAPS_WORDS, ProcfsError),
    _kind("zoneinfo", parse_zoneinfo, texts.ZONEINFOS, texts.ZONEINFO_WORDS, ProcfsError),
    _kind("meminfo", parse_meminfo, texts.MEMINFOS, (b" kB", b":", b"Node "), ProcfsError),
    _kind(
        "numa-stat", parse_memory_numa_stat, texts.NUMA_STATS, texts.NUMA_STAT_WORDS, ProcfsError
    ),
    _kind(
        "hugetlb-stat",
        parse_hugetlb_numa_stat,
        texts.NUMA_STATS,
        texts.NUMA_STAT_WORDS,
        ProcfsError,
    ),
    _kind(
        "id-list",
        lambda text: parse_id_list(text, "f"),
        texts.NODESETS,
        texts.NODESET_WORDS,
        ProcfsError,
    ),
    _kind("number", lambda text: parse_number(text, "f"), (b"0", b"4096\n"), (b" ",), ProcfsError),
    Kind(
        "command-line", texts.damaged(texts.COMMAND_LINES, texts.COMMAND_LINE_WORDS), _command_line
    ),
    Kind("process", trees.process, trees.check_process),
    Kind("host", trees.host, trees.check_host),
)
BY_NAME = {kind.name: kind for kind in KINDS}
