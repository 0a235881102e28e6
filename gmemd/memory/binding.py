"""The policy of a region: given to its inode, and what follows where the kernel keeps none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmemd.kernel.bind import BindOutcome, bind_range
from gmemd.kernel.errors import KernelError
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.kernel.procfs.text import ProcfsError
from gmemd.memory.errors import ProvisionCancelledError, ProvisionError
from gmemd.plan.model import Strategy
from gmemd.spec.model import PolicyMode

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from gmemd.host.model import Host
    from gmemd.memory.regions import Region

PEER = "peer"
_PREFAULTED_LATER = "; prefaulted when its VMM acquires it (cgroup: peer)"
_CHANGED_LATER = "the policy changed after allocation: pages stay where they are"
_NOT_KEPT = frozenset({BindOutcome.NOT_KEPT, BindOutcome.HUGETLB, BindOutcome.UNMAPPABLE})
_NO_NODE_LEFT = frozenset(
    {BindOutcome.NARROWED_OFFLINE, BindOutcome.NARROWED_CPUSET, BindOutcome.MOVABLE_ONLY}
)


def bind_region(region: Region, host: Host) -> None:
    """Give the inode its policy, where the plan has one to give and the kernel would keep it.

    Raises ProvisionError where no node is left of those that were asked for.
    """
    plan = region.plan
    if plan.strategy is not Strategy.INODE_POLICY or plan.policy is PolicyMode.DEFAULT:
        return
    nodes = frozenset() if plan.policy is PolicyMode.LOCAL else plan.host_nodes
    region.bind = bind_range(
        region.fd,
        region.offset,
        plan.size_bytes,
        MemPolicy(plan.policy.value, nodes),
        with_memory=frozenset(node.id for node in host.nodes if node.has_memory),
        movable_only=frozenset(node.id for node in host.nodes if node.movable_only),
    )
    if region.bind.outcome in _NO_NODE_LEFT and not region.bind.effective_nodes:
        raise ProvisionError(
            f"{plan.vm}: guest node {plan.guest_node}: {region.bind.detail}",
            reason="policy",
            host_node=min(plan.host_nodes, default=None),
            needed_bytes=plan.size_bytes,
            hint=region.bind.remedy or None,
        )


def unbind_region(region: Region) -> None:
    """Take the inode's policy away, so that a prefault helper's own rules."""
    bind_range(region.fd, region.offset, region.plan.size_bytes, MemPolicy("default"))


def is_local(region: Region) -> bool:
    """Whether its policy is ``local``, which must not rule its prefault.

    The helper runs beside the memory where that has CPUs, and elsewhere where it has none.
    """
    return region.plan.policy is PolicyMode.LOCAL


def settle_strategy(region: Region, *, prefaulted_later: bool = False) -> None:
    """Say what places the pages where the kernel didn't keep the policy: the helper, or nothing."""
    plan = region.plan
    if region.bind is not None and region.bind.outcome in _NOT_KEPT:
        region.strategy = Strategy.PROXY_ALLOCATION
        region.reason = region.bind.detail
    if prefaulted_later and plan.prefault:
        region.reason += _PREFAULTED_LATER
    elif region.strategy is Strategy.PROXY_ALLOCATION and not plan.prefault:
        region.strategy = Strategy.UNMANAGED
        region.reason += "; without `prefault: true` nothing places its pages"


def say_prefaulted(region: Region) -> None:
    """What was still to be done when its strategy was settled is done."""
    region.reason = region.reason.removesuffix(_PREFAULTED_LATER)


def note_changed_later(region: Region) -> None:
    """Say that a new policy came too late, once."""
    if _CHANGED_LATER not in region.notes:
        region.notes.append(_CHANGED_LATER)


def stop_if(cancel: threading.Event, vm: str) -> None:
    """Raise ProvisionCancelledError once ``cancel`` is set."""
    if cancel.is_set():
        raise ProvisionCancelledError(vm)


@contextmanager
def typed_errors(vm: str) -> Iterator[None]:
    """What the kernel refused, or told wrong, as ProvisionErrors of the VM."""
    try:
        yield
    except (KernelError, ProcfsError) as error:
        raise ProvisionError(
            f"{vm}: {error.message}", reason="system-call", hint=error.hint
        ) from error
