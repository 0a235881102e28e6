"""Specs that came with a call, as files."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.inline import InlineSpecError, InlineSpecs
from gmemd.spec.loading import load_directory
from gmemd.spec.problems import SpecError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "version: 1\nvm: a\nsource: create\nguest_nodes: [{id: 0, memory: 8MiB}]\n"


def test_what_is_kept_is_what_a_start_reads(tmp_path: Path) -> None:
    specs = InlineSpecs(tmp_path / "state")
    spec = specs.parse("a", TEXT)
    specs.store("a", TEXT)
    assert load_directory([specs.directory]).specs == (spec,)
    assert specs.has(spec)
    assert stat.S_IMODE(specs.directory.stat().st_mode) & 0o007 == 0
    specs.forget("a")
    specs.forget("a")
    assert not list(specs.directory.iterdir())


def test_a_file_of_the_operators_is_none(tmp_path: Path) -> None:
    specs = InlineSpecs(tmp_path / "state")
    spec = specs.parse("a", TEXT)
    assert not specs.has(spec.model_copy(update={"path": str(tmp_path / "a.yaml")}))
    assert not specs.has(None)


def test_json_is_a_spec_and_another_name_is_wrong(tmp_path: Path) -> None:
    specs = InlineSpecs(tmp_path)
    nodes = '[{"id": 0, "memory": "1GiB"}]'
    json = f'{{"version": 1, "vm": "a", "source": "create", "guest_nodes": {nodes}}}'
    assert specs.parse("a", json).size_bytes == 1 << 30
    with pytest.raises(SpecError) as wrong:
        specs.parse("b", TEXT)
    assert [problem.key for problem in wrong.value.problems] == ["vm"]


def test_a_directory_that_can_not_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    with pytest.raises(InlineSpecError, match="keeping the spec in"):
        InlineSpecs(tmp_path / "state").store("a", TEXT)
