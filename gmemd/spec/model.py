"""A VM spec as the rest of gmemd reads it: every default resolved, every form normalised."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

SMALL_PAGE = 4096
"""Bytes of a page of guest_memfd and of a memfd that isn't hugetlb."""


class Source(StrEnum):
    """Where a VM's memory comes from."""

    CREATE = "create"
    REGISTER = "register"
    ADOPT = "adopt"
    OBSERVE = "observe"


class Backend(StrEnum):
    """What a region's memory is. A spec asks for the first two; the others are only observed."""

    GUEST_MEMFD = "guest_memfd"
    MEMFD = "memfd"
    FILE = "file"
    """A named file: on tmpfs, hugetlbfs or a disk."""
    ANONYMOUS = "anonymous"
    """A VMM's private memory, private copies of a file's pages included."""


CREATABLE = (Backend.GUEST_MEMFD, Backend.MEMFD)
"""What a spec may ask for."""


class PolicyMode(StrEnum):
    """The kernel's memory policy modes."""

    DEFAULT = "default"
    LOCAL = "local"
    PREFERRED = "preferred"
    PREFERRED_MANY = "preferred-many"
    BIND = "bind"
    INTERLEAVE = "interleave"
    WEIGHTED_INTERLEAVE = "weighted-interleave"

    @property
    def needs_nodes(self) -> bool:
        """Whether the mode says nothing without host nodes."""
        return self not in {PolicyMode.DEFAULT, PolicyMode.LOCAL}


class OnVmmExit(StrEnum):
    """What becomes of a VM's memory when its VMM exits."""

    RELEASE = "release"
    KEEP = "keep"


class Value(BaseModel):
    """A frozen value without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Owner(Value):
    """Who may use the VM's memory, and see all of the VM, besides root: exactly one of these."""

    unit: str | None = None
    user: str | None = None
    group: str | None = None


class Match(Value):
    """How a running VMM is found: exactly one of these."""

    qemu_name: str | None = None
    unit: str | None = None
    cgroup: str | None = None
    pidfile: str | None = None


class RegionSpec(Value):
    """A piece of a guest node's memory. Sizes in bytes; nodes are host node numbers.

    No ``host_nodes``: nothing is expected of its placement. ``memdev`` is what the VMM calls it, of
    an adopted VM.
    """

    size_bytes: int
    host_nodes: frozenset[int] = frozenset()
    policy: PolicyMode = PolicyMode.DEFAULT
    backend: Backend = Backend.GUEST_MEMFD
    page_size: int = SMALL_PAGE
    prefault: bool = False
    memdev: str | None = None


class GuestNode(Value):
    """A NUMA node that the VM sees.

    ``distances`` has every guest node of the VM, itself at 10. ``regions`` is never empty: the
    short form is one region.
    """

    id: int
    vcpus: tuple[int, ...] = ()
    distances: Mapping[int, int] = Field(default_factory=dict)
    regions: tuple[RegionSpec, ...]

    @property
    def size_bytes(self) -> int:
        """The guest node's memory in bytes: the sum of its regions."""
        return sum(region.size_bytes for region in self.regions)


class VmSpec(Value):
    """What the operator asked for, for one VM. ``drift_tolerance`` is a ratio, 0.01 for 1 %."""

    version: int = 1
    vm: str
    source: Source = Source.CREATE
    confidential: bool = False
    on_vmm_exit: OnVmmExit = OnVmmExit.RELEASE
    cgroup: str = "none"
    owner: Owner | None = None
    match: Match | None = None
    drift_tolerance: float = 0.01
    guest_nodes: tuple[GuestNode, ...]
    path: str | None = Field(default=None, exclude=True, repr=False)

    @property
    def size_bytes(self) -> int:
        """The VM's memory in bytes."""
        return sum(node.size_bytes for node in self.guest_nodes)


_WAITING = {
    Source.REGISTER: "waits for its VMM to register its memory",
    Source.ADOPT: "waits for its VMM to run",
}


def waiting_reason(spec: VmSpec) -> str | None:
    """What a VM waits for before it has memory, for people; None where gmemd waits for nobody."""
    return _WAITING.get(spec.source)
