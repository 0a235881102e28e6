"""Certificates made by openssl, as an operator makes them, and bcrypt hashes that take no time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import bcrypt

if TYPE_CHECKING:
    from pathlib import Path

CHEAPEST_COST = 4
EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    cert: Path
    key: Path


def certify(
    directory: Path, name: str, *, ca: Pair | None = None, san: str = "", usage: str = ""
) -> Pair:
    """Make a key and its certificate, signed by the CA or by itself."""
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    command = ["openssl", "req", "-x509", *EC_KEY, "-subj", f"/CN={name}", "-days", "2"]
    command += ["-out", str(pair.cert), "-keyout", str(pair.key)]
    if ca is not None:
        command += ["-CA", str(ca.cert), "-CAkey", str(ca.key)]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    if san:
        command += ["-addext", f"subjectAltName={san}"]
    if usage:
        command += ["-addext", f"extendedKeyUsage={usage}"]
    subprocess.run(command, check=True, capture_output=True)
    return pair


def expire(pair: Pair) -> None:
    """Make the certificate one that ends now."""
    sign = ("openssl", "x509", "-in", pair.cert, "-signkey", pair.key, "-days", "0")
    subprocess.run([*sign, "-out", pair.cert], check=True, capture_output=True)


def hashed(password: str, *, cost: int = CHEAPEST_COST) -> str:
    """The bcrypt hash of a password, as web.yaml has it."""
    salt = bcrypt.gensalt(cost, prefix=b"2b")
    return bcrypt.hashpw(password.encode(), salt).decode().replace("$2b$", "$2y$", 1)
