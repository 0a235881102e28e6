"""What the lab's image is made of. Everything here is part of the image's identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

GUEST_FILES = Path(__file__).parent / "guest"

# Drivers, sound and network protocols are most of a kernel package; a virtual machine needs these.
UNWANTED_FILES = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/lib/modules/*/kernel/drivers/*",
    "/usr/lib/modules/*/kernel/sound/*",
    "/usr/lib/modules/*/kernel/net/*",
)
WANTED_FILES = (
    "/usr/lib/modules/*/kernel/drivers/virtio/*",
    "/usr/lib/modules/*/kernel/drivers/block/virtio_blk*",
    "/usr/lib/modules/*/kernel/drivers/block/loop*",
    "/usr/lib/modules/*/kernel/drivers/char/virtio_console*",
    "/usr/lib/modules/*/kernel/drivers/crypto/ccp/*",
    "/usr/lib/modules/*/kernel/drivers/acpi/*",
    "/usr/lib/modules/*/kernel/net/9p/*",
)


@dataclass(frozen=True)
class Definition:
    """The packages, scripts and settings that decide what is in the image."""

    suite: str = "trixie"
    disk_size: str = "4G"
    packages: tuple[str, ...] = (
        "linux-image-amd64",
        "busybox-static",
        "systemd",
        "systemd-sysv",
        "dbus",
        "udev",
        "kmod",
        "procps",
        "iproute2",
        "curl",
        "jq",
        "openssl",
        "numactl",
        "prometheus",
        "prometheus-node-exporter",
        "python3",
        "python3-venv",
        "python3-pip",
        "python3-pydantic",
        "python3-yaml",
        "python3-cffi",
        "python3-prometheus-client",
        "python3-rich",
        "python3-systemd",
        "python3-bcrypt",
        "python3-pytest",
        "python3-pytest-timeout",
        "python3-hypothesis",
        "python3-jsonschema",
    )
    backports: tuple[str, ...] = ("linux-image-amd64", "qemu-system-x86")
    wheels: tuple[str, ...] = ("asyncvarlink==0.3.3",)
    unwanted_files: tuple[str, ...] = UNWANTED_FILES
    wanted_files: tuple[str, ...] = WANTED_FILES
    scripts: tuple[str, ...] = ("sources.sh", "customize.sh")

    def key(self) -> str:
        """Sixteen hex digits that change whenever the image would."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for name in self.scripts:
            digest.update((GUEST_FILES / name).read_bytes())
        return digest.hexdigest()[:16]
