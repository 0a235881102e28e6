from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.host.reading import read_host

if TYPE_CHECKING:
    from gmemd.host.model import Host

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"


def _fixture(name: str) -> object:
    @pytest.fixture(name=name.replace("-", "_"), scope="session")
    def host() -> Host:
        return read_host(HOSTS / name)

    return host


two_sockets = _fixture("two-sockets")
holes = _fixture("holes")
memoryless = _fixture("memoryless")
cxl = _fixture("cxl")
before_inode_policy = _fixture("before-inode-policy")
no_kvm = _fixture("no-kvm")
