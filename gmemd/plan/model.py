"""A concrete plan: what each region will be, how it is placed, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.spec.model import Backend, PolicyMode, VmSpec


class Strategy(StrEnum):
    """How a region's placement is brought about, best first."""

    INODE_POLICY = "inode-policy"
    PROXY_ALLOCATION = "proxy-allocation"
    UNMANAGED = "unmanaged"


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """One region as it will be made. Sizes in bytes; nodes are host node numbers.

    ``demand`` is what the region is expected to take from each host node; admission counts it.
    ``index`` numbers the regions of one guest node from 0.
    """

    vm: str
    guest_node: int
    index: int
    size_bytes: int
    backend: Backend
    page_size: int
    policy: PolicyMode
    host_nodes: frozenset[int]
    strategy: Strategy
    reason: str
    prefault: bool
    demand: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why admission says no: what is needed where, and what is there. Sizes in bytes.

    ``host_nodes`` are the nodes that together should have held it; ``page_size`` names the pool.
    """

    reason: str
    host_nodes: frozenset[int]
    page_size: int
    needed_bytes: int
    available_bytes: int
    committed_bytes: int
    reserve_bytes: int
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A VM's plan: its regions, what refuses it (nothing: admitted), and what should be known."""

    spec: VmSpec
    regions: tuple[RegionPlan, ...]
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def admitted(self) -> bool:
        """Whether nothing stands against provisioning it now."""
        return not self.refusals
