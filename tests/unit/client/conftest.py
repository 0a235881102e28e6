from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.client.stub import Stub, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with serving(tmp_path / "io.gmemd") as stub:
        yield stub
