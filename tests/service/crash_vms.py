"""The VMs of the crash tests: one for each way in which memory comes to a VMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tests.service import unit

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
CHURNED = "churned"
"""A VM whose memory is made, handed out and given back all the time."""


class Node(NamedTuple):
    """A guest node as a spec has it, and what the kernel is to keep for it."""

    mib: int
    policy: str
    host_nodes: tuple[int, ...]
    backend: str = "guest_memfd"

    def line(self, number: int) -> str:
        """The spec's line."""
        nodes = ", ".join(map(str, self.host_nodes))
        return (
            f"  - {{id: {number}, memory: {self.mib}MiB, policy: {self.policy}, "
            f"host_nodes: [{nodes}], backend: {self.backend}}}\n"
        )


@dataclass(frozen=True)
class Vm:
    """A VM of the scene; ``inline``: its spec comes with the call that acquires it."""

    name: str
    source: str
    nodes: tuple[Node, ...]
    more: str = ""
    inline: bool = False

    @property
    def spec(self) -> str:
        """Its spec as a file has it."""
        lines = "".join(node.line(number) for number, node in enumerate(self.nodes))
        head = f"version: 1\nvm: {self.name}\nsource: {self.source}\n"
        return f"{head}{self.more}guest_nodes:\n{lines}"

    def write(self) -> Path:
        """Make that its file."""
        path = unit.SPECS / f"{self.name}.yaml"
        path.write_text(self.spec)
        return path


ACQUIRED = Vm("acquired", "create", (Node(8, "bind", (2,)), Node(4, "interleave", (0, 1), "memfd")))
REGISTERED = Vm("registered", "register", (Node(8, "bind", (3,)), Node(4, "preferred", (1,))))
ADOPTED = Vm(
    "adopted",
    "adopt",
    (Node(32, "bind", (1,)),),
    more="match: {unit: crash-adopted.service}\n",
)
INLINE = Vm("inline", "create", (Node(4, "bind", (3,)),), inline=True)
KEPT = Vm("kept", "create", (Node(4, "bind", (2,)),), more="on_vmm_exit: keep\n")
CHURNING = Vm(CHURNED, "create", (Node(4, "bind", (0,)),))
VMS = (ACQUIRED, REGISTERED, ADOPTED, INLINE, KEPT)
