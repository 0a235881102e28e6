"""Memory policies of a mapping and of this task. Nodes are host node numbers, below 1024."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.kernel._kernel import ffi, lib
from gmemd.kernel.errors import invoke

if TYPE_CHECKING:
    from gmemd.kernel._kernel import CData

MAX_NODES = lib.GM_NODES
STATIC_NODES = lib.GM_MPOL_F_STATIC_NODES
"""The nodes are meant as numbered, whatever the cpuset."""
RELATIVE_NODES = lib.GM_MPOL_F_RELATIVE_NODES
"""The nodes are numbered within the cpuset."""
NUMA_BALANCING = lib.GM_MPOL_F_NUMA_BALANCING
"""Automatic balancing may move pages among the nodes."""

_MODES = (
    "default",
    "preferred",
    "bind",
    "interleave",
    "local",
    "preferred-many",
    "weighted-interleave",
)
_FLAGS = STATIC_NODES | RELATIVE_NODES | NUMA_BALANCING
_UNNAMED = "mode-"
_WORD_BITS = 64
_WORD_MASK = (1 << _WORD_BITS) - 1


@dataclass(frozen=True, slots=True)
class MemPolicy:
    """A policy: mode (the word of the specs; ``mode-N`` for one without), nodes and flags."""

    mode: str
    nodes: frozenset[int] = frozenset()
    flags: int = 0

    def __post_init__(self) -> None:
        _mode_number(self.mode)
        if any(not 0 <= node < MAX_NODES for node in self.nodes):
            raise ValueError(f"node numbers are 0 to {MAX_NODES - 1}, not {sorted(self.nodes)}")

    def __str__(self) -> str:
        named = [
            word
            for flag, word in (
                (STATIC_NODES, "static"),
                (RELATIVE_NODES, "relative"),
                (NUMA_BALANCING, "balancing"),
            )
            if self.flags & flag
        ]
        nodes = "{" + ",".join(map(str, sorted(self.nodes))) + "}" if self.nodes else ""
        return " ".join(filter(None, ["=".join([self.mode, *named]), nodes]))


def _mode_number(mode: str) -> int:
    if mode.startswith(_UNNAMED) and mode.removeprefix(_UNNAMED).isdecimal():
        return int(mode.removeprefix(_UNNAMED))
    if mode not in _MODES:
        raise ValueError(f"{mode!r} is no mode: {', '.join(_MODES)}")
    return _MODES.index(mode)


def _mode_word(number: int) -> str:
    return _MODES[number] if number < len(_MODES) else f"{_UNNAMED}{number}"


def encoded(policy: MemPolicy) -> tuple[int, list[int]]:
    """The mode with its flags, and the nodemask's 64-bit words, as set_mempolicy takes them.

    Without nodes there are no words: DEFAULT and LOCAL want NULL.
    """
    bits = sum(1 << node for node in policy.nodes)
    n_words = lib.GM_MASK_WORDS if bits else 0
    words = [bits >> _WORD_BITS * word & _WORD_MASK for word in range(n_words)]
    return _mode_number(policy.mode) | policy.flags, words


def _mask_of(policy: MemPolicy) -> CData:
    _, words = encoded(policy)
    return ffi.new("uint64_t[]", words) if words else ffi.NULL


def _get(address: int, flags: int, what: str) -> MemPolicy:
    mode = ffi.new("int *")
    mask = ffi.new("uint64_t[]", lib.GM_MASK_WORDS)
    invoke("get_mempolicy", lib.gm_get_mempolicy, address, flags, mode, mask, what=what)
    nodes = frozenset(
        word * _WORD_BITS + bit
        for word in range(lib.GM_MASK_WORDS)
        for bit in range(_WORD_BITS)
        if mask[word] >> bit & 1
    )
    number = int(mode[0])
    return MemPolicy(_mode_word(number & ~_FLAGS), nodes, number & _FLAGS)


def mbind(address: int, length: int, policy: MemPolicy) -> None:
    """Sets the policy of a mapped range. **Its success means nothing**: see ``bind_range``."""
    invoke(
        "mbind",
        lib.gm_mbind,
        address,
        length,
        _mode_number(policy.mode) | policy.flags,
        _mask_of(policy),
        what=f"setting {policy} on {length} bytes",
    )


def get_policy_at(address: int) -> MemPolicy:
    """The policy that holds at a mapped address; it touches no page."""
    return _get(address, lib.GM_MPOL_F_ADDR, "reading the policy of an address")


def get_task_policy() -> MemPolicy:
    """The calling thread's own policy."""
    return _get(0, 0, "reading this task's policy")


def set_task_policy(policy: MemPolicy) -> None:
    """Sets this thread's own policy, which its new children inherit."""
    invoke(
        "set_mempolicy",
        lib.gm_set_mempolicy,
        _mode_number(policy.mode) | policy.flags,
        _mask_of(policy),
        what=f"setting {policy} as this task's policy",
    )


def allowed_mems() -> frozenset[int]:
    """The host nodes that this thread's cpuset allows; may name nodes that aren't online."""
    return _get(0, lib.GM_MPOL_F_MEMS_ALLOWED, "reading the allowed nodes").nodes


def set_home_node(address: int, length: int, node: int) -> None:
    """The node that a bind or preferred-many policy starts from. It can't be read back."""
    invoke(
        "set_mempolicy_home_node",
        lib.gm_set_mempolicy_home_node,
        address,
        length,
        node,
        what=f"setting home node {node} on {length} bytes",
    )
