"""What systemd says over D-Bus of this service's fd store: which names are in it.

It is asked with busctl, which comes with systemd; everybody may ask. All of this blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from typing import Any

from gmemd.errors import GmemdError
from gmemd.host.vms.holders import read_facts

SECONDS = 15.0
_SYSTEMD = "org.freedesktop.systemd1"
_ASK = (
    "busctl",
    "--system",
    "--json=short",
    f"--timeout={SECONDS:g}",
    "call",
    _SYSTEMD,
    "/org/freedesktop/systemd1",
    f"{_SYSTEMD}.Manager",
    "DumpUnitFileDescriptorStore",
    "s",
)


class NotToldError(GmemdError):
    """systemd didn't say what is in the store."""


def own_unit() -> str:
    """The unit that this process is of; empty where it is of none."""
    return read_facts(os.getpid()).unit


def stored_names(unit: str) -> Counter[str]:
    """How often each name is in a unit's fd store; raises NotToldError.

    systemd tells since version 254.
    """
    try:
        done = subprocess.run(
            [*_ASK, unit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToldError(f"asking systemd with busctl: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise NotToldError(f"asking systemd with busctl: {said or done.returncode}")
    try:
        told: Any = json.loads(done.stdout)
        return Counter(str(entry[0]) for entry in told["data"][0])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise NotToldError("asking systemd with busctl: the answer is not understood") from error
