"""Words of a spec or configuration file other than sizes and nodesets: text in, value out."""

from __future__ import annotations

import re
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from gmemd.spec.problems import FieldError, FieldErrors, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_E = TypeVar("_E", bound=StrEnum)

VM_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
USER = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\$?"
PERCENT = r"[0-9]{1,3}(\.[0-9]{1,6})?[ \t]*%"
DURATION = r"[0-9]{1,9}(\.[0-9]{1,6})?[ \t]*(ms|s|m|min|h)"

NEAREST_DISTANCE, FARTHEST_DISTANCE = 10, 255
"""ACPI 6.5, 5.2.17 (SLIT): 10 is a node's distance to itself, 255 is unreachable."""

LEAST_SAMPLE_PAGES, MOST_SAMPLE_PAGES = 256, 1 << 20
MOST_JOBS = 1024
"""Fewer pages tell nothing; more take longer than an audit of a running VM should."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SYNONYMS = {
    "cpus": ("vcpus",),
    "hugepages": ("page_size", "memfd"),
    "hugetlb": ("memfd",),
    "memory": ("size",),
    "mode": ("policy",),
    "name": ("vm", "qemu_name"),
    "nodes": ("guest_nodes", "host_nodes"),
    "nodeset": ("host_nodes",),
    "numa": ("guest_nodes",),
    "pagesize": ("page_size",),
    "size": ("memory",),
    "strict": ("bind",),
}
"""What other tools and readers call things."""

_LONGEST_DURATION = 24 * 3600.0
_ADDRESS = re.compile(r"(\[[^\]]*\]|[^:\[\]]*):([0-9]{1,5})")
_HIGHEST_PORT = 65535
_HIGHEST_UID = (1 << 32) - 2  # the last one means none


def parse_whole_number(text: str, *, lowest: int, highest: int) -> int:
    """Read a decimal number from lowest to highest; ``010`` is ten."""
    if re.fullmatch("[0-9]{1,9}", text) and lowest <= int(text) <= highest:
        return int(text)
    raise FieldError(f"must be a whole number from {lowest} to {highest}")


def parse_boolean(text: str) -> bool:
    """Read ``true`` or ``false``, and nothing else that YAML 1.1 takes for them."""
    if text in {"true", "false"}:
        return text == "true"
    wish = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower())
    wish = wish or (text.lower() if text.lower() in {"true", "false"} else None)
    raise FieldError("must be true or false", hint=f"write {wish}" if wish else None)


def choice_parser(choices: Iterable[_E]) -> Callable[[str], _E]:
    """Return a parser of an enumeration's words, or of some of them."""
    words = {str(choice): choice for choice in choices}

    def parse(text: str) -> _E:
        if text in words:
            return words[text]
        raise FieldError(f"must be one of {', '.join(words)}", hint=did_you_mean(text, words))

    return parse


def parse_vm_name(text: str) -> str:
    """Read a VM's name."""
    if re.fullmatch(VM_NAME, text):
        return text
    raise FieldError(
        "must be a name of 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
    )


def parse_user(text: str) -> str:
    """Read a user, by name or number."""
    if re.fullmatch(USER, text) and not (text.isdecimal() and int(text) > _HIGHEST_UID):
        return text
    raise FieldError("must be a user's name or number")


def parse_sample_pages(text: str) -> int:
    """Read how many pages of a guest node are looked at."""
    return parse_whole_number(text, lowest=LEAST_SAMPLE_PAGES, highest=MOST_SAMPLE_PAGES)


def parse_jobs(text: str) -> int:
    """Read a number of threads."""
    return parse_whole_number(text, lowest=1, highest=MOST_JOBS)


LEAST_CPU_SHARE = 0.0001
LEAST_MARGIN, MOST_MARGIN = 0.001, 0.25
LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.9999


def parse_percent(text: str) -> float:
    """Read a percentage, as a ratio: 0.01 for ``1%``."""
    return _percent_between(text, 0.0, 1.0, "from 0% to 100%, like 1% or 0.5%")


def parse_margin(text: str) -> float:
    """Read how far a sample's shares may be from the truth, as a ratio: 0.01 for ``1%``."""
    return _percent_between(text, LEAST_MARGIN, MOST_MARGIN, "from 0.1% to 25%, like 1%")


def parse_confidence(text: str) -> float:
    """Read how often an interval is to hold the truth, as a ratio: 0.99 for ``99%``."""
    words = "from 50% to 99.99%, like 95% or 99%"
    return _percent_between(text, LEAST_CONFIDENCE, MOST_CONFIDENCE, words)


def parse_cpu_share(text: str) -> float:
    """Read a share of one CPU, as a ratio: 0.01 for ``1%``; never none."""
    return _percent_between(text, LEAST_CPU_SHARE, 1.0, "of one CPU, from 0.01% to 100%")


def _percent_between(text: str, least: float, most: float, words: str) -> float:
    """Read a percentage, as a ratio; hints at what may have been meant where that is allowed."""
    if re.fullmatch(PERCENT, text):
        ratio = float(text.rstrip("% \t")) / 100
        if least <= ratio <= most:
            return ratio
    hint = None
    if re.fullmatch(r"[0-9]{1,3}", text) and least <= int(text) / 100 <= most:
        hint = f"write {text}%"
    elif re.fullmatch(r"0?\.[0-9]{1,6}", text) and least <= float(text) <= most:
        hint = f"write {round(float(text) * 100, 6):g}% for a ratio of {text}"
    raise FieldError(f"must be a percentage {words}", hint=hint)


def parse_duration(text: str) -> float:
    """Read a time in seconds: ``500ms``, ``60s``, ``5m``, ``1h``."""
    found = re.fullmatch(DURATION, text)
    if found is not None:
        unit = found[2]
        seconds = float(text.removesuffix(unit)) * _SECONDS[unit]
        if 0 < seconds <= _LONGEST_DURATION:
            return seconds
    bare = re.fullmatch(r"[0-9]{1,9}", text)
    raise FieldError(
        "must be a time with a unit, above nothing and at most 24h, like 500ms, 60s, 5m or 1h",
        hint=f"write {text}s for seconds" if bare else None,
    )


def parse_path(text: str) -> str:
    """Read an absolute path without ``..``."""
    if text.startswith("/") and ".." not in text.split("/"):
        return text
    raise FieldError("must be an absolute path without '..'")


def parse_cgroup(text: str) -> str:
    """Read who pays for prefaulted pages: ``none``, ``peer`` or a cgroup's path."""
    if text in {"none", "peer"}:
        return text
    if text.startswith("/") and ".." not in text.split("/"):
        return text
    raise FieldError("must be none, peer, or a cgroup's absolute path")


def parse_address(text: str) -> str:
    """Read a TCP address to listen on: ``127.0.0.1:9989``, ``[::1]:9989``, ``:9989``."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        hint = None
        if text.count(":") > 1 and not text.startswith("["):
            hint = "an IPv6 address goes in brackets: [::1]:9989"
        elif re.fullmatch("[0-9]{1,5}", text):
            hint = f"write 127.0.0.1:{text}, or :{text} for every address"
        raise FieldError("must be ADDRESS:PORT, like 127.0.0.1:9989 or [::1]:9989", hint=hint)
    host, port = found[1], int(found[2])
    if port > _HIGHEST_PORT:
        raise FieldError(f"port {port} is out of range, which is 0 to {_HIGHEST_PORT}")
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            raise FieldError(f"'{printable(host[1:-1])}' is not an IPv6 address") from None
    elif not re.fullmatch(r"[A-Za-z0-9.-]*", host):
        raise FieldError(f"'{printable(host)}' is not an address or a host name")
    return text


def parse_distances(items: Mapping[str, object], highest_node: int) -> dict[int, int]:
    """Read distances by guest node; raises FieldErrors that tell the key of each bad one."""
    distances: dict[int, int] = {}
    errors: list[FieldError] = []
    for key, text in items.items():
        try:
            node, distance = _parse_distance(key, text, highest_node)
            if node in distances:
                errors.append(FieldError(f"guest node {node} is given twice", within=(key,)))
            distances[node] = distance
        except FieldError as error:
            errors.append(FieldError(error.message, hint=error.hint, within=(key,)))
    if errors:
        raise FieldErrors(errors)
    return distances


def did_you_mean(word: str, accepted: Iterable[str]) -> str | None:
    """Hint at the accepted word that was most likely meant, if any was."""
    meant = nearest(word, accepted)
    return f"did you mean {meant}?" if meant else None


def nearest(word: str, accepted: Iterable[str]) -> str | None:
    """Find the accepted word that means or looks most like the given one."""
    by_lower = {candidate.lower(): candidate for candidate in accepted}
    for synonym in _SYNONYMS.get(word.lower(), ()):
        if synonym in by_lower:
            return by_lower[synonym]
    lowered = word.lower().replace("_", "-")
    for spelling in (word.lower(), lowered, lowered.replace("-", "_")):
        if close := get_close_matches(spelling, by_lower, n=1, cutoff=0.7):
            return by_lower[close[0]]
    return None


def _parse_distance(key: str, text: object, highest_node: int) -> tuple[int, int]:
    if not re.fullmatch("[0-9]{1,9}", key) or int(key) > highest_node:
        raise FieldError("must be named by a guest node's id")
    if not isinstance(text, str):
        raise FieldError("must be a distance, like 21")
    return int(key), parse_whole_number(text, lowest=NEAREST_DISTANCE, highest=FARTHEST_DISTANCE)
