"""The daemon's configuration: every key has a default that works."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from gmemd.spec import scalars
from gmemd.spec.document import (
    BOOLEAN_SCHEMA,
    PATH_SCHEMA,
    PERCENT_SCHEMA,
    SIZE_SCHEMA,
    JsonSchema,
    from_text,
    number_schema,
    read_version,
)
from gmemd.spec.loading import in_order, read_file
from gmemd.spec.model import Value
from gmemd.spec.problems import Fault, FieldError, FieldErrors, SpecError
from gmemd.spec.sizes import parse_size
from gmemd.spec.validate import validate
from gmemd.spec.yamltree import Document, read_document

CONFIG_PATH = Path("/etc/gmemd/gmemd.yaml")
"""Where the installed configuration is; it may be missing."""

ADDRESS_SCHEMA: JsonSchema = {
    "type": "string",
    "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*):[0-9]+$",
}

USER_SCHEMA: JsonSchema = {"type": ["string", "integer"], "pattern": f"^{scalars.USER}$"}


def each(parse: Callable[[str], object], what: str) -> BeforeValidator:
    """Parse one text or a list of texts to a tuple, telling every bad one's place."""

    def read(value: object) -> object:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, dict):
            raise FieldError(f"must be {what} or a list of them")
        if not isinstance(items, list):
            return value
        errors: list[FieldError] = []
        parsed: list[object] = []
        for index, item in enumerate(items):
            within = () if isinstance(value, str) else (index,)
            try:
                parsed.append(parse(item if isinstance(item, str) else ""))
            except FieldError as error:
                errors.append(FieldError(error.message, hint=error.hint, within=within))
        if errors:
            raise FieldErrors(errors)
        return tuple(parsed)

    return BeforeValidator(read)


def one_or_more(item: JsonSchema, least: int) -> WithJsonSchema:
    """Return the schema of an item or a list of them."""
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": least}]})


def _size_or_none(text: str) -> int:
    if text == "none":
        return 0
    try:
        return parse_size(text)
    except FieldError as error:
        hint = error.hint
        if re.fullmatch("0[A-Za-z]*|None|null|~|off|no|false", text):
            hint = "write none for nothing"
        raise FieldError(error.message, hint=hint) from error


Ratio: TypeAlias = Annotated[
    float, from_text(scalars.parse_percent, "a percentage"), WithJsonSchema(PERCENT_SCHEMA)
]
Bytes: TypeAlias = Annotated[
    int, from_text(parse_size, "a size such as 256MiB"), WithJsonSchema(SIZE_SCHEMA)
]
Seconds: TypeAlias = Annotated[
    float,
    from_text(scalars.parse_duration, "a time such as 60s"),
    WithJsonSchema({"type": "string", "pattern": f"^{scalars.DURATION}$"}),
]


class Section(Value):
    """A part of the configuration; made from the file's keys or from the fields' names."""

    model_config = ConfigDict(populate_by_name=True)


class MetricsConfig(Section):
    """Where metrics are served, and what protects them; an empty list serves none."""

    listen: Annotated[
        tuple[str, ...],
        each(scalars.parse_address, "ADDRESS:PORT"),
        one_or_more(ADDRESS_SCHEMA, 0),
        Field(description="TCP addresses that serve /metrics; an empty list serves none."),
    ] = ("127.0.0.1:9989",)
    web_config: Annotated[
        Path | None,
        from_text(scalars.parse_path, "a path"),
        WithJsonSchema(PATH_SCHEMA),
        Field(description="A web.yaml as Prometheus' exporters have it: TLS and passwords."),
    ] = None


class AuditConfig(Section):
    """When memory is audited, and what that may cost."""

    interval_seconds: Annotated[
        Seconds,
        Field(
            alias="interval",
            description="The time from one audit of a VM to the next.",
            json_schema_extra={"default": "60s"},
        ),
    ] = 60.0
    sample_pages: Annotated[
        int,
        from_text(scalars.parse_sample_pages, "a number of pages"),
        WithJsonSchema(number_schema(scalars.LEAST_SAMPLE_PAGES, scalars.MOST_SAMPLE_PAGES)),
        Field(
            alias="sample",
            description="Pages of each guest node that an audit looks at, where it draws them.",
        ),
    ] = 1024
    budget_ratio: Annotated[
        float,
        from_text(scalars.parse_cpu_share, "a percentage"),
        WithJsonSchema(PERCENT_SCHEMA),
        Field(
            alias="budget",
            description="The share of one CPU that periodic audits use at the most.",
            json_schema_extra={"default": "1%"},
        ),
    ] = 0.01
    page_tables_bytes: Annotated[
        int,
        from_text(_size_or_none, "a size such as 64MiB, or none"),
        WithJsonSchema({"anyOf": [SIZE_SCHEMA, {"const": "none"}]}),
        Field(
            alias="page_tables",
            description="What may be spent on keeping guest_memfds mapped between two looks.",
            json_schema_extra={"default": "64MiB"},
        ),
    ] = 64 << 20


class AdmissionConfig(Section):
    """What is kept free of every host node: the larger one of both."""

    reserve_ratio: Annotated[
        Ratio,
        Field(
            alias="reserve",
            description="The part of a node's memory that stays free.",
            json_schema_extra={"default": "2%"},
        ),
    ] = 0.02
    reserve_bytes: Annotated[
        Bytes,
        Field(
            alias="reserve_minimum",
            description="What stays free at least.",
            json_schema_extra={"default": "256MiB"},
        ),
    ] = 256 << 20


class DaemonConfig(Section):
    """The daemon's configuration."""

    version: Annotated[
        int,
        from_text(read_version, "1"),
        WithJsonSchema({"enum": [1, "1"]}),
        Field(description="The version of this format."),
    ] = 1
    vms_directories: Annotated[
        tuple[Path, ...],
        each(scalars.parse_path, "a directory"),
        one_or_more(PATH_SCHEMA, 1),
        Field(description="Directories of VM specs; of a VM in several, the first one's counts."),
    ] = (Path("/etc/gmemd/vms.d"), Path("/run/gmemd/vms.d"))
    socket: Annotated[
        Path,
        from_text(scalars.parse_path, "a path"),
        WithJsonSchema(PATH_SCHEMA),
        Field(description="The varlink socket."),
    ] = Path("/run/gmemd/io.gmemd")
    state_directory: Annotated[
        Path,
        from_text(scalars.parse_path, "a directory"),
        WithJsonSchema(PATH_SCHEMA),
        Field(description="Where what outlives the daemon is kept; made where missing."),
    ] = Path("/run/gmemd/state")
    inline_spec_users: Annotated[
        tuple[str, ...],
        each(scalars.parse_user, "a user"),
        one_or_more(USER_SCHEMA, 0),
        Field(description="Users besides root that may send a VM spec along with a call."),
    ] = ()
    discovery: Annotated[
        bool,
        from_text(scalars.parse_boolean, "true or false"),
        WithJsonSchema(BOOLEAN_SCHEMA),
        Field(description="Whether VMs that run on this host and have no spec are shown."),
    ] = True
    metrics: MetricsConfig = MetricsConfig()
    audit: AuditConfig = AuditConfig()
    admission: AdmissionConfig = AdmissionConfig()


def load_config(path: Path | str | None = None) -> DaemonConfig:
    """Read the configuration; raises SpecError with all problems at once.

    Without a path it is the installed one, and all defaults where that doesn't exist.
    """
    if path is None and not CONFIG_PATH.exists():
        return DaemonConfig()
    path = Path(path or CONFIG_PATH)
    return parse_config(read_file(path), file=str(path))


def parse_config(data: bytes, *, file: str) -> DaemonConfig:
    """Read the configuration from a file's bytes; a file of comments alone is all defaults."""
    document = read_document(data, file)
    if document.tree is None and not document.problems:
        return DaemonConfig()
    config = validate(document, DaemonConfig)
    if config is not None:
        _check_lists(document, config)
    if config is None or document.problems:
        raise SpecError(in_order(document))
    return config


def _check_lists(document: Document, config: DaemonConfig) -> None:
    if not config.vms_directories:
        document.report(Fault(("vms_directories",), "must have at least one directory"))
    for path, items in (
        (("vms_directories",), config.vms_directories),
        (("inline_spec_users",), config.inline_spec_users),
        (("metrics", "listen"), config.metrics.listen),
    ):
        for index, item in enumerate(items):
            if item in items[:index]:
                document.report(Fault((*path, index), "is in the list twice"))
