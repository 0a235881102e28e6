"""What is written down of VMs that have memory, for the daemon that comes next. Pure.

The state is lines of text: a header with the format's version, the boot that it is of, a sequence
number and a checksum of it all; then one VM to a line, as JSON. A line that can't be read
costs its VM's record alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence  # noqa: TC003  pydantic reads annotations
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import Field, ValidationError

from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.model import Backend, PolicyMode, Value, VmSpec

VERSION = 1
"""Of the format. Whatever changes in the records so that an older gmemd can't read it counts up."""

Inode = tuple[int, int]

_CHECKSUM_BYTES = 16


class PlanRecord(Value):
    """A RegionPlan; its VM is that of the record around it."""

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
    demand: Mapping[int, int]

    @classmethod
    def of(cls, plan: RegionPlan) -> Self:
        """The record of a plan."""
        return cls(**{name: getattr(plan, name) for name in cls.model_fields})

    def plan(self, vm: str) -> RegionPlan:
        """The plan of a record."""
        return RegionPlan(vm=vm, **{name: getattr(self, name) for name in type(self).model_fields})


class RegionRecord(Value):
    """A region: its file by inode, its plan, and what was achieved.

    ``verified_timestamp`` is when the oldest look at any of its pages was, in seconds since the
    epoch; None where there are pages that nobody looked at.
    """

    inode: Inode
    offset: int
    plan: PlanRecord
    strategy: Strategy
    reason: str
    notes: tuple[str, ...] = ()
    rebound: bool = False
    resident_before: int = 0
    id: int = 0
    spec_index: int | None = None
    verified_timestamp: float | None = None


class HolderRecord(Value):
    """The process that has a VM's memory, or has left it behind (not ``alive``).

    ``stored_as`` and ``opener_stored_as`` are the names of pidfds in the store; ``start_ticks``
    tells the process from a later one of the same pid (clock ticks since boot).
    """

    pid: int
    start_ticks: int
    since: float
    alive: bool
    vouched: bool
    program: str
    unit: str
    stored_as: str = ""
    opener: int = 0
    opener_stored_as: str = ""


class VmRecord(Value):
    """A VM with memory, or one that is left without: by what spec, of which file, in whose hands.

    ``state`` and ``since`` are as they were shown.
    ``release_wanted``: its memory is about to be given back.
    """

    vm: str
    spec: VmSpec
    path: str | None = None
    state: str
    since: float
    message: str = ""
    regions: tuple[RegionRecord, ...] = ()
    holder: HolderRecord | None = None
    dormant: bool = False
    release_wanted: bool = False
    prefaulted: bool = False
    next_region_id: int = 0
    left_alone: int = 0
    lost: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def spec_in_force(self) -> VmSpec:
        """The spec, with the file that it was of."""
        return self.spec.model_copy(update={"path": self.path})


class Header(Value):
    """The first line. ``unclaimed`` are names in the store that no record is known of."""

    gmemd_state: int
    boot_id: str
    sequence: int
    body_bytes: int = Field(ge=0)
    checksum: str = ""
    next_holder: int = 0
    unclaimed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """All that was written down. ``unreadable`` says what of it was not understood."""

    header: Header
    vms: tuple[VmRecord, ...] = ()
    unreadable: tuple[str, ...] = field(default=())


class StateError(Exception):
    """What was read is no state, or not all of one."""


class NewerStateError(StateError):
    """A state of a newer gmemd's; ``version`` is its format's."""

    def __init__(self, version: int) -> None:
        super().__init__(f"it is of format {version}, this gmemd knows {VERSION}")
        self.version = version


def encode_state(
    lines: Sequence[bytes],
    *,
    boot_id: str,
    sequence: int,
    next_holder: int = 0,
    unclaimed: Sequence[str] = (),
) -> bytes:
    """The state of VMs' lines, each as `encode_vm` gives it."""
    body = b"".join(lines)
    header = Header(
        gmemd_state=VERSION,
        boot_id=boot_id,
        sequence=sequence,
        body_bytes=len(body),
        next_holder=next_holder,
        unclaimed=tuple(unclaimed),
    )
    header = header.model_copy(update={"checksum": _checksum(header, body)})
    return header.model_dump_json().encode() + b"\n" + body


def encode_vm(record: VmRecord) -> bytes:
    """One line."""
    return record.model_dump_json(exclude_defaults=True).encode() + b"\n"


def decode_state(data: bytes) -> State:
    """The state that begins the bytes; what is behind it doesn't count.

    Raises NewerStateError, and StateError for what was cut off, damaged or never a state.
    """
    first, newline, rest = data.partition(b"\n")
    if not newline:
        raise StateError("it has no header")
    header = _header(first)
    body = rest[: header.body_bytes]
    if len(body) < header.body_bytes:
        raise StateError(f"it ends after {len(body)} of {header.body_bytes} bytes")
    if _checksum(header, body) != header.checksum:
        raise StateError("its checksum doesn't match")
    vms, unreadable = [], []
    for number, line in enumerate(body.splitlines(), 2):
        try:
            vms.append(VmRecord.model_validate_json(line))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            unreadable.append(f"line {number}: {where}: {error.errors()[0]['msg']}")
    return State(header, tuple(vms), tuple(unreadable))


def _checksum(header: Header, body: bytes) -> str:
    """Of both: a header may be written anew over one whose body is still there."""
    plain = header.model_copy(update={"checksum": ""}).model_dump_json().encode()
    return hashlib.blake2b(plain + b"\n" + body, digest_size=_CHECKSUM_BYTES).hexdigest()


def _header(line: bytes) -> Header:
    try:
        seen: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StateError("its header is no JSON") from error
    version = seen.get("gmemd_state") if isinstance(seen, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise StateError("its header has no version")
    if version > VERSION:
        raise NewerStateError(version)
    try:
        return Header.model_validate(seen)
    except ValidationError as error:
        raise StateError("its header is incomplete") from error
