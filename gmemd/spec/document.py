"""A VM spec as it is written: every key optional, every value parsed from text.

What has to be there, and what excludes what, is told by `gmemd.spec.checks`, so that all errors
of a file come at once; `gmemd.spec.resolve` makes the `VmSpec` that the rest of gmemd reads. The
JSON Schema that editors use is made from these models.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

from gmemd.spec import nodeset, scalars
from gmemd.spec.model import CREATABLE, Backend, OnVmmExit, PolicyMode, Source, Value
from gmemd.spec.problems import FieldError
from gmemd.spec.sizes import parse_size

HIGHEST_GUEST_NODE = 1023
"""Linux guests have at most 1024 NUMA nodes."""

MOST_GUEST_NODES = 256
"""Twice as many as any VMM makes (QEMU has 128)."""

NODESET_PATTERN = r"^\s*\^?[0-9]+(\s*-\s*[0-9]+)?(\s*,\s*\^?[0-9]+(\s*-\s*[0-9]+)?)*\s*$"
SIZE_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*[KMGTP]iB?\s*$"
PAGE_SIZES = {"4KiB": 1 << 12, "2MiB": 1 << 21, "1GiB": 1 << 30}

JsonSchema: TypeAlias = dict[str, Any]


def from_text(parse: Callable[[str], object], what: str) -> BeforeValidator:
    """Parse texts; anything typed already is left for pydantic to check."""

    def read(value: object) -> object:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, dict | list):
            raise FieldError(f"must be {what}")
        return value

    return BeforeValidator(read)


def number_schema(lowest: int, highest: int) -> JsonSchema:
    """Return the schema of a whole number, which may be written as text."""
    return {
        "type": ["integer", "string"],
        "minimum": lowest,
        "maximum": highest,
        "pattern": "^[0-9]+$",
    }


def words_schema(*words: str) -> JsonSchema:
    """Return the schema of a choice of words."""
    return {"type": "string", "enum": list(words)}


BOOLEAN_SCHEMA: JsonSchema = {"type": "boolean"}
PERCENT_SCHEMA: JsonSchema = {"type": "string", "pattern": f"^{scalars.PERCENT}$"}
PATH_SCHEMA: JsonSchema = {"type": "string", "pattern": "^/"}
SIZE_SCHEMA: JsonSchema = {
    "type": "string",
    "pattern": SIZE_PATTERN,
    "examples": ["512MiB", "16GiB"],
}


def _set_schema(highest: int, *examples: object) -> JsonSchema:
    one = {
        "type": ["integer", "string"],
        "minimum": 0,
        "maximum": highest,
        "pattern": NODESET_PATTERN,
    }
    return {
        "anyOf": [one, {"type": "array", "items": one, "minItems": 1}],
        "examples": list(examples),
    }


def _read_nodes(value: object) -> object:
    if isinstance(value, list):
        return nodeset.parse_nodeset_list(value)
    return nodeset.parse_nodeset(value) if isinstance(value, str) else _no_mapping(value)


def _read_vcpus(value: object) -> object:
    if isinstance(value, list):
        return nodeset.parse_vcpu_list(value)
    return nodeset.parse_vcpus(value) if isinstance(value, str) else _no_mapping(value)


def _no_mapping(value: object) -> object:
    if isinstance(value, dict):
        raise FieldError("must be a set of numbers such as 0-3 or [0, 2]")
    return value


def _read_distances(value: object) -> object:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return scalars.parse_distances(value, HIGHEST_GUEST_NODE)
    raise FieldError("must be a mapping of guest node ids to distances, like {1: 21}")


def _read_page_size(text: str) -> int:
    try:
        size = parse_size(text)
    except FieldError as error:
        raise FieldError(f"must be one of {', '.join(PAGE_SIZES)}", hint=error.hint) from None
    if size not in PAGE_SIZES.values():
        raise FieldError(f"must be one of {', '.join(PAGE_SIZES)}")
    return size


def read_version(text: str) -> int:
    """Read the version of a format: there is only 1."""
    if text == "1":
        return 1
    raise FieldError("must be 1, the only version of this format")


Version = Annotated[
    int | None,
    from_text(read_version, "1"),
    WithJsonSchema({"enum": [1, "1"]}),
    Field(description="The version of this format."),
]
Boolean = Annotated[
    bool | None, from_text(scalars.parse_boolean, "true or false"), WithJsonSchema(BOOLEAN_SCHEMA)
]
Size = Annotated[
    int | None, from_text(parse_size, "a size such as 16GiB"), WithJsonSchema(SIZE_SCHEMA)
]
PageSize = Annotated[
    int | None,
    from_text(_read_page_size, "a page size"),
    WithJsonSchema(words_schema(*PAGE_SIZES, *(size.removesuffix("B") for size in PAGE_SIZES))),
    Field(description="With backend memfd: the size of its pages; default 4KiB."),
]
HostNodes = Annotated[
    frozenset[int] | None,
    BeforeValidator(_read_nodes),
    WithJsonSchema(_set_schema(nodeset.HIGHEST_NODE, 0, "0-3,^1", [0, 2])),
    Field(description="The host nodes that the policy names, or that are expected."),
]
Vcpus = Annotated[
    tuple[int, ...] | None,
    BeforeValidator(_read_vcpus),
    WithJsonSchema(_set_schema(nodeset.HIGHEST_VCPU, "0-7,16-23")),
    Field(description="The vCPUs of the guest node; none: a node of memory only."),
]
Distances = Annotated[
    dict[int, int] | None,
    BeforeValidator(_read_distances),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {
                "^[0-9]+$": number_schema(scalars.NEAREST_DISTANCE, scalars.FARTHEST_DISTANCE)
            },
            "additionalProperties": False,
        }
    ),
    Field(description="Distances to other guest nodes by id; given once, they count both ways."),
]
BackendWord = Annotated[
    Backend | None,
    from_text(scalars.choice_parser(CREATABLE), "a word"),
    WithJsonSchema(words_schema(*CREATABLE)),
    Field(description="What the memory is; default guest_memfd."),
]
PolicyWord = Annotated[
    PolicyMode | None,
    from_text(scalars.choice_parser(PolicyMode), "a word"),
    WithJsonSchema(words_schema(*PolicyMode)),
    Field(
        description="The kernel memory policy; default bind with host_nodes, default without. "
        "default with host_nodes sets nothing and expects these."
    ),
]
Prefault = Annotated[
    Boolean,
    Field(
        description="Allocate all of it at once; default true with source create where host nodes "
        "are named. Not with adopt and observe."
    ),
]
Word = Annotated[
    str | None,
    from_text(lambda text: text, "a word"),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1}),
]
Memdev = Annotated[
    Word, Field(description="With source adopt: the VMM's backend that it is (QEMU's -object id).")
]
FilePath = Annotated[
    str | None, from_text(scalars.parse_path, "a path"), WithJsonSchema(PATH_SCHEMA)
]


class OwnerDocument(Value):
    """Who may use the VM's memory, and see all of the VM, besides root: one of these."""

    unit: Word = None
    user: Word = None
    group: Word = None


class MatchDocument(Value):
    """How a running VMM is found: one of these."""

    qemu_name: Word = None
    unit: Word = None
    cgroup: FilePath = None
    pidfile: FilePath = None


class RegionDocument(Value):
    """A piece of a guest node's memory."""

    size: Annotated[Size, Field(description="A size with an IEC unit.")] = None
    host_nodes: HostNodes = None
    policy: PolicyWord = None
    backend: BackendWord = None
    page_size: PageSize = None
    prefault: Prefault = None
    memdev: Memdev = None


class GuestNodeDocument(Value):
    """A NUMA node that the VM sees, in the short form (memory) or the long one (regions)."""

    id: Annotated[
        int | None,
        from_text(
            lambda text: scalars.parse_whole_number(text, lowest=0, highest=HIGHEST_GUEST_NODE),
            "a number",
        ),
        WithJsonSchema(number_schema(0, HIGHEST_GUEST_NODE)),
        Field(description="The guest node's number."),
    ] = None
    vcpus: Vcpus = None
    memory: Annotated[Size, Field(description="The short form: its size, with an IEC unit.")] = None
    host_nodes: HostNodes = None
    policy: PolicyWord = None
    distances: Distances = None
    backend: BackendWord = None
    page_size: PageSize = None
    prefault: Prefault = None
    memdev: Memdev = None
    regions: Annotated[
        tuple[RegionDocument, ...] | None,
        Field(description="The long form: its memory in pieces."),
    ] = None


class VmDocument(Value):
    """A VM: its guest nodes, their sizes, vCPUs and distances, and where each may live."""

    version: Version = None
    vm: Annotated[
        str | None,
        from_text(scalars.parse_vm_name, "a name"),
        WithJsonSchema({"type": ["string", "integer"], "pattern": f"^{scalars.VM_NAME}$"}),
        Field(description="The VM's name: the file's, without .yaml."),
    ] = None
    source: Annotated[
        Source | None,
        from_text(scalars.choice_parser(Source), "a word"),
        WithJsonSchema(words_schema(*Source)),
        Field(description="Where the memory comes from."),
    ] = None
    backend: BackendWord = None
    page_size: PageSize = None
    prefault: Prefault = None
    confidential: Annotated[
        Boolean, Field(description="With register and adopt: memory that is never read.")
    ] = None
    on_vmm_exit: Annotated[
        OnVmmExit | None,
        from_text(scalars.choice_parser(OnVmmExit), "a word"),
        WithJsonSchema(words_schema(*OnVmmExit)),
        Field(
            description="With create and register: what becomes of the memory when the VMM exits; "
            "default release."
        ),
    ] = None
    cgroup: Annotated[
        str | None,
        from_text(scalars.parse_cgroup, "none, peer or a path"),
        WithJsonSchema({"type": "string", "pattern": "^(none|peer|/.*)$"}),
        Field(
            description="With create and register: who pays for prefaulted pages: none, peer, or a "
            "cgroup's path."
        ),
    ] = None
    owner: OwnerDocument | None = None
    match: MatchDocument | None = None
    drift_tolerance: Annotated[
        float | None,
        from_text(scalars.parse_percent, "a percentage"),
        WithJsonSchema(PERCENT_SCHEMA),
        Field(description="How much of a guest node may be misplaced; default 1%."),
    ] = None
    guest_nodes: tuple[GuestNodeDocument, ...] | None = None
