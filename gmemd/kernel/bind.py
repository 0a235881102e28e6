"""``bind_range``: a memory policy on a file's range, set through its inode and verified.

The kernel has no call that sets a policy on a file, and mbind accepts and silently ignores or
narrows one in several cases. Here each of them has its own outcome.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from gmemd.kernel.descriptor import status_of
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, is_guest_memfd, is_hugetlb
from gmemd.kernel.mempolicy import (
    RELATIVE_NODES,
    STATIC_NODES,
    MemPolicy,
    allowed_mems,
    get_policy_at,
    mbind,
    set_home_node,
)
from gmemd.kernel.nodes import nodes_with_memory, usable_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping as MappingOf

_DEFAULT = MemPolicy("default")
_LOCAL = MemPolicy("local")


class BindOutcome(StrEnum):
    """What became of a policy."""

    APPLIED = "applied"
    NARROWED_OFFLINE = "narrowed-offline"
    NARROWED_CPUSET = "narrowed-cpuset"
    MOVABLE_ONLY = "movable-only"
    NOT_KEPT = "not-kept"
    HUGETLB = "hugetlb"
    UNMAPPABLE = "unmappable"


_REMEDIES: dict[BindOutcome, str] = {
    BindOutcome.APPLIED: "",
    BindOutcome.NARROWED_OFFLINE: "bring the node's memory online, or name other host nodes",
    BindOutcome.NARROWED_CPUSET: (
        "allow the nodes to gmemd (AllowedMemoryNodes= of its unit and slice, cpuset.mems)"
    ),
    BindOutcome.MOVABLE_ONLY: (
        "guest_memfd pages are unmovable: online the node's memory as online_kernel, "
        "use backend memfd, or name other host nodes"
    ),
    BindOutcome.NOT_KEPT: "run Linux 6.19 or later, or let gmemd prefault it (proxy-allocation)",
    BindOutcome.HUGETLB: "let gmemd prefault it whole (proxy-allocation)",
    BindOutcome.UNMAPPABLE: (
        "make the guest_memfd with the MMAP flag, or let gmemd prefault it (proxy-allocation)"
    ),
}

_WHY_DROPPED = {
    BindOutcome.NARROWED_OFFLINE: "offline or without memory",
    BindOutcome.NARROWED_CPUSET: "outside this process' cpuset",
    BindOutcome.MOVABLE_ONLY: "of movable memory only",
}


@dataclass(frozen=True, slots=True)
class BindResult:
    """What was asked for and what the kernel keeps, as read through another mapping.

    ``effective_nodes`` are the host nodes that pages can really come from (empty for default and
    local, and where the policy isn't kept); ``dropped`` says of each requested node that isn't
    among them why. The home node can't be read back: it is what the kernel accepted.
    """

    requested: MemPolicy
    achieved: MemPolicy | None
    outcome: BindOutcome
    effective_nodes: frozenset[int] = frozenset()
    detail: str = ""
    remedy: str = ""
    dropped: MappingOf[int, BindOutcome] = field(default_factory=dict)
    home_node: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the policy holds as requested."""
        return self.outcome is BindOutcome.APPLIED


def bind_range(
    fd: int,
    offset: int,
    length: int,
    policy: MemPolicy,
    *,
    home_node: int | None = None,
    with_memory: frozenset[int] | None = None,
    movable_only: frozenset[int] = frozenset(),
) -> BindResult:
    """Sets the policy of the file's range (bytes) for later allocations, and verifies it.

    ``with_memory`` are the online host nodes with memory (default: as sysfs says),
    ``movable_only`` those of them that have ZONE_MOVABLE only, which guest_memfd can't use.
    ``home_node`` goes with bind and preferred-many. Raises KernelError for what is wrong with the
    call itself (an unknown mode, no permission); what the kernel doesn't keep is an outcome.
    """
    if is_hugetlb(fd):
        return _refused(policy, BindOutcome.HUGETLB, "hugetlb keeps no policy on the inode")
    online = nodes_with_memory() if with_memory is None else with_memory
    allowed = allowed_mems()
    try:
        _set(fd, offset, length, policy, home_node)
    except KernelError as error:
        if error.call == "mmap" and error.errno == errno.ENODEV:
            return _refused(policy, BindOutcome.UNMAPPABLE, "the fd can't be mapped")
        no_node_left = policy.nodes and not usable_nodes(policy, online & allowed)
        if error.call == "mbind" and error.errno == errno.EINVAL and no_node_left:
            return _judged(policy, None, frozenset(), _dropped(policy.nodes, online))
        raise
    return _verified(
        fd,
        offset,
        length,
        policy,
        online=online,
        allowed=allowed,
        movable=movable_only,
        home_node=home_node,
    )


def verify_range(
    fd: int,
    offset: int,
    length: int,
    policy: MemPolicy,
    *,
    with_memory: frozenset[int] | None = None,
    movable_only: frozenset[int] = frozenset(),
) -> BindResult:
    """Say whether the file's range (bytes) has a policy, as `bind_range` would have set it.

    Nothing is set. NOT_KEPT also stands for another policy that is there. Raises KernelError.
    """
    if is_hugetlb(fd):
        return _refused(policy, BindOutcome.HUGETLB, "hugetlb keeps no policy on the inode")
    online = nodes_with_memory() if with_memory is None else with_memory
    try:
        return _verified(
            fd, offset, length, policy, online=online, allowed=allowed_mems(), movable=movable_only
        )
    except KernelError as error:
        if error.call == "mmap" and error.errno == errno.ENODEV:
            return _refused(policy, BindOutcome.UNMAPPABLE, "the fd can't be mapped")
        raise


def read_policy(fd: int, offset: int) -> MemPolicy | None:
    """The policy that the file's inode keeps at ``offset``; None where it can't be read.

    It is read through a fresh mapping, which has no policy of its own. Default also stands for
    a kernel that keeps none (``keeps_inode_policy``).
    """
    if is_hugetlb(fd):
        return None
    try:
        with Mapping(fd, offset - offset % PAGE_SIZE, PAGE_SIZE) as fresh:
            return get_policy_at(fresh.address)
    except KernelError as error:
        if error.call == "mmap" and error.errno == errno.ENODEV:
            return None
        raise


def keeps_inode_policy(fd: int) -> bool:
    """Whether the kernel keeps policies on this file's inode; False if it can't be mapped.

    Probed with two mappings on the page behind the file's end, where no page is, and reset.
    """
    if is_hugetlb(fd):
        return False
    behind = -(-status_of(fd).st_size // PAGE_SIZE) * PAGE_SIZE
    try:
        _set(fd, behind, PAGE_SIZE, _LOCAL, None)
    except KernelError as error:
        if error.call == "mmap" and error.errno == errno.ENODEV:
            return False
        raise
    kept = read_policy(fd, behind) == _LOCAL
    _set(fd, behind, PAGE_SIZE, _DEFAULT, None)
    return kept


def _verified(
    fd: int,
    offset: int,
    length: int,
    policy: MemPolicy,
    *,
    online: frozenset[int],
    allowed: frozenset[int],
    movable: frozenset[int],
    home_node: int | None = None,
) -> BindResult:
    """What a range's policy is, read through mappings of its own, against what it should be."""
    achieved = _read_range(fd, offset, length)
    if achieved is None or not _is_kept(policy, achieved):
        seen = "different policies over the range" if achieved is None else str(achieved)
        detail = f"mbind succeeded, but another mapping of the file has {seen}"
        return _refused(policy, BindOutcome.NOT_KEPT, detail, achieved)
    effective = achieved.nodes
    if achieved.flags & (STATIC_NODES | RELATIVE_NODES):
        effective = usable_nodes(achieved, online & allowed)
    dropped = {} if policy.flags & RELATIVE_NODES else _dropped(_missing(policy, effective), online)
    if movable and is_guest_memfd(fd):
        dropped |= dict.fromkeys(effective & movable, BindOutcome.MOVABLE_ONLY)
        effective -= movable
    return _judged(policy, achieved, effective, dropped, home_node)


def _set(fd: int, offset: int, length: int, policy: MemPolicy, home_node: int | None) -> None:
    """Sets through a fresh mapping: where a mapping's own last policy is equal, nothing happens.

    A fresh mapping's is default, so a default needs another one before it.
    """
    with Mapping(fd, offset, length) as fresh:
        if policy == _DEFAULT:
            mbind(fresh.address, length, _LOCAL)
        mbind(fresh.address, length, policy)
        if home_node is not None:
            set_home_node(fresh.address, length, home_node)


def _read_range(fd: int, offset: int, length: int) -> MemPolicy | None:
    """The policy of the range's first and last page; None where they differ."""
    first = read_policy(fd, offset)
    return first if read_policy(fd, offset + length - 1) == first else None


def _is_kept(policy: MemPolicy, achieved: MemPolicy) -> bool:
    """Whether what was read is what was asked for, narrower perhaps.

    The kernel turns PREFERRED without nodes into LOCAL (mpol_new).
    """
    if policy.mode == "preferred" and not policy.nodes:
        return achieved == _LOCAL
    same_kind = (achieved.mode, achieved.flags) == (policy.mode, policy.flags)
    return same_kind and achieved.nodes <= policy.nodes


def _missing(policy: MemPolicy, effective: frozenset[int]) -> frozenset[int]:
    """Requested nodes that should be in effect and aren't; PREFERRED takes its lowest alone."""
    wanted = frozenset(sorted(policy.nodes)[:1]) if policy.mode == "preferred" else policy.nodes
    return wanted - effective


def _dropped(missing: frozenset[int], online: frozenset[int]) -> dict[int, BindOutcome]:
    return {
        node: BindOutcome.NARROWED_CPUSET if node in online else BindOutcome.NARROWED_OFFLINE
        for node in missing
    }


def _refused(
    policy: MemPolicy, outcome: BindOutcome, detail: str, achieved: MemPolicy | None = None
) -> BindResult:
    return BindResult(policy, achieved, outcome, detail=detail, remedy=_REMEDIES[outcome])


def _judged(
    policy: MemPolicy,
    achieved: MemPolicy | None,
    effective: frozenset[int],
    dropped: dict[int, BindOutcome],
    home_node: int | None = None,
) -> BindResult:
    """The outcome that the dropped nodes make: offline before cpuset before movable-only."""
    outcome = next((kind for kind in _WHY_DROPPED if kind in dropped.values()), BindOutcome.APPLIED)
    reasons = [f"node {node} is {_WHY_DROPPED[why]}" for node, why in sorted(dropped.items())]
    if reasons and not effective:
        reasons.append("no requested node is left")
    return BindResult(
        requested=policy,
        achieved=achieved,
        outcome=outcome,
        effective_nodes=effective,
        detail="; ".join(reasons),
        remedy=_REMEDIES[outcome],
        dropped=dropped,
        home_node=home_node,
    )
