import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import definition
from tests.lab.definition import Definition


def test_the_key_is_short_and_stable() -> None:
    assert re.fullmatch("[0-9a-f]{16}", Definition().key())
    assert Definition().key() == Definition().key()


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "forky"},
        {"disk_size": "8G"},
        {"packages": ("systemd",)},
        {"backports": ()},
        {"wheels": ("asyncvarlink==0.3.2",)},
        {"unwanted_files": ()},
        {"wanted_files": ()},
    ],
)
def test_every_part_changes_the_key(change: dict[str, object]) -> None:
    assert replace(Definition(), **change).key() != Definition().key()


def test_a_changed_script_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Definition().key()
    for name in Definition().scripts:
        (tmp_path / name).write_bytes((definition.GUEST_FILES / name).read_bytes())
    monkeypatch.setattr(definition, "GUEST_FILES", tmp_path)
    assert Definition().key() == before
    with (tmp_path / "customize.sh").open("a") as script:
        script.write("true\n")
    assert Definition().key() != before


def test_no_host_is_named() -> None:
    for path in definition.GUEST_FILES.iterdir():
        assert "http" not in path.read_text()
