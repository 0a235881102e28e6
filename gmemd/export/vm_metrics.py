"""What the metrics tell of each VM, as lines of the exposition formats.

A host with hundreds of VMs has tens of thousands of these samples, so they don't pass through
prometheus-client one by one: a VM's lines are made once for each status that it has. They are the
same in all formats, as are gauges and infos. Labels never carry a pid, an address or a nodeset.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client.utils import floatToGoString

from gmemd.export.snapshot import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from gmemd.drift.model import GuestNodeDrift
    from gmemd.export.snapshot import VmStatus


@dataclass(frozen=True, slots=True)
class VmFamily:
    """A family of samples that VMs have, of one name; an info's ends in ``_info``."""

    name: str
    text: str

    @property
    def is_info(self) -> bool:
        """Whether its samples are 1, and tell by their labels."""
        return self.name.endswith("_info")


_DRIFT_GAUGES: tuple[tuple[VmFamily, Callable[[GuestNodeDrift], float | None]], ...] = (
    (
        VmFamily(
            "gmemd_guest_node_resident_bytes", "Memory of the guest node that exists on the host."
        ),
        lambda drift: drift.resident_bytes,
    ),
    (
        VmFamily(
            "gmemd_guest_node_misplaced_bytes",
            "Resident memory on host nodes that the spec does not allow.",
        ),
        lambda drift: drift.misplaced_bytes,
    ),
    (
        VmFamily(
            "gmemd_guest_node_unknown_bytes",
            "Resident memory whose host node was not or can not be seen.",
        ),
        lambda drift: drift.unknown_bytes,
    ),
    (
        VmFamily(
            "gmemd_guest_node_drift_ratio",
            "Misplaced share of the memory seen; absent when nothing was seen or is declared.",
        ),
        lambda drift: drift.drift_ratio,
    ),
    (
        VmFamily(
            "gmemd_guest_node_drift_lower_ratio",
            "Lower end of the drift's interval; equal to the upper one after an exact scan.",
        ),
        lambda drift: drift.drift_lower_ratio,
    ),
    (
        VmFamily("gmemd_guest_node_drift_upper_ratio", "Upper end of the drift's interval."),
        lambda drift: drift.drift_upper_ratio,
    ),
    (
        VmFamily("gmemd_guest_node_drift_tolerance_ratio", "Drift that the spec tolerates."),
        lambda drift: drift.tolerance_ratio,
    ),
    (
        VmFamily(
            "gmemd_guest_node_share_error_ratio",
            "Largest distance of a host node's share from its weight (interleave modes).",
        ),
        lambda drift: drift.share_error_ratio,
    ),
    (
        VmFamily(
            "gmemd_guest_node_policy_match",
            "Whether the kernel's policy is the spec's; absent when it can not be read.",
        ),
        lambda drift: drift.policy_match,
    ),
)

FAMILIES = (
    VmFamily("gmemd_vm_info", "A VM that gmemd knows."),
    VmFamily("gmemd_vm_state", "1 for the state that the VM is in."),
    VmFamily("gmemd_vm_spec_error", "Whether the newest version of the VM's spec file is broken."),
    VmFamily(
        "gmemd_audit_last_success_timestamp_seconds", "When the VM's last successful audit ended."
    ),
    VmFamily(
        "gmemd_vm_memory_unknown",
        "1 for a running VM of which some memory was not looked at, with the reason.",
    ),
    VmFamily(
        "gmemd_vm_unmatched_bytes",
        "Size of a running VM's memory that matches nothing it declares.",
    ),
    VmFamily(
        "gmemd_guest_node_info",
        "How a guest node's memory is made and placed; one series per way.",
    ),
    VmFamily("gmemd_guest_node_size_bytes", "Size of the guest node."),
    VmFamily(
        "gmemd_guest_node_memory_bytes",
        "Resident memory of the guest node that was seen on the host node.",
    ),
    VmFamily(
        "gmemd_guest_node_host_node_allowed",
        "Whether the spec allows the guest node's memory on the host node.",
    ),
    VmFamily(
        "gmemd_guest_node_verified_timestamp_seconds",
        "Since when every page of the guest node was looked at; absent until all were.",
    ),
    *(family for family, _ in _DRIFT_GAUGES),
)


_STATES = tuple(str(state) for state in VmState)


class _Lines:
    """The lines of one VM, by family."""

    def __init__(self) -> None:
        self.of: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, name: str, labels: str, value: float = 1.0) -> None:
        """Write a sample; ``labels`` as `key="value",…`, in the order of their names."""
        self.of[name].append(f"{name}{{{labels}}} {_number(value)}\n")

    def add_all(self, name: str, labels: Iterable[str], values: Iterable[float]) -> None:
        """Write one sample for each of the labels."""
        self.of[name] += [
            f"{name}{{{each}}} {_number(value)}\n"
            for each, value in zip(labels, values, strict=True)
        ]


def lines_of(vm: VmStatus, with_memory: Collection[int]) -> tuple[str, ...]:
    """The lines of one VM, for each of FAMILIES; ``with_memory`` are the host nodes that have."""
    lines = _Lines()
    _add_vm(lines, vm)
    for guest_node in vm.guest_nodes:
        labels = f'guest_node="{guest_node}",vm="{escaped(vm.vm)}"'
        lines.add("gmemd_guest_node_size_bytes", labels, vm.size_bytes_of(guest_node))
        for way in _ways(vm, guest_node):
            lines.add("gmemd_guest_node_info", way)
        verified = vm.verified_timestamp_of(guest_node)
        if verified is not None:
            lines.add("gmemd_guest_node_verified_timestamp_seconds", labels, verified)
    for drift in vm.drift.guest_nodes if vm.drift is not None else ():
        _add_drift(lines, vm.vm, drift, with_memory)
    return tuple("".join(lines.of[family.name]) for family in FAMILIES)


def escaped(value: str) -> str:
    """A label's value as it stands between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


_as_text: Callable[[float], str] = floatToGoString
_number = lru_cache(maxsize=4096)(_as_text)


def _add_vm(lines: _Lines, vm: VmStatus) -> None:
    label = f'vm="{escaped(vm.vm)}"'
    if vm.running is not None:
        lines.add("gmemd_vm_unmatched_bytes", label, vm.running.unmatched_bytes)
        if vm.running.unknown:
            reason = escaped(vm.running.unknown)
            lines.add("gmemd_vm_memory_unknown", f'reason="{reason}",{label}')
    if vm.source is not None:
        lines.add("gmemd_vm_info", f'source="{vm.source}",uuid="{escaped(vm.uuid)}",{label}')
    states = [f'state="{possible}",{label}' for possible in _STATES]
    lines.add_all("gmemd_vm_state", states, [vm.state == possible for possible in _STATES])
    if vm.running is None or vm.spec_error:
        lines.add("gmemd_vm_spec_error", label, vm.spec_error)
    if vm.audit is not None:
        ended = vm.audit.started_timestamp + vm.audit.duration_seconds
        lines.add("gmemd_audit_last_success_timestamp_seconds", label, ended)


def _ways(vm: VmStatus, guest_node: int) -> Iterator[str]:
    """Labels that say how a guest node's memory is made, each once."""
    ways = (
        f'backend="{region.plan.backend}",guest_node="{guest_node}",'
        f'page_size="{region.plan.page_size}",policy="{region.plan.policy}",'
        f'strategy="{region.strategy}",vm="{escaped(vm.vm)}"'
        for region in vm.regions_of(guest_node)
    )
    yield from dict.fromkeys(ways)


def _add_drift(lines: _Lines, vm: str, drift: GuestNodeDrift, with_memory: Collection[int]) -> None:
    here = f'guest_node="{drift.guest_node}",', f'vm="{escaped(vm)}"'
    nodes = sorted({*with_memory, *(n for n, seen in drift.by_node.items() if seen)})
    labels = [f'{here[0]}host_node="{node}",{here[1]}' for node in nodes]
    by_node = [drift.by_node.get(node, 0) for node in nodes]
    lines.add_all("gmemd_guest_node_memory_bytes", labels, by_node)
    allowed = [node in drift.allowed for node in nodes]
    lines.add_all("gmemd_guest_node_host_node_allowed", labels, allowed)
    for family, value in _DRIFT_GAUGES:
        figure = value(drift)
        if figure is not None:
            lines.add(family.name, "".join(here), figure)
