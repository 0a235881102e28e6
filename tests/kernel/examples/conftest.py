from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gmemd.client import Client
from tests.kernel.daemon.conftest import Daemon

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    made = Daemon(tmp_path)
    made.configure()
    return made


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return Client(daemon.socket)
