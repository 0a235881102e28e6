"""Host nodes as a policy's kernel code sees them: those with memory, as sysfs tells."""

from __future__ import annotations

from pathlib import Path

from gmemd.kernel.mempolicy import RELATIVE_NODES, MemPolicy


def nodes_with_memory(root: Path = Path("/")) -> frozenset[int]:
    """The online host nodes that have memory (N_MEMORY); a policy keeps no others."""
    text = (root / "sys/devices/system/node/has_memory").read_text().strip()
    nodes: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        nodes.update(range(int(first), int(last or first) + 1))
    return frozenset(nodes)


def usable_nodes(policy: MemPolicy, usable: frozenset[int]) -> frozenset[int]:
    """What remains of the policy's nodes where only ``usable`` can be had.

    The kernel's mpol_set_nodemask (mm/mempolicy.c): RELATIVE nodes fold onto the usable ones, the
    others are intersected; PREFERRED then takes the lowest.
    """
    if policy.flags & RELATIVE_NODES:
        ordered = sorted(usable)
        kept = frozenset(ordered[node % len(ordered)] for node in policy.nodes if ordered)
    else:
        kept = policy.nodes & usable
    if policy.mode == "preferred":
        return frozenset(sorted(kept)[:1])
    return kept
