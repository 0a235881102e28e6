from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from gmemd.cli.main import main


@pytest.mark.parametrize("name", ["vm", "config", "web"])
def test_one_schema_is_what_an_editor_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:gmemd:schema:{name}:1"


def test_all_are_in_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schemas = json.loads(capsys.readouterr().out)
    assert list(schemas) == ["version", "vm", "config", "web"]
    assert schemas["version"] == 1


def test_other_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "prometheus"]) == 2
    assert "invalid choice" in capsys.readouterr().err
