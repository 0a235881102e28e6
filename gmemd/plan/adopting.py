"""Which memory of a running VMM is taken for which of its spec's regions. Pure.

What a VMM's command line declares was matched with what it has mapped by `gmemd.plan.observed`. To
look at the wrong one of two guest nodes is a wrong figure; to place it is wrong memory. So where
only an order tells mappings apart, a second one has to agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gmemd.host.vms.model import Piece, PieceKind
from gmemd.plan.errors import AmbiguousError, Candidate, LayoutMismatchError
from gmemd.plan.observed import Extent, cut
from gmemd.plan.registering import NodeMatching, Offered
from gmemd.spec.model import Backend
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gmemd.host.model import Host
    from gmemd.plan.matching import Match
    from gmemd.plan.model import RegionPlan
    from gmemd.plan.observed import ObservedVm
    from gmemd.spec.declared import Declaration
    from gmemd.spec.model import RegionSpec, VmSpec

_WITH_MEMFD = (
    "run the VMM with memory that it has a descriptor of: memory-backend-memfd of QEMU, "
    "--memory shared=on of cloud-hypervisor"
)


@dataclass(frozen=True, slots=True)
class AdoptedRegion:
    """A range of a file that the VMM has open: ``plan.size_bytes`` from ``offset`` on.

    ``fd`` is the VMM's number of it, and ``inode`` (device's major, minor, and number; None where
    it isn't known) what must be behind it still. ``spec_index`` numbers the spec's regions of the
    guest node, ``plan.index`` the ranges. ``memdev`` is what the VMM calls it, empty if nothing.
    """

    plan: RegionPlan
    region: RegionSpec
    spec_index: int
    fd: int
    offset: int
    inode: tuple[int, int, int] | None
    memdev: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """Memory of a guest node that can't be taken, and why."""

    guest_node: int
    size_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Adoption:
    """What to take of a VMM, and what is left to it."""

    regions: tuple[AdoptedRegion, ...]
    left: tuple[Left, ...] = ()


def plan_adoption(vm: ObservedVm, spec: VmSpec, declaration: Declaration, host: Host) -> Adoption:
    """Say what is taken of a running VMM; raises LayoutMismatchError and AmbiguousError."""
    raise NotImplementedError
