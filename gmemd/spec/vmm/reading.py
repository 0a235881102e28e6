"""Which VMM a program is, and what its command line declares."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gmemd.spec.declared import Declaration
from gmemd.spec.vmm.cloud_hypervisor import read_cloud_hypervisor
from gmemd.spec.vmm.crosvm import read_crosvm
from gmemd.spec.vmm.firecracker import read_firecracker
from gmemd.spec.vmm.qemu import read_qemu

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMES = {
    "qemu": re.compile(r"qemu(-[a-z]+)*-system-.+|qemu-kvm|qemu|kvm"),
    "cloud-hypervisor": re.compile(r"cloud-hypervisor([-_.].*)?"),
    "firecracker": re.compile(r"firecracker([-_.].*)?"),
    "crosvm": re.compile(r"crosvm"),
}


def vmm_kind(program: str) -> str:
    """Name the VMM that a program is by its path or name, as argv[0] or /proc/PID/exe has it.

    One of ``qemu``, ``cloud-hypervisor``, ``firecracker``, ``crosvm``; empty for any other.
    """
    name = program.removesuffix(" (deleted)").rpartition("/")[2]
    if name.startswith("."):  # NixOS puts .NAME-wrapped behind a script
        name = name.removeprefix(".").removesuffix("-wrapped")
    return next((vmm for vmm, names in _NAMES.items() if names.fullmatch(name)), "")


def read_command_line(vmm: str, argv: Sequence[str], *, machine: str = "x86_64") -> Declaration:
    """Read what a VMM was told of its guest's name and memory; whatever it was told, never raises.

    ``vmm`` is of `vmm_kind`; ``argv`` has the program first, as text in which bytes that are no
    UTF-8 are surrogates; ``machine`` is the host's, as uname says it: some VMMs lay memory out by
    it. What isn't understood becomes one of the declaration's problems. Paths in the declaration
    keep their surrogates, so that they equal the kernel's; all else can be printed.
    """
    if vmm == "qemu":
        return read_qemu(argv)
    if vmm == "cloud-hypervisor":
        return read_cloud_hypervisor(argv, machine)
    if vmm == "firecracker":
        return read_firecracker(argv)
    if vmm == "crosvm":
        return read_crosvm(argv)
    return Declaration(vmm=vmm)
