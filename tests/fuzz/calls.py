"""Varlink messages by the interface's own types: right, nearly right, and nothing of the kind."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.fuzz import yamls
from tests.fuzz.mutation import mutate
from tests.fuzz.yamls import REPOSITORY

if TYPE_CHECKING:
    from random import Random

INTERFACE = (REPOSITORY / "gmemd/daemon/varlink/io.gmemd.varlink").read_text()
VMS = ("theirs", "offered", "taken", "observed", "missing")
"""Names that messages use; the daemon under test has the first four."""

INLINE_VMS = ("f-0", "f-1", "f-2")
MOST_FDS = 253
MIB = 1 << 20

_METHOD = re.compile(r"^method (\w+)\(([^)]*)\)", re.MULTILINE)
_FIELD = re.compile(r"(\w+): ([?\[\]\w]+)")
METHODS = {name: dict(_FIELD.findall(fields)) for name, fields in _METHOD.findall(INTERFACE)}
"""Each method's parameters, and their types, as the interface says them."""

_SERVICE = "org.varlink.service"
_OF_ALL_SERVICES: tuple[tuple[str, dict[str, str]], ...] = (
    ("GetInfo", {}),
    ("GetInterfaceDescription", {"interface": "string"}),
)
ENDS = ("reply", "reply", "reply", "reply", "reply", "hang up", "half", "end", "no reading")
_INTEGERS = (
    0,
    1,
    2,
    -1,
    3,
    255,
    256,
    4096,
    8 * MIB,
    1 << 31,
    1 << 32,
    1 << 63,
    1 << 64,
    -(1 << 63),
)
_STRINGS = (
    "",
    "a",
    "x" * 300,
    "\0",
    "\ud800",
    "\u202e",
    "../../a",
    "/",
    "a\nb",
    "😀",
    "-",
    "*",
    "%s",
)
_ANY: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        "",
        "a",
        [],
        {},
        [[]],
        [None],
        {"": 0},
        {"a": {"b": []}},
    ),
    *(float("nan"), float("inf"), 10**400, "x" * 5000, [0] * 3000, ["a"] * 100),
)


@dataclass(frozen=True)
class Message:
    """What is sent: pieces of bytes, each with so many file descriptors of those kinds; and then.

    ``end`` is ``reply`` (read it), ``hang up``, ``half`` (hang up before the end), ``end`` (say
    that nothing more comes, and read), ``no reading`` (leave it at that, and don't hang up).
    ``call`` says that it is a call as it should be, which is answered.
    """

    pieces: tuple[tuple[bytes, tuple[int, ...]], ...]
    end: str
    uid: int
    call: bool


def make(rng: Random) -> Message:
    """One message, and what the one who sent it does then."""
    end = rng.choice(ENDS)
    uid = rng.choice((0, 0, 0, STRANGER, OWNER))
    kind = rng.random()
    if kind < 0.55:
        call = _call(rng)
        content = _spelled(call) + b"\0"
        if end == "half":
            content = content[: rng.randrange(len(content))]
        pieces = _in_pieces(rng, content, _fds(rng))
        n_fds = sum(len(fds) for _, fds in pieces)
        return Message(pieces, end, uid, call=end == "reply" and n_fds <= MOST_FDS)
    if kind < 0.85:
        content = mutate(rng, _spelled(_call(rng)), _JSON_WORDS) + b"\0"
    elif kind < 0.97:
        content = _flood(rng)
    else:
        content = _spelled(_call(rng)) + b"\0" + _spelled(_call(rng)) + b"\0" * rng.randrange(3)
    return Message(_in_pieces(rng, content, _fds(rng)), end, uid, call=False)


STRANGER, OWNER = 54321, 54322

_JSON_WORDS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"NaN", b"-Infinity"),
    *(b"1e999", b"\\u0000"),
    *(b'"method"', b'"parameters"', b'"more": true', b'"oneway": true', b'"upgrade": true'),
    b"io.gmemd.",
    *(b'"\\ud800"', b"[" * 200, b'{"a":' * 200, b"\0", b'"vm": "theirs"', b'{"method": 1}\0'),
)  # fmt: skip


def _call(rng: Random) -> dict[str, Any]:
    """A call whose parameters are mostly of their types."""
    called: dict[str, Any] = {}
    if rng.random() < 0.06:
        name, fields = rng.choice(_OF_ALL_SERVICES)
        called["method"] = f"{_SERVICE}.{name}"
    else:
        name = rng.choice(list(METHODS))
        fields = METHODS[name]
        called["method"] = f"io.gmemd.{name}"
    parameters = {key: _value(rng, key, kind) for key, kind in fields.items() if _wanted(rng, kind)}
    if rng.random() < 0.04:
        parameters[rng.choice(("x", "", "vm", "regions"))] = rng.choice(_ANY)
    if parameters or rng.random() < 0.9:
        called["parameters"] = parameters
    if rng.random() < 0.3:
        called[rng.choice(("more", "more", "oneway", "upgrade"))] = rng.random() < 0.9
    if rng.random() < 0.04:
        called[rng.choice(("method", "parameters", "more", "oneway", "x"))] = rng.choice(_ANY)
    return called


def _wanted(rng: Random, kind: str) -> bool:
    return rng.random() < (0.35 if kind.startswith("?") else 0.97)


def _value(rng: Random, key: str, kind: str) -> Any:  # noqa: ANN401  whatever JSON has
    if rng.random() < 0.06:
        return rng.choice(_ANY)
    kind = kind.removeprefix("?")
    if kind.startswith("[]"):
        n = rng.choice((0, 1, 1, 1, 2, 3, 17))
        return [_value(rng, key, kind.removeprefix("[]")) for _ in range(n)]
    if kind == "OfferedRegion":
        return {name: rng.choice(values) for name, values in _OFFERED.items()}
    if key == "spec" and rng.random() < _MOSTLY:
        return inline_spec(rng)
    return rng.choice(_BY_KEY.get(key) or _BY_TYPE[kind])


_MOSTLY = 0.9
_OFFERED = {
    "guest_node": (0, 0, 1, -1),
    "fd_index": (0, 0, 0, 1, 2, -1, 300),
    "offset": (0, 0, 0, 4096, 1, -4096),
    "size": (8 * MIB, 8 * MIB, 4 * MIB, 0, 1 << 62),
}
_BY_KEY: dict[str, tuple[object, ...]] = {
    "vm": (*VMS, *VMS, *INLINE_VMS, *_STRINGS),
    "pid": (os.getpid(), 0, -1, 1 << 31, 999_999_999),
    "timeout_ms": (0, 1, 10, 100, -1, 1 << 62),
}
_BY_TYPE: dict[str, tuple[object, ...]] = {
    "bool": (True, False),
    "int": _INTEGERS,
    "float": (0.0, 0.01, 0.05, 0.95, 1.0, -1.0, 1e308, 3),
    "string": (*_STRINGS, "io.gmemd", _SERVICE),
}


_SIZES = ("4MiB", "8MiB", "64KiB")


def inline_spec(rng: Random) -> str:
    """A small VM's spec, or a damaged one; none asks for much memory."""
    vm = rng.choice(INLINE_VMS)
    source = rng.choice(("create", "create", "register", "adopt", "observe"))
    keep = rng.choice(("release", "release", "keep"))
    text = (
        f"version: 1\nvm: {vm}\nsource: {source}\n"
        + (f"on_vmm_exit: {keep}\nbackend: memfd\n" if source in {"create", "register"} else "")
        + "guest_nodes:\n"
        + "".join(
            f"  - {{id: {number}, memory: {rng.choice(_SIZES)}, host_nodes: 0}}\n"
            for number in range(rng.choice((1, 1, 2)))
        )
    )
    if rng.random() < 0.4:
        text = mutate(rng, text.encode(), yamls.ODD_WORDS).decode("utf-8", "surrogateescape")
    return text


def _spelled(call: dict[str, Any]) -> bytes:
    return json.dumps(call).encode()


def _flood(rng: Random) -> bytes:
    """Much of one thing; small ones are frequent, and few are as large as a message may be."""
    size = rng.choice((1, 10, 100, 1000, 1000, 10_000, 10_000, 100_000, MIB - 1, MIB, MIB + 5))
    if rng.random() < 0.9:
        size = min(size, 1000)
    unit = rng.choice(
        (b"\0", b"[", b'{"a":', b"9", b'"', b"\xff", b" ", b"{}\0", b"[]\0", b"{", b"\\u0000")
    )
    content = (unit * (size // len(unit) + 1))[:size]
    opening = rng.choice((b"", b"", b'{"method": "', b'{"method": ', b'{"parameters": {"vm": "'))
    return opening + content + b"\0"


def _fds(rng: Random) -> tuple[int, ...]:
    """File descriptors, by their place in `Fds`; mostly none."""
    chance = rng.random()
    if chance < 0.6:
        return ()
    if chance < 0.9:
        return tuple(rng.randrange(N_FDS) for _ in range(rng.choice((1, 1, 2, 3))))
    return tuple(rng.randrange(N_FDS) for _ in range(rng.choice((10, 100, 253, 253))))


N_FDS = 16


def _in_pieces(
    rng: Random, content: bytes, fds: tuple[int, ...]
) -> tuple[tuple[bytes, tuple[int, ...]], ...]:
    """All at once, or in two parts with file descriptors each."""
    if rng.random() < 0.85 or len(content) < 2:
        return ((content, fds),)
    at = rng.randrange(1, len(content))
    return ((content[:at], fds), (content[at:], fds if rng.random() < 0.5 else ()))
