"""What systemd is told: ready, reloading, stopping, status, and that the daemon is alive.

It goes through systemd-python where that is installed; else the same datagram is sent from here,
since a Type=notify unit that never says READY=1 is killed.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from typing import Any

log = logging.getLogger(__name__)


def systemd_python(module: str) -> Any | None:  # noqa: ANN401  systemd-python has no types
    """A module of systemd-python, an extra; None where it isn't installed."""
    try:
        return importlib.import_module(f"systemd.{module}")
    except ImportError:
        return None


class Notifier:
    """Tells systemd; outside of systemd it does nothing."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._last_status = ""

    def ready(self) -> None:
        """Say that the API serves and every spec is at least being worked on."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload began; ready() ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """Say that the daemon is on its way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for more time to stop, since memory is being freed."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def status(self, line: str) -> None:
        """Set the line that `systemctl status` shows, if it is another than before."""
        if line != self._last_status:
            self._last_status = line
            self._send(f"STATUS={line}")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        daemon = systemd_python("daemon")
        if daemon is None:
            self._send_datagram(state)
        else:
            daemon.notify(state)

    def _send_datagram(self, state: str) -> None:
        """Send it as sd_notify(3) does; an address that begins with @ is in the abstract space."""
        address = self._address
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(state.encode(), address)
        except OSError as error:
            log.warning("telling systemd failed: %s", error)


def watchdog_seconds() -> float | None:
    """The longest time that systemd lets pass without a sign of life; None: it doesn't watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000


def missing_extra() -> str | None:
    """What to log where systemd started this process and systemd-python is absent."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return None
    if systemd_python("daemon") is None:
        return (
            "systemd-python is not installed: readiness and watchdog are told all the same, "
            "log lines reach the journal without fields (pip install 'gmemd[systemd]')"
        )
    return None
