"""The JSON Schemas against the examples and the broken specs, as an editor would use them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from gmemd.spec.config import DaemonConfig, parse_config
from gmemd.spec.document import JsonSchema
from gmemd.spec.loading import parse_spec
from gmemd.spec.schema import config_schema, vm_schema, web_schema

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "config" / "vms.d").glob("*.yaml"))
BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))

ONLY_CHECK_TELLS = {
    "bind-without-nodes",
    "cgroup-dotdot",
    "confidential-memfd",
    "distance-conflict",
    "distance-to-itself",
    "distance-to-nowhere",
    "distance-too-near",
    "escaped-nul",
    "huge-size",
    "id-twice",
    "local-with-nodes",
    "memdev-twice",
    "nodeset-backwards",
    "nodeset-excludes-all",
    "nodeset-excludes-stranger",
    "nodeset-out-of-range",
    "not-a-hugepage-multiple",
    "odd-size",
    "other-name",
    "page-size-of-one-region",
    "page-size-without-memfd",
    "prefault-nowhere",
    "preferred-several",
    "tolerance-over",
    "vcpu-out-of-range",
    "vcpu-twice",
    "zero-size",
    # YAML 1.1 hides these from the schema: yes is true, 16:20 is 980, a key counts once.
    "duplicate-key",
    "duplicate-nested-key",
    "nodeset-sexagesimal",
    "yaml-boolean",
}


def as_json(value: object) -> object:
    """Keys are strings in JSON, as editors have it."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


def errors(schema: JsonSchema, path: Path) -> list[str]:
    value = as_json(yaml.safe_load(path.read_bytes()))
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


@pytest.mark.parametrize(
    "schema", [vm_schema(), config_schema(), web_schema()], ids=["vm", "config", "web"]
)
def test_they_are_json_schemas(schema: JsonSchema) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert "default': None" not in str(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_for_both(path: Path) -> None:
    spec = parse_spec(path.read_bytes(), file=str(path), stem=path.stem)
    assert spec.vm == path.stem
    assert errors(vm_schema(), path) == []


def test_the_examples_are_these() -> None:
    names = {"two-nodes", "four-nodes", "hugepages", "regions"}
    names |= {"observed", "adopted", "registered"}
    assert {path.stem for path in EXAMPLES} == names


def test_the_example_configuration_is_valid() -> None:
    assert errors(config_schema(), ROOT / "config" / "gmemd.yaml") == []


def test_numbers_and_texts_are_both_accepted(tmp_path: Path) -> None:
    for quote in ("", "'"):
        path = tmp_path / "7.yaml"
        path.write_text(
            "version: Q1Q\nvm: Q7Q\nsource: adopt\nmatch: {unit: Q7Q}\nguest_nodes:\n"
            "  - {id: Q0Q, vcpus: Q3Q, memory: Q1GiBQ, host_nodes: [Q0Q, 2-3], "
            "policy: interleave, distances: {Q0Q: Q10Q}}\n".replace("Q", quote)
        )
        assert errors(vm_schema(), path) == []
        parse_spec(path.read_bytes(), file=str(path), stem="7")


def loadable() -> Iterator[Path]:
    for path in BROKEN:
        try:
            yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            continue
        yield path


@pytest.mark.parametrize("path", [*loadable()], ids=lambda path: path.stem)
def test_what_editors_can_tell_they_do(path: Path) -> None:
    assert bool(errors(vm_schema(), path)) != (path.stem in ONLY_CHECK_TELLS)


def test_the_configuration_s_defaults_are_said_as_they_are_written() -> None:
    schema = config_schema()
    assert schema["$defs"]["AuditConfig"]["properties"]["interval"]["default"] == "60s"
    admission = schema["$defs"]["AdmissionConfig"]["properties"]
    text = (
        f"audit: {{interval: 60s}}\nadmission: {{reserve: {admission['reserve']['default']}, "
        f"reserve_minimum: {admission['reserve_minimum']['default']}}}\n"
    )
    assert parse_config(text.encode(), file="g.yaml") == DaemonConfig()
