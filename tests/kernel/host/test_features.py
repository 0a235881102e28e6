from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gmemd.host.features import probe_features
from gmemd.host.verdict import MEANINGS
from gmemd.kernel.errors import injected_failure


def mapped_files() -> set[str]:
    return {
        line.split(maxsplit=5)[5]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "memfd" in line or "gmem" in line
    }


def test_every_feature_is_probed_in_the_order_of_the_list() -> None:
    assert list(probe_features()) == list(MEANINGS)


def test_probing_leaves_no_fd_and_no_mapping() -> None:
    probe_features()
    before = len(os.listdir("/proc/self/fd")), mapped_files()  # noqa: PTH208  counted, not used
    probe_features()
    assert (len(os.listdir("/proc/self/fd")), mapped_files()) == before  # noqa: PTH208


@pytest.mark.parametrize(
    "call",
    ["KVM_CREATE_VM", "KVM_CREATE_GUEST_MEMFD", "mbind", "mmap", "madvise", "memfd_create"],
)
def test_a_probe_that_fails_halfway_leaves_nothing_either(call: str) -> None:
    before = len(os.listdir("/proc/self/fd")), mapped_files()  # noqa: PTH208  counted, not used
    for after in range(4):
        with injected_failure(call, errno.ENOMEM, after=after):
            probe_features()
    assert (len(os.listdir("/proc/self/fd")), mapped_files()) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("number", "said", "remedy"),
    [
        (errno.ENOENT, "ENOENT", "load kvm_intel or kvm_amd"),
        (errno.EACCES, "EACCES", "group"),
        (errno.EPERM, "EPERM", "DeviceAllow=/dev/kvm"),
    ],
)
def test_kvm_missing_and_kvm_forbidden_have_their_own_remedies(
    number: int, said: str, remedy: str
) -> None:
    with injected_failure("open /dev/kvm", number):
        features = probe_features()
    assert features["kvm"].supported is False
    assert said in features["kvm"].detail
    assert remedy in features["kvm"].remedy
    assert features["guest_memfd"].supported is False
    assert features["inode_policy"].supported is None
    assert features["memfd_inode_policy"].supported is True


def test_a_device_that_is_not_there_is_told_by_the_kernel_itself(tmp_path: Path) -> None:
    assert "ENOENT" in probe_features(tmp_path / "kvm")["kvm"].detail


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm")
def test_kvm_held_by_another_hypervisor() -> None:
    with injected_failure("KVM_CREATE_VM", errno.EBUSY):
        kvm = probe_features()["kvm"]
    assert (kvm.supported, "another hypervisor" in kvm.remedy) == (False, True)


@pytest.mark.parametrize(
    ("call", "feature"),
    [
        ("cachestat", "cachestat"),
        ("move_pages", "move_pages"),
        ("set_mempolicy_home_node", "home_node"),
        ("madvise", "move_pages"),
    ],
)
def test_a_forbidden_call_is_said_to_be_forbidden_and_costs_one_feature(
    call: str, feature: str
) -> None:
    with injected_failure(call, errno.EPERM):
        found = probe_features()[feature]
    assert found.supported is False
    assert "EPERM" in found.detail
    assert found.remedy


def test_running_out_of_fds_says_nothing_about_the_kernel() -> None:
    with injected_failure("memfd_create", errno.EMFILE):
        assert probe_features()["memfd_inode_policy"].supported is None


def test_an_unknown_mode_is_a_missing_feature_with_its_substitute() -> None:
    with injected_failure("mbind", errno.EINVAL, after=_binds_before_weighted()):
        weighted = probe_features()["weighted_interleave"]
    assert weighted.supported is False
    assert "policy: interleave" in weighted.remedy


def _binds_before_weighted() -> int:
    """How many mbind calls the probes before it make: found by failing each in turn."""
    for after in range(20):
        with injected_failure("mbind", errno.ENOMEM, after=after):
            if probe_features()["weighted_interleave"].supported is None:
                return after
    raise AssertionError("weighted interleave was never probed")
