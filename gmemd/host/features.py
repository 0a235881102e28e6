"""What this kernel can do, found out by doing it on memory that is thrown away at once."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from gmemd.host.model import Feature
from gmemd.kernel.bind import keeps_inode_policy
from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import GUEST_MEMFD_INIT_SHARED, GUEST_MEMFD_MMAP, Kvm, KvmVm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import PAGE_SIZE, create_memfd
from gmemd.kernel.mempolicy import MemPolicy, allowed_mems, mbind, set_home_node
from gmemd.kernel.nodes import nodes_with_memory
from gmemd.kernel.pages import cachestat, move_pages_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Mapping as MappingOf
    from pathlib import Path

KVM_DEVICE = "/dev/kvm"

_LACKING = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT}
)
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})
_SECCOMP = "a seccomp filter may forbid {call} (a container's profile, SystemCallFilter=): allow it"
_WITHOUT_KVM = "not found out: it is asked of a VM, and none can be made"
_MAKE_KVM_WORK = "make /dev/kvm work first"
_WITHOUT_MMAP = "a guest_memfd that can't be mapped can't be given a policy"
_NEWER_MMAP = "run Linux 6.18 or later; until then use backend: memfd"
_NEWER_POLICY = (
    "run Linux 6.19 or later for it; here set prefault: true, and a helper places every page"
)


def probe_features(kvm_device: str | Path = KVM_DEVICE) -> MappingOf[str, Feature]:
    """Probe everything that gmemd builds on, by name, in the order in which it is told.

    Costs some milliseconds. No VM, fd or page outlives the call.
    """
    found = [*_probe_kvm(os.fspath(kvm_device))]
    for name, probe in (
        ("memfd_inode_policy", _memfd_inode_policy),
        ("weighted_interleave", _weighted_interleave),
        ("home_node", _home_node),
        ("cachestat", _cachestat),
        ("move_pages", _move_pages),
        ("populate", _populate),
    ):
        found.append(_attempt(name, probe))
    return {feature.name: feature for feature in found}


def _attempt(name: str, probe: Callable[[], Feature]) -> Feature:
    """Probe; a refusal by the kernel is the answer, with the call and its errno as the detail."""
    try:
        return probe()
    except KernelError as error:
        return _feature_of(name, error)


def _feature_of(name: str, error: KernelError) -> Feature:
    """What a failed call says of a feature: lacking, forbidden, or (None) nothing for sure."""
    if error.errno in _FORBIDDEN:
        remedy = error.hint or _SECCOMP.format(call=error.call)
        return Feature(name, False, error.message, remedy, forbidden=True)
    supported = False if error.errno in _LACKING else None
    return Feature(name, supported, error.message, error.hint or "")


def _probe_kvm(device: str) -> Iterator[Feature]:
    """/dev/kvm, and what only a VM can tell. The VM is gone when the last one is given."""
    with ExitStack() as stack:
        try:
            vm = stack.enter_context(stack.enter_context(Kvm(device)).create_vm())
        except KernelError as error:
            yield _kvm_failure(error)
            why = f"{device} doesn't work here: {error.message}"
            yield Feature("guest_memfd", False, why, error.hint or _MAKE_KVM_WORK)
            for name in ("guest_memfd_mmap", "guest_memfd_init_shared", "inode_policy"):
                yield Feature(name, None, _WITHOUT_KVM, _MAKE_KVM_WORK)
            return
        yield Feature("kvm", True, "a VM can be made")
        yield _attempt("guest_memfd", lambda: _guest_memfd(vm))
        flags = _flags(vm)
        mappable = _attempt("guest_memfd_mmap", lambda: _guest_memfd_mmap(vm, flags))
        yield mappable
        yield Feature(
            "guest_memfd_init_shared",
            bool(flags & GUEST_MEMFD_INIT_SHARED),
            f"KVM_CAP_GUEST_MEMFD_FLAGS is {flags:#x}",
            "" if flags & GUEST_MEMFD_INIT_SHARED else _NEWER_MMAP,
        )
        if mappable.supported:
            yield _attempt("inode_policy", lambda: _inode_policy(vm, flags))
        else:
            yield Feature("inode_policy", mappable.supported, _WITHOUT_MMAP, mappable.remedy)


def _kvm_failure(error: KernelError) -> Feature:
    """/dev/kvm missing, forbidden, or busy: each has its own remedy."""
    supported = None if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE) else False
    return Feature("kvm", supported, error.message, error.hint or "")


def _flags(vm: KvmVm) -> int:
    try:
        return vm.guest_memfd_flags()
    except KernelError:  # a kernel that doesn't know the capability has none of the flags
        return 0


@contextmanager
def _guest_memfd_fd(vm: KvmVm, flags: int) -> Iterator[int]:
    fd = vm.create_guest_memfd(PAGE_SIZE, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _memfd_fd() -> Iterator[int]:
    fd = create_memfd("gmemd-probe", PAGE_SIZE)
    try:
        yield fd
    finally:
        os.close(fd)


def _guest_memfd(vm: KvmVm) -> Feature:
    name = "guest_memfd"
    if not vm.has_guest_memfd():
        detail = "KVM_CAP_GUEST_MEMFD is 0 for a VM of the default type"
        return Feature(name, False, detail, "run Linux 6.18 or later")
    with _guest_memfd_fd(vm, 0):
        return Feature(name, True, "one was made")


def _guest_memfd_mmap(vm: KvmVm, flags: int) -> Feature:
    name = "guest_memfd_mmap"
    if not flags & GUEST_MEMFD_MMAP:
        return Feature(name, False, f"KVM_CAP_GUEST_MEMFD_FLAGS is {flags:#x}", _NEWER_MMAP)
    with _guest_memfd_fd(vm, _mappable(flags)) as fd, Mapping(fd, 0, PAGE_SIZE):
        return Feature(name, True, "one was mapped")


def _inode_policy(vm: KvmVm, flags: int) -> Feature:
    name = "inode_policy"
    with _guest_memfd_fd(vm, _mappable(flags)) as fd:
        if keeps_inode_policy(fd):
            return Feature(name, True, "set through one mapping, read through another")
    detail = "mbind succeeds, but another mapping of the file doesn't see the policy"
    return Feature(name, False, detail, _NEWER_POLICY)


def _mappable(flags: int) -> int:
    return GUEST_MEMFD_MMAP | (flags & GUEST_MEMFD_INIT_SHARED)


def _memfd_inode_policy() -> Feature:
    name = "memfd_inode_policy"
    with _memfd_fd() as fd:
        if keeps_inode_policy(fd):
            return Feature(name, True, "set through one mapping, read through another")
    detail = "mbind succeeds, but another mapping of the file doesn't see the policy"
    return Feature(name, False, detail, "set prefault: true, and a helper places every page")


def _usable_nodes() -> frozenset[int]:
    return nodes_with_memory() & allowed_mems()


def _weighted_interleave() -> Feature:
    policy = MemPolicy("weighted-interleave", _usable_nodes())
    with _memfd_fd() as fd, Mapping(fd, 0, PAGE_SIZE) as window:
        try:
            mbind(window.address, PAGE_SIZE, policy)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            remedy = "run Linux 6.9 or later, or use policy: interleave"
            return Feature("weighted_interleave", False, error.message, remedy)
    return Feature("weighted_interleave", True, "mbind takes it")


def _home_node() -> Feature:
    nodes = _usable_nodes()
    with _memfd_fd() as fd, Mapping(fd, 0, PAGE_SIZE) as window:
        mbind(window.address, PAGE_SIZE, MemPolicy("bind", nodes))
        set_home_node(window.address, PAGE_SIZE, min(nodes))
    return Feature("home_node", True, "set_mempolicy_home_node takes it")


def _cachestat() -> Feature:
    with _memfd_fd() as fd:
        cachestat(fd, 0, PAGE_SIZE)
    return Feature("cachestat", True, "counted a file of one page")


def _move_pages() -> Feature:
    with _memfd_fd() as fd, Mapping(fd, 0, PAGE_SIZE, protection="read-write") as window:
        window.populate_write(0, PAGE_SIZE)
        node = move_pages_query(0, [window.address])[0]
    if node < 0:
        name = errno.errorcode.get(-node, str(-node))
        return Feature("move_pages", None, f"the node of a page just made reads as {name}")
    return Feature("move_pages", True, "told the node of a page")


def _populate() -> Feature:
    with _memfd_fd() as fd:
        with Mapping(fd, 0, PAGE_SIZE, protection="read-write") as window:
            window.populate_write(0, PAGE_SIZE)
        with Mapping(fd, 0, PAGE_SIZE, protection="read") as window:
            window.populate_read(0, PAGE_SIZE)
    return Feature("populate", True, "MADV_POPULATE_READ and _WRITE took a page")
