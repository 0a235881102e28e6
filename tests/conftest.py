"""What all tests share: the lab, for those that this host can't run, and hypothesis's settings."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from hypothesis import settings

from tests.lab import pytest_guest, pytest_host

if TYPE_CHECKING:
    import pytest

IN_LAB = os.environ.get("GMEMD_LAB") == "1"

# An emulated machine is ten times slower, and how long an example takes is nowhere asserted.
settings.register_profile("gmemd", deadline=None)
settings.load_profile("gmemd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-lab",
        action="store_true",
        help="leave out the tests that run in the emulated four-node hypervisor",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab(variant): runs in the lab, in that kind of machine")
    config.addinivalue_line(
        "markers", "needs(*features): runs in the lab if this host lacks one of the features"
    )
    _heed_signals()
    if IN_LAB:
        pytest_guest.register(config)
    else:
        config.pluginmanager.register(pytest_host.LabRouting(), "gmemd-lab-routing")


def _heed_signals() -> None:
    """What a shell's ``&`` has ignored is told again to whom tests send it: programs inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
