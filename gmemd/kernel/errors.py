"""The one place that turns an errno into a typed error, and the seam where tests inject one."""

from __future__ import annotations

import errno as errnos
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError
from gmemd.kernel.filters import denied_by_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SECCOMP = (
    "a seccomp filter forbids {call} (containers, SystemCallFilter=): allow it for this process"
)
_KVM_GROUP = "join the group that owns /dev/kvm (usually kvm), or run as root"

_HINTS: dict[tuple[str, int], str] = {
    ("open /dev/kvm", errnos.EACCES): _KVM_GROUP,
    ("open /dev/kvm", errnos.EPERM): "the device cgroup forbids /dev/kvm: DeviceAllow=/dev/kvm rw",
    ("open /dev/kvm", errnos.ENOENT): (
        "enable virtualisation in the firmware and load kvm_intel or kvm_amd; "
        "in a container or a unit with PrivateDevices= pass /dev/kvm in"
    ),
    ("open /dev/kvm", errnos.ENODEV): "load kvm_intel or kvm_amd",
    ("open /dev/kvm", errnos.ENXIO): "load kvm_intel or kvm_amd",
    ("KVM_CREATE_VM", errnos.EPERM): _SECCOMP.format(call="ioctl"),
    ("KVM_CREATE_VM", errnos.EBUSY): "another hypervisor on this host holds the CPU's extensions",
    ("KVM_CREATE_VM", errnos.ENOMEM): "the host is out of memory",
    ("KVM_CREATE_GUEST_MEMFD", errnos.ENOTTY): "guest_memfd needs Linux 6.8 or later",
    ("KVM_CREATE_GUEST_MEMFD", errnos.EINVAL): (
        "this kernel lacks guest_memfd for this kind of VM or one of the flags "
        "(MMAP and INIT_SHARED came with 6.18), or the size is no multiple of 4 KiB"
    ),
    ("KVM_CREATE_GUEST_MEMFD", errnos.EIO): "the VM belongs to another process",
    ("memfd_create", errnos.ENOENT): "this kernel has no pool of huge pages of that size",
    ("mmap", errnos.ENODEV): (
        "this guest_memfd was made without the MMAP flag: only proxy-allocation can place it"
    ),
    ("mmap", errnos.EACCES): "the fd isn't open for what the mapping wants",
    ("mmap", errnos.ENOMEM): "no room in the huge page pool, or vm.max_map_count is reached",
    ("mbind", errnos.EINVAL): (
        "a mode this kernel doesn't know, or nodes that are all offline, without memory or "
        "outside this process' cpuset"
    ),
    ("set_mempolicy", errnos.EINVAL): (
        "a mode this kernel doesn't know, or nodes that are all offline, without memory or "
        "outside this process' cpuset"
    ),
    ("set_mempolicy_home_node", errnos.EOPNOTSUPP): (
        "only bind and preferred-many policies have a home node"
    ),
    ("set_mempolicy_home_node", errnos.EINVAL): "the home node must be online",
    ("set_mempolicy_home_node", errnos.ENOSYS): "home nodes need Linux 5.17 or later",
    ("cachestat", errnos.ENOSYS): "cachestat needs Linux 6.5 or later",
    ("cachestat", errnos.EOPNOTSUPP): "huge pages have no cachestat: scan_huge_window sees them",
    ("cachestat", errnos.EPERM): "the fd must be open for writing, or the file be one's own",
    ("scan", errnos.EPERM): (
        "mincore and cachestat don't tell this process the truth about the file: "
        "the fd must be open for writing, or the file be one's own"
    ),
    ("scan", errnos.EOPNOTSUPP): "huge pages are scanned by scan_huge_window",
    ("scan of huge pages", errnos.EPERM): _SECCOMP.format(call="userfaultfd"),
    ("scan of huge pages", errnos.ENOSYS): "this kernel has no userfaultfd",
    (
        "scan of huge pages",
        errnos.EINVAL,
    ): "this kernel's userfaultfd lacks minor faults of hugetlb",
    ("scan of a memfd in use", errnos.EPERM): _SECCOMP.format(call="userfaultfd"),
    ("scan of a memfd in use", errnos.ENOSYS): "this kernel has no userfaultfd",
    (
        "scan of a memfd in use",
        errnos.EINVAL,
    ): "minor faults of shared memory (userfaultfd) need Linux 5.14 or later",
    ("fallocate", errnos.ENOSPC): "the pool of huge pages is used up",
    ("fallocate", errnos.EINTR): "a signal interrupted it: what was allocated stays",
    ("pidfd_getfd", errnos.EPERM): "needs ptrace access to the process: CAP_SYS_PTRACE",
    ("pidfd_open", errnos.ESRCH): "the process is gone",
    ("pidfd_getfd", errnos.ESRCH): "the process is gone",
    ("move_pages", errnos.EPERM): "needs ptrace access to the process: CAP_SYS_PTRACE",
    ("move_pages", errnos.ESRCH): "the process is gone",
    ("move_pages", errnos.EINVAL): "the process has no memory any more: it is exiting",
}

_EVERYWHERE: dict[int, str] = {
    errnos.EMFILE: "raise RLIMIT_NOFILE (LimitNOFILE=)",
    errnos.ENFILE: "raise fs.file-max, or end what holds so many files open",
}

_NAMES: dict[int, str] = {**errnos.errorcode, 95: "EOPNOTSUPP", 133: "EHWPOISON"}

_FILTERED = frozenset(
    {
        "mbind",
        "get_mempolicy",
        "set_mempolicy",
        "set_mempolicy_home_node",
        "mincore",
        "fallocate",
        "memfd_create",
        "madvise",
        "pidfd_open",
        "prctl",
        "sched_setaffinity",
        "ftruncate",
        "fstatfs",
        "statx",
    }
)

_injected: dict[str, list[int]] = {}


def hint_for(call: str, errno: int) -> str | None:
    """A way out for this errno of this call, where one is known."""
    found = _HINTS.get((call, errno))
    if found is None and errno == errnos.EPERM and call in _FILTERED:
        return _SECCOMP.format(call=call)
    return found or _EVERYWHERE.get(errno)


def errno_name(errno: int) -> str:
    """The kernel's name of an errno: ``EHWPOISON`` for 133."""
    return _NAMES.get(errno, str(errno))


class KernelError(GmemdError):
    """A system call or ioctl failed: which, with what errno, while doing what.

    ``filtered``: it isn't the kernel that denies it, but a seccomp filter of this process.
    """

    def __init__(
        self, call: str, errno: int, what: str, *, hint: str | None = None, filtered: bool = False
    ) -> None:
        self.call = call
        self.errno = errno
        self.errno_name = errno_name(errno)
        self.what = what
        self.filtered = filtered
        super().__init__(
            f"{call}: {self.errno_name} ({os.strerror(errno)}): {what}",
            hint=hint or hint_for(call, errno),
        )
        denied = errno in (errnos.EPERM, errnos.EACCES)
        self.exit_code = Exit.NOT_PERMITTED if denied else Exit.HOST


def invoke(call: str, function: Callable[..., int], *args: object, what: str) -> int:
    """Calls a function of ``kernel.c``; its result, or a KernelError that names ``call``."""
    pending = _injected.get(call)
    skipped_or_errno = pending.pop(0) if pending else 0
    result = -skipped_or_errno if skipped_or_errno else function(*args)
    if result == -errnos.EPERM and (denied := denied_by_filter(call)):
        hint = _SECCOMP.format(call=denied)
        raise KernelError(denied, errnos.EPERM, what, hint=hint, filtered=True)
    if result < 0:
        raise KernelError(call, -result, what)
    return result


@contextmanager
def system_call(call: str, what: str) -> Iterator[None]:
    """Has an OSError of the block, in which Python makes the call, be a KernelError."""
    try:
        yield
    except OSError as error:
        raise KernelError(call, error.errno or 0, what) from error


@contextmanager
def injected_failure(call: str, errno: int, *, after: int = 0) -> Iterator[None]:
    """Makes one ``call`` of this process fail with ``errno``, ``after`` more have been made."""
    _injected[call] = [0] * after + [errno]
    try:
        yield
    finally:
        del _injected[call]
