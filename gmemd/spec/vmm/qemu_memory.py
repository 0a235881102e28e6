"""QEMU's memory backends: the objects that a guest's memory is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.spec.declared import BackendKind, DeclaredBackend
from gmemd.spec.model import SMALL_PAGE, PolicyMode
from gmemd.spec.nodeset import HIGHEST_NODE
from gmemd.spec.vmm.qemu_options import read_size
from gmemd.spec.vmm.values import NotUnderstood, number_range, quoted, readable, switch

if TYPE_CHECKING:
    from gmemd.spec.vmm.qemu_options import OptionGroup
    from gmemd.spec.vmm.values import Problems

PREFIX = "memory-backend-"

_KINDS = {
    "ram": BackendKind.RAM,
    "memfd": BackendKind.MEMFD,
    "file": BackendKind.FILE,
    "shm": BackendKind.FILE,
}
_NO_GUEST_RAM = frozenset({"epc"})
_SHARED_UNLESS_TOLD = frozenset({"memfd", "shm"})
_SHM_DIRECTORY = "/dev/shm"  # noqa: S108  shm_open's, where QEMU's file has lost its name
_POLICIES = {
    "default": PolicyMode.DEFAULT,
    "preferred": PolicyMode.PREFERRED,
    "bind": PolicyMode.BIND,
    "interleave": PolicyMode.INTERLEAVE,
}


def is_backend(group: OptionGroup) -> bool:
    """Whether an object is memory that a guest may have as RAM."""
    kind = group.get("qom-type")
    return kind.startswith(PREFIX) and kind.removeprefix(PREFIX) not in _NO_GUEST_RAM


def read_backend(group: OptionGroup, problems: Problems) -> DeclaredBackend | None:
    """Read a memory backend that belongs to no guest node yet; None for one without a size.

    The size is in bytes, whole pages of 4 KiB, as QEMU rounds it up.
    """
    kind = group.get("qom-type").removeprefix(PREFIX)
    option = f"-object {PREFIX}{kind},id={group.get('id')}"
    try:
        size = in_pages(read_size(group.get("size")))
    except NotUnderstood as error:
        problems.add(option, error)
        return None
    if not size:
        problems.add(option, "has no size")
        return None
    policy, host_nodes = _read_policy(group, option, problems)
    shared = _read_switch(group, "share", option, problems)
    return DeclaredBackend(
        id=readable(group.get("id")),
        kind=_KINDS.get(kind, BackendKind.ANY),
        size_bytes=size,
        parts=((None, size),),
        policy=policy,
        host_nodes=host_nodes,
        shared=_default_share(kind) if shared is None else shared,
        page_size=_read_page_size(group, option, problems) if kind == "memfd" else None,
        path=_SHM_DIRECTORY if kind == "shm" else group.get("mem-path"),
    )


def in_pages(size_bytes: int, page_size: int = SMALL_PAGE) -> int:
    """The bytes of the whole pages that hold so many."""
    return -(-size_bytes // page_size) * page_size


def _default_share(kind: str) -> bool | None:
    return kind in _SHARED_UNLESS_TOLD if kind in _KINDS else None


def _read_policy(
    group: OptionGroup, option: str, problems: Problems
) -> tuple[PolicyMode, frozenset[int]]:
    """The policy and its host nodes; the default one where either can't be read.

    With several nodes QEMU turns ``preferred`` into preferred-many where the kernel has it; where
    it hasn't, the first of them is preferred.
    """
    name = group.get("policy", "default")
    nodes: set[int] = set()
    try:
        for text in group.every("host-nodes"):
            nodes.update(number_range(text, highest=HIGHEST_NODE))
    except NotUnderstood as error:
        problems.add(f"{option},host-nodes=", error)
        return PolicyMode.DEFAULT, frozenset()
    if name not in _POLICIES:
        problems.add(f"{option},policy=", f"{quoted(name)} is no policy that is known")
        return PolicyMode.DEFAULT, frozenset()
    policy = _POLICIES[name]
    if policy.needs_nodes != bool(nodes):
        which = "names no host nodes" if policy.needs_nodes else "takes no host nodes"
        problems.add(f"{option},policy={name}", which)
        return PolicyMode.DEFAULT, frozenset()
    if policy is PolicyMode.PREFERRED and len(nodes) > 1:
        policy = PolicyMode.PREFERRED_MANY
    return policy, frozenset(nodes)


def _read_page_size(group: OptionGroup, option: str, problems: Problems) -> int | None:
    """Bytes of the huge pages asked for, 0 for whatever the system has, None for none."""
    if not _read_switch(group, "hugetlb", option, problems):
        return None
    try:
        return read_size(group.get("hugetlbsize", "0"))
    except NotUnderstood as error:
        problems.add(f"{option},hugetlbsize=", error)
        return 0


def _read_switch(group: OptionGroup, key: str, option: str, problems: Problems) -> bool | None:
    if key not in group:
        return None
    try:
        return switch(group.get(key))
    except NotUnderstood as error:
        problems.add(f"{option},{key}=", error)
        return None
