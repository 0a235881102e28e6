import errno
import fcntl
import os

import pytest

from gmemd.errors import Exit
from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import Kvm, KvmVm
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.memfd import is_guest_memfd, is_hugetlb


def test_a_missing_device_says_what_to_do() -> None:
    with pytest.raises(KernelError) as caught:
        Kvm("/dev/there-is-none")
    assert caught.value.errno == errno.ENOENT
    assert "kvm_intel" in str(caught.value.hint)


@pytest.mark.needs("kvm", "guest_memfd")
@pytest.mark.usefixtures("vm", "as_nobody")
def test_a_forbidden_device_names_the_group() -> None:
    with pytest.raises(KernelError) as caught:
        Kvm()
    assert caught.value.errno_name == "EACCES"
    assert "kvm" in str(caught.value.hint)
    assert caught.value.exit_code is Exit.NOT_PERMITTED


@pytest.mark.needs("kvm", "guest_memfd")
def test_a_vm_tells_its_guest_memfd_abilities(vm: KvmVm) -> None:
    assert vm.has_guest_memfd() == (vm.check_extension(234) == 1)
    assert vm.guest_memfd_flags() >= 0


@pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
def test_a_guest_memfd_is_known_by_its_name_and_closes_on_exec(guest_memfd: int) -> None:
    assert fcntl.fcntl(guest_memfd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert is_guest_memfd(guest_memfd)
    assert not is_hugetlb(guest_memfd)


@pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
def test_a_guest_memfd_outlives_its_vm(vm: KvmVm) -> None:
    fd = vm.create_guest_memfd(1 << 20, vm.guest_memfd_flags())
    vm.close()
    with Mapping(fd, 0, 1 << 20, protection="read") as window:
        window.populate_read(0, 4096)
    os.close(fd)


@pytest.mark.needs("kvm", "guest_memfd")
@pytest.mark.parametrize(("size", "flags"), [(4097, 0), (0, 0), (-4096, 0), (4096, 1 << 60)])
def test_a_wrong_guest_memfd_is_refused(vm: KvmVm, size: int, flags: int) -> None:
    with pytest.raises(KernelError) as caught:
        vm.create_guest_memfd(size, flags)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.call == "KVM_CREATE_GUEST_MEMFD"


@pytest.mark.needs("guest_memfd_mmap", "guest_memfd_init_shared")
def test_only_the_mmap_flag_makes_it_mappable(vm: KvmVm) -> None:
    fd = vm.create_guest_memfd(1 << 20, 0)
    with pytest.raises(KernelError) as caught:
        Mapping(fd, 0, 4096)
    os.close(fd)
    assert caught.value.errno == errno.ENODEV
    assert "proxy-allocation" in str(caught.value.hint)


@pytest.mark.needs("kvm", "guest_memfd")
@pytest.mark.usefixtures("vm")
def test_closing_twice_is_harmless() -> None:
    with Kvm() as kvm:
        kvm.close()
        assert kvm.fd == -1
