"""crosvm's command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.spec.declared import Declaration
from gmemd.spec.vmm.long_options import read_flags
from gmemd.spec.vmm.values import NotUnderstood, Problems, quoted, readable, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MIB = 1 << 20
_DEFAULT_MEMORY_BYTES = 256 * _MIB
_MOST_MIB = 1 << 40
_TAKE_ANY = ("-m", "--mem", "--name", "-s", "--socket", "-p", "--params", "--cfg", "-i", "--initrd")
_PROTECTED = ("--protected-vm", "--protected-vm-without-firmware", "--protected-vm-with-firmware")
_NAMELESS = frozenset({"", "crosvm", "control", "crosvm_control", "vm", "socket"})


def read_crosvm(argv: Sequence[str]) -> Declaration:
    """Read a ``crosvm run``; memory in bytes. A guest of crosvm's has no NUMA nodes."""
    problems = Problems()
    flags = read_flags(argv[1:], take_any=_TAKE_ANY)
    for path in flags.get("--cfg", []):
        problems.add("--cfg", f"the file {quoted(path)} isn't read")
    return Declaration(
        vmm="crosvm",
        name=readable(_name(flags)),
        memory_bytes=_memory_bytes(flags, problems),
        one_node=True,
        confidential=any(flag in flags for flag in _PROTECTED),
        problems=problems.sentences(),
    )


def _name(flags: Mapping[str, Sequence[str]]) -> str:
    """The VM's name, else its control socket's, unless that is one that any VM's may have."""
    names = flags.get("--name")
    if names:
        return names[-1]
    sockets = [*flags.get("-s", []), *flags.get("--socket", [])]
    stem = sockets[-1].rpartition("/")[2].rpartition(".")[0] if sockets else ""
    return "" if stem in _NAMELESS else stem


def _memory_bytes(flags: Mapping[str, Sequence[str]], problems: Problems) -> int | None:
    """``--mem 2048`` or ``--mem size=2048``, in MiB; None where it isn't told or understood."""
    told = [*flags.get("-m", []), *flags.get("--mem", [])]
    if not told:
        return None if "--cfg" in flags else _DEFAULT_MEMORY_BYTES
    sizes = [
        item.removeprefix("size=")
        for place, item in enumerate(told[-1].split(","))
        if item.startswith("size=") or (place == 0 and "=" not in item)
    ]
    if not sizes:
        return None if "--cfg" in flags else _DEFAULT_MEMORY_BYTES
    try:
        return whole_number(sizes[-1], highest=_MOST_MIB) * _MIB
    except NotUnderstood as error:
        problems.add("--mem", error)
        return None
