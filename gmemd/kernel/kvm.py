"""KVM: the device, a VM, and the guest_memfds that only the VM's maker can create."""

from __future__ import annotations

import errno
import os

from gmemd.kernel._kernel import lib
from gmemd.kernel.descriptor import OwnedFd
from gmemd.kernel.errors import KernelError, invoke

GUEST_MEMFD_MMAP = lib.GM_GUEST_MEMFD_MMAP
"""The guest_memfd may be mapped by user space."""
GUEST_MEMFD_INIT_SHARED = lib.GM_GUEST_MEMFD_INIT_SHARED
"""Its pages are shared from the start: a mapping can touch them."""


class KvmVm(OwnedFd):
    """A VM without vCPUs, of use as the maker of guest_memfds, which keep it alive."""

    def check_extension(self, capability: int) -> int:
        """What KVM_CHECK_EXTENSION of the VM says: 0 is unsupported."""
        return invoke(
            "KVM_CHECK_EXTENSION",
            lib.gm_kvm_check_extension,
            self.fd,
            capability,
            what=f"asking for capability {capability}",
        )

    def has_guest_memfd(self) -> bool:
        """Whether this VM can have guest_memfds."""
        return self.check_extension(lib.GM_CAP_GUEST_MEMFD) > 0

    def guest_memfd_flags(self) -> int:
        """The supported flags (GUEST_MEMFD_*), or 0."""
        return self.check_extension(lib.GM_CAP_GUEST_MEMFD_FLAGS)

    def create_guest_memfd(self, size_bytes: int, flags: int) -> int:
        """A new guest_memfd of ``size_bytes`` (a multiple of 4096), close-on-exec; the caller's."""
        what = f"creating a guest_memfd of {size_bytes} bytes with flags {flags:#x}"
        if size_bytes <= 0:
            raise KernelError("KVM_CREATE_GUEST_MEMFD", errno.EINVAL, what)
        return invoke(
            "KVM_CREATE_GUEST_MEMFD",
            lib.gm_kvm_create_guest_memfd,
            self.fd,
            size_bytes,
            flags,
            what=what,
        )


class Kvm(OwnedFd):
    """The KVM device, open. Raises KernelError if there is none or it isn't permitted."""

    def __init__(self, path: str | os.PathLike[str] = "/dev/kvm") -> None:
        super().__init__(
            invoke("open /dev/kvm", lib.gm_kvm_open, os.fsencode(path), what=f"opening {path}")
        )

    def create_vm(self) -> KvmVm:
        """A new VM; the caller's to close."""
        return KvmVm(invoke("KVM_CREATE_VM", lib.gm_kvm_create_vm, self.fd, what="creating a VM"))
