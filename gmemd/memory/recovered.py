"""Regions that an earlier gmemd had: their descriptors are checked, their policies read again.

Everything here blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.errors import GmemdError
from gmemd.kernel.bind import BindOutcome, verify_range
from gmemd.kernel.descriptor import duplicate
from gmemd.kernel.errors import KernelError
from gmemd.kernel.identity import NotMemoryError, identify_memory
from gmemd.kernel.mempolicy import MemPolicy
from gmemd.memory.binding import bind_region
from gmemd.memory.errors import ProvisionError
from gmemd.memory.regions import Region
from gmemd.plan.model import Strategy
from gmemd.spec.model import PolicyMode

if TYPE_CHECKING:
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan

CHANGED_MEANWHILE = "its policy was changed while gmemd was away, and was set again"


class LostRegionError(GmemdError):
    """What came back isn't the region that is missed."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A region as an earlier gmemd had it; see Region. ``inode`` is (st_dev, st_ino)."""

    plan: RegionPlan
    inode: tuple[int, int]
    offset: int
    strategy: Strategy
    reason: str
    notes: tuple[str, ...] = ()
    rebound: bool = False
    resident_before: int = 0
    id: int = 0


def recover_region(fd: int, earlier: Earlier, host: Host) -> Region:
    """Have a region again by a descriptor of its file, which stays the caller's.

    What device guest_memfds have was found out by the earlier gmemd: none has to be made for that.
    Its policy is read through a fresh mapping, and set again where it isn't the plan's; what went
    wrong with that is among its notes. Raises LostRegionError where the file is another one, and
    KernelError where nobody can tell.
    """
    plan = earlier.plan
    title = f"guest node {plan.guest_node}"
    try:
        file = identify_memory(fd, guest_memfd_device=earlier.inode[0])
    except NotMemoryError as error:
        raise LostRegionError(f"{title}: {error.message}") from error
    if file.inode != earlier.inode:
        raise LostRegionError(f"{title}: what came back is another file")
    if earlier.offset + plan.size_bytes > file.size_bytes or file.page_size != plan.page_size:
        raise LostRegionError(f"{title}: its file has {file.size_bytes} bytes by now")
    region = Region(
        plan=plan,
        fd=duplicate(fd),
        inode=file.inode,
        strategy=earlier.strategy,
        reason=earlier.reason,
        notes=list(earlier.notes),
        rebound=earlier.rebound,
        offset=earlier.offset,
        resident_before=earlier.resident_before,
        id=earlier.id,
    )
    _verify(region, host)
    return region


def _verify(region: Region, host: Host) -> None:
    """Find out what the inode keeps; where another policy came meanwhile, give it the plan's again.

    A region is had again whatever comes of that.
    """
    plan = region.plan
    if plan.strategy is not Strategy.INODE_POLICY or plan.policy is PolicyMode.DEFAULT:
        return
    nodes = frozenset() if plan.policy is PolicyMode.LOCAL else plan.host_nodes
    try:
        region.bind = verify_range(
            region.fd,
            region.offset,
            plan.size_bytes,
            MemPolicy(plan.policy.value, nodes),
            with_memory=frozenset(node.id for node in host.nodes if node.has_memory),
            movable_only=frozenset(node.id for node in host.nodes if node.movable_only),
        )
        changed = region.bind.outcome is BindOutcome.NOT_KEPT
        if changed and region.strategy is Strategy.INODE_POLICY:
            region.rebound = True
            _note(region, CHANGED_MEANWHILE)
            bind_region(region, host)
    except ProvisionError as error:
        _note(region, error.message)
    except KernelError as error:
        _note(region, f"its policy could not be read again: {error.message}")


def _note(region: Region, note: str) -> None:
    if note not in region.notes:
        region.notes.append(note)
