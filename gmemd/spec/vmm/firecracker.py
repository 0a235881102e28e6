"""Firecracker's command line; a guest's memory comes by its API or its config file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.spec.declared import Declaration
from gmemd.spec.vmm.long_options import read_flags
from gmemd.spec.vmm.values import Problems, quoted, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNNAMED = "anonymous-instance"


def read_firecracker(argv: Sequence[str]) -> Declaration:
    """Read the instance's id; a guest of Firecracker's has no NUMA nodes."""
    problems = Problems()
    flags = read_flags(argv[1:], take_any=("--id", "--config-file", "--api-sock"))
    name = flags["--id"][-1] if flags.get("--id") else ""
    if flags.get("--config-file"):
        problems.add("--config-file", f"the file {quoted(flags['--config-file'][-1])} isn't read")
    return Declaration(
        vmm="firecracker",
        name="" if name == _UNNAMED else readable(name),
        one_node=True,
        problems=problems.sentences(),
    )
