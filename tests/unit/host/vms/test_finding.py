"""Which processes are VMs, and what is told of those that can't be looked into."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.host.vms.filesystems import Filesystems
from gmemd.host.vms.finding import VmmFinder, still_runs

if TYPE_CHECKING:
    from tests.unit.host.vms.conftest import ProcTree

KVM = {3: "/dev/kvm", 8: "anon_inode:kvm-vm", 9: "anon_inode:kvm-vcpu:0"}
QEMU = ("/usr/bin/qemu-system-x86_64", "-name", "guest=db-01")


def finder(tree: ProcTree) -> VmmFinder:
    return VmmFinder(tree.root, Filesystems())


@pytest.mark.parametrize(
    "link",
    [
        "anon_inode:kvm-vm",
        "anon_inode:[kvm-vm]",
        "/[kvm-vm] (deleted)",
        "/kvm-vm (deleted)",
    ],
)
def test_whatever_holds_a_vm_is_one(tree: ProcTree, link: str) -> None:
    tree.add(100, ["/opt/own-vmm", "--guest", "7"], fds={5: link})
    (vmm,) = finder(tree).find().vmms
    assert (vmm.pid, vmm.program, vmm.kvm) == (100, "own-vmm", True)


def test_known_vmms_are_vms_without_kvm(tree: ProcTree) -> None:
    tree.add(100, ["qemu-system-aarch64", "-M", "virt"])
    tree.add(101, ["/usr/bin/python3", "qemu-system-x86_64"])
    tree.add(102, ["/usr/libexec/qemu-kvm"], fds=KVM)
    found = finder(tree).find().vmms
    assert [(vmm.pid, vmm.kvm) for vmm in found] == [(100, False), (102, True)]


def test_a_vcpu_alone_is_no_vm(tree: ProcTree) -> None:
    tree.add(100, ["thing"], fds={9: "anon_inode:kvm-vcpu:0", 10: "/dev/kvm"})
    assert finder(tree).find().vmms == ()


def test_kernel_threads_and_zombies_are_passed_over(tree: ProcTree) -> None:
    tree.add(2, [], comm="kthreadd", flags=0x200040)
    tree.add(100, [], comm="qemu-system-x86")
    found = finder(tree).find()
    assert found.vmms == ()
    assert found.unseen == 0


def test_a_fork_of_a_vmm_is_not_another_vm(tree: ProcTree) -> None:
    tree.add(100, QEMU, fds=KVM)
    tree.add(101, QEMU, fds=KVM, parent=100)
    tree.add(102, (*QEMU, "-S"), fds=KVM, parent=100)
    assert [vmm.pid for vmm in finder(tree).find().vmms] == [100, 102]


def test_the_creator_of_guest_memfds_is_none(tree: ProcTree) -> None:
    tree.add(100, ["python3", "-m", "gmemd.memory.creator_child"], fds=KVM)
    assert finder(tree).find().vmms == ()


def test_a_process_that_maps_nothing_new_is_not_looked_into_again(tree: ProcTree) -> None:
    folder = tree.add(100, ["own-vmm"])
    looking = finder(tree)
    assert looking.find().vmms == ()
    (folder / "fd/8").symlink_to("anon_inode:kvm-vm")
    assert looking.find().vmms == ()
    tree.set_stat(100, size=2 << 30)
    assert [vmm.pid for vmm in looking.find().vmms] == [100]


def test_a_pid_given_again_is_looked_into(tree: ProcTree) -> None:
    folder = tree.add(100, ["own-vmm"])
    looking = finder(tree)
    looking.find()
    (folder / "fd/8").symlink_to("anon_inode:kvm-vm")
    tree.set_stat(100, start_ticks=4201)
    assert [vmm.pid for vmm in looking.find().vmms] == [100]


def test_a_process_that_ended_or_is_another_program_runs_no_more(tree: ProcTree) -> None:
    tree.add(100, QEMU, fds=KVM)
    (vmm,) = finder(tree).find().vmms
    assert still_runs(vmm, tree.root)
    tree.set_stat(100, size=2 << 30)
    assert still_runs(vmm, tree.root)
    tree.set_stat(100, stack=0x7FFD00000000)
    assert not still_runs(vmm, tree.root)
    tree.set_stat(100, start_ticks=4201)
    assert not still_runs(vmm, tree.root)
    assert not still_runs(replace(vmm, pid=101), tree.root)


def test_a_vmm_that_daemonizes_is_one(tree: ProcTree) -> None:
    """It waits for a copy of itself, which has no other parent than init."""
    code = "7f0000000000-7f0000200000 rw-p 00000000 00:00 0\n"
    memory = "7e0000000000-7e0040000000 rw-p 00000000 00:00 0\n"
    tree.add(100, QEMU, maps=code)
    assert [vmm.pid for vmm in finder(tree).find().vmms] == [100]
    tree.add(102, QEMU, maps=memory + code, start_ticks=4201)
    assert [vmm.pid for vmm in finder(tree).find().vmms] == [102]


def test_vmms_of_one_command_line_are_several(tree: ProcTree) -> None:
    for pid in (100, 101):
        tree.add(pid, QEMU, maps=f"7f{pid}00000000-7f{pid}40000000 rw-p 00000000 00:00 0\n")
    for pid in (102, 103):
        tree.add(pid, QEMU, fds=KVM)
    assert [vmm.pid for vmm in finder(tree).find().vmms] == [100, 101, 102, 103]


def test_odd_names_are_kept(tree: ProcTree) -> None:
    name = 'guest="quo\nted",debug-threads=on \u00fc\udcff' + "x" * 300
    tree.add(100, ["qemu-system-x86_64", "-name", name], comm="a) b (c")
    (vmm,) = finder(tree).find().vmms
    assert vmm.argv[2] == name
    assert vmm.program == "qemu-system-x86_64"


def test_a_userfaultfd_is_seen(tree: ProcTree) -> None:
    tree.add(100, QEMU, fds={**KVM, 20: "anon_inode:[userfaultfd]"})
    assert finder(tree).find().vmms[0].userfaultfd


def test_when_it_was_started(tree: ProcTree) -> None:
    tree.add(100, QEMU, fds=KVM, start_ticks=50000)
    (vmm,) = finder(tree).find().vmms
    tree.add(101, QEMU, fds=KVM, start_ticks=60000)
    later = finder(tree).find().vmms[1]
    assert later.started_timestamp - vmm.started_timestamp == pytest.approx(100, abs=1)


def test_one_process_is_taken_for_what_it_is_said_to_be(tree: ProcTree) -> None:
    tree.add(100, ["own-vmm"])
    tree.add(101, QEMU, fds=KVM)
    assert [vmm.pid for vmm in finder(tree).find(only=100).vmms] == [100]
    assert finder(tree).find(only=999).vmms == ()


def test_files_that_are_cut_short_stop_nothing(tree: ProcTree) -> None:
    (tree.add(100, QEMU, fds=KVM) / "stat").write_text("100 (qemu")
    (tree.add(101, QEMU, fds=KVM) / "maps").write_text("nonsense\n")
    tree.add(102, QEMU, fds=KVM)
    assert [vmm.pid for vmm in finder(tree).find().vmms] in ([102], [101, 102])
