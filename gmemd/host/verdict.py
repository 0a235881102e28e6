"""What a host's features come to: one line that says what gmemd can do here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gmemd.host.model import Host

MEANINGS = {
    "kvm": "VMs can be made",
    "guest_memfd": "memory that belongs to a VM",
    "guest_memfd_mmap": "a VMM can use guest_memfd as ordinary memory; it can be audited",
    "guest_memfd_init_shared": "guest_memfd can be touched through a mapping from the start",
    "inode_policy": "guest_memfd keeps a policy that rules the guest's own faults too",
    "memfd_inode_policy": "memfd keeps a policy that rules the guest's own faults too",
    "weighted_interleave": "policy: weighted-interleave",
    "home_node": "a bind over several nodes may say where to start",
    "cachestat": "residency is counted without touching a page",
    "move_pages": "the node of every page can be told",
    "populate": "pages are prefaulted and audited without being accessed",
}
"""What each feature is good for, by its name."""


class Verdict(NamedTuple):
    """Whether gmemd can place anything, and how, in one line."""

    able: bool
    text: str


def judge(host: Host) -> Verdict:
    """Say what the best strategy is that works on the host."""
    memfd = _memfd(host)
    if host.supports("guest_memfd") and host.supports("guest_memfd_mmap"):
        if host.supports("inode_policy"):
            return Verdict(True, "gmemd can place guest_memfd by inode policy here")
        return Verdict(
            True,
            "gmemd can place guest_memfd by proxy-allocation here: prefaulted, since this kernel "
            f"keeps no policy for it{f'; {memfd} by inode policy' if memfd else ''}",
        )
    lacking = "guest_memfd_mmap" if host.supports("guest_memfd") else "guest_memfd"
    if host.supports("guest_memfd"):
        why = "guest_memfd can't be mapped"
    elif not host.supports("kvm"):
        why = "there is no guest_memfd without a working /dev/kvm"
    else:
        why = "this kernel has no guest_memfd for such a VM"
    if memfd:
        return Verdict(True, f"gmemd can place memfd by inode policy here, no guest_memfd: {why}")
    feature = host.features.get(lacking)
    if feature is None:
        return Verdict(False, "what gmemd can place here was not found out")
    return Verdict(False, f"gmemd can place nothing here: {why}, and memfd keeps no policy")


def panic_warning(host: Host) -> str:
    """Say what vm.panic_on_oom means for prefaulting here; nothing where it means nothing."""
    if host.oom_panics:
        return (
            "vm.panic_on_oom is 2: a host node or cgroup that is full panics this host, where else "
            "the kernel would kill gmemd's prefault helper. Twice the reserve is held back for "
            "that; `sysctl vm.panic_on_oom=1` or 0 has the helper killed alone"
        )
    if host.panic_on_oom:
        return (
            "vm.panic_on_oom is 1: this host panics when all of its memory is full; where one host "
            "node or cgroup is, the kernel kills gmemd's prefault helper alone"
        )
    return ""


def _memfd(host: Host) -> str:
    return "memfd" if host.supports("memfd_inode_policy") else ""
