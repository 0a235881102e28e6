"""What systemd says over D-Bus of this service's fd store: how many are in it, and how many may be.

It is asked with busctl, which comes with systemd; everybody may ask. All of this blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass

from gmemd.errors import GmemdError
from gmemd.host.vms.holders import read_facts

SECONDS = 15.0
_SYSTEMD = "org.freedesktop.systemd1"
_PROPERTIES = ("NFileDescriptorStore", "FileDescriptorStoreMax")


class NotToldError(GmemdError):
    """systemd didn't say what is in the store."""


@dataclass(frozen=True, slots=True)
class Told:
    """How many descriptors the store has, and how many it takes."""

    stored: int
    limit: int


def own_unit() -> str:
    """The unit that this process is of; empty where it is of none."""
    return read_facts(os.getpid()).unit


def ask(unit: str) -> Told:
    """Ask for a unit's fd store; raises NotToldError."""
    path = f"/org/freedesktop/systemd1/unit/{_escaped(unit)}"
    command = ["busctl", "--system", "--json=short", f"--timeout={SECONDS:g}", "get-property"]
    command += [_SYSTEMD, path, f"{_SYSTEMD}.Service", *_PROPERTIES]
    try:
        done = subprocess.run(
            command,
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
        stored, limit = (int(json.loads(line)["data"]) for line in done.stdout.splitlines())
    except (ValueError, KeyError, TypeError) as error:
        raise NotToldError("asking systemd with busctl: the answer is not understood") from error
    return Told(stored, limit)


def _escaped(unit: str) -> str:
    """A unit's name as a part of an object's path, as sd_bus_path_encode(3) has it."""
    return "".join(
        char
        if char.isascii() and (char.isalpha() or (char.isdigit() and at))
        else f"_{ord(char):02x}"
        for at, char in enumerate(unit)
    )
