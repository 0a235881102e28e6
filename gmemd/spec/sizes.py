"""Sizes of memory: IEC units in, IEC units out."""

from __future__ import annotations

import re
from decimal import Decimal

from gmemd.spec.problems import FieldError, printable

LARGEST_SIZE = 1 << 52
"""4 PiB: more than x86 or arm64 can address physically (52 bits)."""

_IEC = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}
_SI = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_SUFFIXES = ("PiB", "TiB", "GiB", "MiB", "KiB")


def parse_size(text: str) -> int:
    """Read the bytes of a size with an IEC unit: ``16GiB``, ``16Gi``, ``1.5GiB``.

    Raises FieldError; a bare number and SI units are refused, since they are read both ways.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise FieldError("must be a size with an IEC unit, like 512MiB or 16GiB")
    number, unit = Decimal(found[1]), found[2]
    scale = _IEC.get(unit.removesuffix("B"))
    if scale is None:
        raise FieldError(
            "must be a size with an IEC unit, like 512MiB or 16GiB",
            hint=_readings(number, found[1], unit),
        )
    size = number * scale
    if size != int(size):
        raise FieldError("must be a whole number of bytes")
    if not size:
        raise FieldError("must be more than nothing")
    if size > LARGEST_SIZE:
        raise FieldError(f"is more than any machine can address, which is {LARGEST_SIZE >> 50}PiB")
    return int(size)


def format_size(size_bytes: int) -> str:
    """Spell a size for people: exact if two decimals are enough (``1.5GiB``), else to one."""
    if size_bytes < 0:
        return f"-{format_size(-size_bytes)}"
    # Once it would be printed as 1024 of a unit, the next larger one fits.
    fitting = (
        suffix
        for suffix in _SUFFIXES
        if round(size_bytes * _IEC["Ki"] / _scale(suffix), 1) >= _IEC["Ki"]
    )
    suffix = next(fitting, None)
    if suffix is None or size_bytes < _scale("KiB"):
        return f"{size_bytes}B"
    digits = 2 if size_bytes * 100 % _scale(suffix) == 0 else 1
    number = f"{size_bytes / _scale(suffix):.{digits}f}"
    return f"{number.rstrip('0').rstrip('.')}{suffix}"


def exact_size(size_bytes: int) -> str:
    """Spell a size so that `parse_size` reads it back; ``N bytes`` if it isn't a KiB multiple."""
    for suffix in _SUFFIXES:
        if size_bytes and size_bytes % _scale(suffix) == 0:
            return f"{size_bytes // _scale(suffix)}{suffix}"
    return f"{size_bytes} bytes"


def _scale(suffix: str) -> int:
    return _IEC[suffix.removesuffix("B")]


def _readings(number: Decimal, digits: str, unit: str) -> str | None:
    """Say what a size without an IEC unit may have meant."""
    if not unit:
        return _choice(f"{digits} may mean bytes or MiB", number, number * _IEC["Mi"])
    prefix = unit[0].upper()
    if unit.upper() in {prefix, f"{prefix}B"} and prefix in _SI:
        binary, decimal = number * _IEC[f"{prefix}i"], number * _SI[prefix]
        return _choice(
            f"{digits}{unit} may mean {digits}{prefix}iB ({int(binary)} bytes) or {digits}{prefix}B"
            f" ({int(decimal)} bytes)",
            binary,
            decimal,
        )
    if unit.upper() in {f"{prefix}I", f"{prefix}IB"} and prefix in _SI:
        return f"write {digits}{prefix}iB"
    return f"'{printable(unit)}' is not a unit: KiB, MiB, GiB, TiB and PiB are"


def _choice(readings: str, *sizes: Decimal) -> str:
    """Say the readings, and how those that are a multiple of 1 KiB are written."""
    writable = [exact_size(int(size)) for size in sizes if size and size % _IEC["Ki"] == 0]
    return f"{readings}: write {' or '.join(writable)}" if writable else readings
