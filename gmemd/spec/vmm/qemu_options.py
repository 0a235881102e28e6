"""QEMU's command line: its options, what stands inside them, and its sizes.

An option's value is ``first,key=value,key=value`` with ``,,`` for a comma inside a value, or JSON
where it begins with a brace. Both become an `OptionGroup` of text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from gmemd.spec.vmm.values import LARGEST_BYTES, NotUnderstood, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# These take the next word whatever it looks like; others only one that doesn't begin with a dash,
# so that flags needn't be known.
_TAKE_ANY_WORD = frozenset(
    {
        *("M", "machine", "device", "m", "mem-path", "name", "numa", "object", "readconfig"),
        *("smbios", "uuid"),
        *("append", "dtb", "fw_cfg", "initrd", "kernel", "pidfile", "title"),
    }
)
_ITEM = re.compile(r"([^=,]*+)(=?)((?:[^,]++|,,)*+)(,|\Z)")
_INDEX = re.compile(r"\.[0-9]+\Z")
_DECIMAL = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?)([bBkKmMgGtTpPeE]?)")
_HEXADECIMAL = re.compile(r"0[xX]([0-9a-fA-F]{1,16})([kKmMgGtTpP]?)")
_SUFFIXES = "bkmgtpe"


@dataclass(frozen=True, slots=True)
class Option:
    """An option without its dashes, and its value; a word that belongs to none has no ``name``."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """The values of each key, in order. JSON's numbers, switches and lists are text here too."""

    values: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def get(self, key: str, default: str = "") -> str:
        """The key's last value, which is the one that counts; ``default`` where it has none."""
        return self.values[key][-1] if self.values.get(key) else default

    def every(self, key: str) -> Sequence[str]:
        """All values of a key that makes a list, in order."""
        return self.values.get(key, ())

    def __contains__(self, key: str) -> bool:
        return bool(self.values.get(key))


def read_options(argv: Sequence[str]) -> Iterator[Option]:
    """Yield the options of a command line, whose first word is the program."""
    words = iter(argv[1:])
    word = next(words, None)
    while word is not None:
        following = next(words, None)
        if not word.startswith("-") or word in {"-", "--"}:
            yield Option("", word)
        else:
            name = word[2:] if word.startswith("--") else word[1:]
            if following is None:
                yield Option(name, "")
            elif name in _TAKE_ANY_WORD or not following.startswith("-"):
                yield Option(name, following)
                following = next(words, None)
            else:
                yield Option(name, "")
        word = following


def read_group(text: str, first_key: str) -> OptionGroup:
    """Read an option's value; ``first_key`` is what a first item without a key is the value of.

    An index in a key, as in ``host-nodes.0``, is dropped. Raises NotUnderstood.
    """
    values: dict[str, list[str]] = {}
    items = _json_items(text) if text.lstrip().startswith("{") else _plain_items(text, first_key)
    for key, value in items:
        values.setdefault(_INDEX.sub("", key), []).append(value)
    return OptionGroup(values)


def merge_groups(groups: Sequence[OptionGroup]) -> OptionGroup:
    """One group of several; QEMU takes some options together when they are repeated."""
    values: dict[str, list[str]] = {}
    for group in groups:
        for key, found in group.values.items():
            values.setdefault(key, []).extend(found)
    return OptionGroup(values)


def read_size(text: str, *, unit: int = 1) -> int:
    """Read bytes from QEMU's size syntax: ``1.5G``, ``4096``, ``0x1000``; suffixes are binary.

    ``unit`` is what a bare number counts. Raises NotUnderstood.
    Source: qemu_strtosz in QEMU's util/cutils.c, tried with QEMU 7.2.
    """
    if found := _HEXADECIMAL.fullmatch(text):
        number = Fraction(int(found[1], 16))
    elif found := _DECIMAL.fullmatch(text):
        number = Fraction(found[1].rstrip("."))
    else:
        raise NotUnderstood(f"{quoted(text)} is no size")
    suffix = found[2].lower()
    scale = 1 << (10 * _SUFFIXES.index(suffix)) if suffix else unit
    if number.denominator > 1 and suffix in {"", "b"}:
        raise NotUnderstood(f"{quoted(text)} is no whole number of bytes")
    size = int(number * scale)
    if size > LARGEST_BYTES:
        raise NotUnderstood(f"{quoted(text)} is more than any memory")
    return size


def _plain_items(text: str, first_key: str) -> Iterator[tuple[str, str]]:
    for found in _ITEM.finditer(text):
        key, assigned, value, _ = found.groups()
        if assigned:
            yield key, value.replace(",,", ",")
        elif found.start() == 0 and found[0]:
            yield first_key, (key + value).replace(",,", ",")
        elif key:
            yield key, "on"


def _json_items(text: str) -> Iterator[tuple[str, str]]:
    try:
        document = json.loads(text)
        return iter(list(_flat("", document)))
    except (ValueError, RecursionError) as error:
        raise NotUnderstood(f"{quoted(text)} is no JSON that can be read") from error


def _flat(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Give nested values keys with dots, and spell all as the plain syntax would."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _flat(key, inner)
    elif isinstance(value, bool):
        yield key, "on" if value else "off"
    elif value is not None:
        yield key, str(value)
