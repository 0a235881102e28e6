"""Values on command lines, as text that anybody may have written, and what couldn't be read."""

from __future__ import annotations

import re

from gmemd.spec.problems import printable

LARGEST_BYTES = (1 << 63) - 1
"""More than any VMM accepts: sizes are 64-bit, and file offsets signed."""

_MOST_PROBLEMS = 20
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTES = range(0xDC80, 0xDD00)
_NUMBER = re.compile("[0-9]{1,18}")


class NotUnderstood(ValueError):  # noqa: N818 (says what happened, and is no failure)
    """A value that can't be read. The text ends a sentence that the option begins."""


class Problems:
    """What couldn't be understood, as sentences; of very many only the first are kept."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._n_more = 0

    def add(self, option: str, what: object) -> None:
        """Note what is wrong with an option; ``option`` as its user wrote it."""
        sentence = f"{printable(readable(option))}: {what}"
        if len(self._sentences) < _MOST_PROBLEMS:
            self._sentences.append(sentence)
        else:
            self._n_more += 1

    def sentences(self) -> tuple[str, ...]:
        """All that was noted, in order."""
        more = (f"{self._n_more} more options aren't understood",) if self._n_more else ()
        return (*self._sentences, *more)


def readable(text: str) -> str:
    """Spell bytes that are no UTF-8 in hexadecimal after a backslash; keep all the rest."""
    return _SURROGATE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if code in _ESCAPED_BYTES else f"\\u{code:04x}"


def quoted(text: str) -> str:
    """A value in quotes, short enough and safe for a sentence."""
    return f"'{printable(readable(text))}'"


def whole_number(text: str, *, highest: int) -> int:
    """Read a decimal number from 0 on. Raises NotUnderstood."""
    if not _NUMBER.fullmatch(text) or int(text) > highest:
        raise NotUnderstood(f"{quoted(text)} is no number from 0 to {highest}")
    return int(text)


def number_range(text: str, *, highest: int) -> range:
    """Read a number or a range of numbers such as ``0-3``. Raises NotUnderstood."""
    first, dash, last = text.partition("-")
    start = whole_number(first, highest=highest)
    end = whole_number(last, highest=highest) if dash else start
    if end < start:
        raise NotUnderstood(f"the range {quoted(text)} runs backwards")
    return range(start, end + 1)


def switch(text: str) -> bool:
    """Read what is either on or off, in the words that QEMU and cloud-hypervisor take.

    Raises NotUnderstood.
    """
    if text.lower() in {"on", "yes", "true", "y"}:
        return True
    if text.lower() in {"off", "no", "false", "n"}:
        return False
    raise NotUnderstood(f"{quoted(text)} is neither on nor off")
