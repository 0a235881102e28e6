"""The lab's machines: which nodes, which memory, and the QEMU command line that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NODES = 4
DISTANCES = (
    (10, 21, 31, 41),
    (21, 10, 41, 31),
    (31, 41, 10, 51),
    (41, 31, 51, 10),
)
MOVABLE_NODE_DISTANCE = 31
# Emulated, a string instruction is a loop over its bytes or words, dearer than the loop of moves
# that the kernel and the C library take without it (``rep_good`` below is the kernel's other word
# for them); a fifth level of page tables and SMAP are work at each miss and each system call.
CPU = "max,-erms,-la57,-smap"


@dataclass(frozen=True)
class Variant:
    """One kind of machine. Nodes 0 and 1 have two CPUs each; the others have none.

    ``movable_node`` adds node 4, whose memory is all in ZONE_MOVABLE; ``newest_kernel`` false boots
    the oldest kernel of the image, which has no inode policies.
    """

    name: str
    movable_node: bool = False
    systemd: bool = False
    newest_kernel: bool = True


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("default"),
        Variant("movable", movable_node=True),
        Variant("systemd", systemd=True),
        Variant("old-kernel", newest_kernel=False),
    )
}


@dataclass(frozen=True)
class Boot:
    """The files and channels of one boot. ``stdout`` and ``stderr`` are connected sockets' fds."""

    kernel: Path
    initramfs: Path
    disk: Path
    checkout: Path
    share: Path
    console_log: Path
    stdout_fd: int | None = None
    stderr_fd: int | None = None


def qemu_command(variant: Variant, boot: Boot, *, node_mebibytes: int) -> list[str]:
    """The QEMU command line; without stdout_fd the terminal is a console on QEMU's own stdio."""
    # On one thread: with a thread per CPU, QEMU 7.2 lets a CPU run a breakpoint that the kernel has
    # patched away again (static keys), and one boot in four ends in a panic. It is as fast.
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=single", "-smp", "4,sockets=2"),
        *("-cpu", CPU),
        *_memory(variant, node_mebibytes),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)),
        *("-append", kernel_arguments(variant)),
        *("-chardev", f"file,id=console,path={_escaped(boot.console_log)}"),
        *("-serial", "chardev:console"),
        *("-drive", f"if=virtio,format=raw,snapshot=on,file={_escaped(boot.disk)}"),
        *_shared("share", boot.share, ""),
        *_shared("checkout", boot.checkout, ",readonly=on"),
        *("-device", "virtio-serial-pci"),
        *_channels(boot),
    ]


def kernel_arguments(variant: Variant) -> str:
    """The kernel's command line. A panic ends the machine at once, which -no-reboot makes final."""
    words = ["console=ttyS0", "loglevel=6", "oops=panic", "panic=-1", "random.trust_cpu=on"]
    words += ["mitigations=off", "init_on_alloc=0", "nowatchdog", "clearcpuid=rep_good"]
    if variant.movable_node:
        words.append("memhp_default_state=online_movable")
    return " ".join(words)


def _memory(variant: Variant, node_mebibytes: int) -> list[str]:
    total = NODES * node_mebibytes
    hotplug = f",slots=1,maxmem={total + node_mebibytes}M" if variant.movable_node else ""
    words = ["-m", f"{total}M{hotplug}"]
    for node in range(NODES):
        cpus = f",cpus={2 * node}-{2 * node + 1}" if node in (0, 1) else ""
        words += ["-object", f"memory-backend-ram,id=m{node},size={node_mebibytes}M"]
        words += ["-numa", f"node,nodeid={node},memdev=m{node}{cpus}"]
    if variant.movable_node:
        words += ["-numa", f"node,nodeid={NODES}"]
        words += ["-object", f"memory-backend-ram,id=m{NODES},size={node_mebibytes}M"]
        words += ["-device", f"pc-dimm,id=dimm,memdev=m{NODES},node={NODES}"]
    for source, row in enumerate(_distances(variant)):
        for target, distance in enumerate(row):
            words += ["-numa", f"dist,src={source},dst={target},val={distance}"]
    return words


def _distances(variant: Variant) -> tuple[tuple[int, ...], ...]:
    if not variant.movable_node:
        return DISTANCES
    far = MOVABLE_NODE_DISTANCE
    return (*((*row, far) for row in DISTANCES), (far,) * NODES + (10,))


def _shared(tag: str, path: Path, options: str) -> list[str]:
    where = f"path={_escaped(path)},mount_tag={tag},security_model=none,multidevs=remap"
    return ["-virtfs", f"local,{where}{options}"]


def _channels(boot: Boot) -> list[str]:
    if boot.stdout_fd is None:
        return ["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"]
    return [
        *("-chardev", f"socket,id=out,fd={boot.stdout_fd}"),
        *("-device", "virtserialport,chardev=out,name=lab.out"),
        *("-chardev", f"socket,id=err,fd={boot.stderr_fd}"),
        *("-device", "virtserialport,chardev=err,name=lab.err"),
    ]


def _escaped(path: Path) -> str:
    """A path inside a QEMU option, where a comma is written twice."""
    return str(path).replace(",", ",,")
