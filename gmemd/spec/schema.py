"""JSON Schemas of VM specs, of the configuration and of web.yaml, for editors.

They accept what gmemd accepts, however an editor types its scalars, and refuse most of what it
refuses; what takes arithmetic (vCPUs used twice, page multiples) is left to ``gmemd check``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmemd.spec.config import DaemonConfig
from gmemd.spec.document import JsonSchema, VmDocument
from gmemd.spec.web import WebConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_WITHOUT_MEMDEV: JsonSchema = {
    "items": {
        "properties": {
            "memdev": False,
            "regions": {"items": {"properties": {"memdev": False}}},
        }
    }
}
_ONE_OF_ITS_KEYS: JsonSchema = {"minProperties": 1, "maxProperties": 1}


def vm_schema() -> JsonSchema:
    """Make the JSON Schema of a VM spec."""
    schema = _schema(VmDocument, "urn:gmemd:schema:vm:1", "gmemd VM spec")
    schema["required"] = ["version", "vm", "source"]
    schema["allOf"] = [
        _unless_source(["observe"], {"required": ["guest_nodes"]}),
        _unless_source(["register", "adopt"], {"properties": {"confidential": {"const": False}}}),
        _unless_source(["adopt", "observe"], {"not": {"required": ["match"]}}),
        _unless_source(["create", "register"], {"not": {"required": ["on_vmm_exit"]}}),
        _unless_source(["create", "register"], {"not": {"required": ["cgroup"]}}),
        _unless_source(["create", "register"], {"properties": {"prefault": {"const": False}}}),
        _unless_source(["adopt"], {"properties": {"guest_nodes": _WITHOUT_MEMDEV}}),
    ]
    schema["properties"]["guest_nodes"]["minItems"] = 1
    parts = schema["$defs"]
    parts["OwnerDocument"] |= _ONE_OF_ITS_KEYS
    parts["MatchDocument"] |= _ONE_OF_ITS_KEYS
    parts["RegionDocument"]["required"] = ["size"]
    node = parts["GuestNodeDocument"]
    node["required"] = ["id"]
    node["properties"]["regions"]["minItems"] = 1
    node["oneOf"] = [
        {"required": ["memory"], "not": {"required": ["regions"]}},
        {
            "required": ["regions"],
            "not": {
                "anyOf": [
                    {"required": [key]} for key in ("memory", "host_nodes", "policy", "memdev")
                ]
            },
        },
    ]
    return schema


def config_schema() -> JsonSchema:
    """Make the JSON Schema of the daemon's configuration."""
    schema = _schema(DaemonConfig, "urn:gmemd:schema:config:1", "gmemd configuration")
    for section in schema["properties"].values():
        if "$ref" in section:
            section.pop("default", None)
    return schema


def web_schema() -> JsonSchema:
    """Make the JSON Schema of web.yaml, as far as gmemd does what the format has."""
    schema = _schema(WebConfig, "urn:gmemd:schema:web:1", "gmemd web configuration")
    for section in schema["properties"].values():
        if "$ref" in section:
            section.pop("default", None)
    tls = schema["$defs"]["TlsConfig"]
    tls["allOf"] = [_one_of("cert", "cert_file"), _one_of("key", "key_file")]
    tls["not"] = {"required": ["client_ca", "client_ca_file"]}
    return schema


def _one_of(*keys: str) -> JsonSchema:
    """Make a rule that one of them is there, and only one."""
    return {"oneOf": [{"required": [key]} for key in keys]}


def _schema(model: type[BaseModel], identity: str, title: str) -> JsonSchema:
    schema = _tidy(model.model_json_schema())
    schema.pop("title", None)
    return {"$schema": DIALECT, "$id": identity, "title": title, **schema}


def _tidy(schema: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Leave out what pydantic adds of its own: titles from Python names, and null for a default."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    kept = {
        key: _tidy(value)
        for key, value in schema.items()
        if key not in {"title", "properties"} and not (key == "default" and value is None)
    }
    if kept.get("anyOf", [])[1:] == [{"type": "null"}]:
        kept |= kept.pop("anyOf")[0]
    if properties is not None:
        kept["properties"] = {name: _tidy(value) for name, value in properties.items()}
    return kept


def _unless_source(sources: list[str], rule: JsonSchema) -> JsonSchema:
    """Make a rule that holds for all other sources."""
    condition = {"properties": {"source": {"enum": sources}}, "required": ["source"]}
    return {"if": condition, "else": rule}
