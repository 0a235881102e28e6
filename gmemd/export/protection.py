"""What protects the metrics: a web.yaml with the files that it names, read whole and checked."""

from __future__ import annotations

import contextlib
import stat
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from gmemd.export.tls import TlsFault, check_certificates, make_context, objection
from gmemd.spec.loading import in_order, read_file
from gmemd.spec.problems import Fault, SpecError, printable
from gmemd.spec.validate import validate
from gmemd.spec.web import TlsConfig, WebConfig
from gmemd.spec.web_checks import TLS, VERIFYING, WebChecks, is_secret
from gmemd.spec.yamltree import LARGEST_FILE, Document, read_document

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gmemd.spec.problems import Problem
    from gmemd.spec.web import RateLimitConfig


SETTLED_SECONDS = 0.1
"""What changed less than this ago may change again and look the same: file systems' clocks tick."""

Stamp: TypeAlias = "tuple[int, int, int, int, int] | None"


def stamp_of(path: Path) -> Stamp:
    """What is another whenever the file was changed or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    inode = status.st_dev, status.st_ino
    return (*inode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Protection:
    """One good version of a web.yaml, ready for use. ``users`` are names and bcrypt hashes.

    Without ``context`` HTTP is served in the clear. ``warnings`` are what should be known of it.
    """

    context: ssl.SSLContext | None = None
    allowed_sans: tuple[str, ...] = ()
    users: Mapping[str, bytes] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    rate_interval_seconds: float = 0.0
    rate_burst: int = 0
    words: str = ""
    warnings: tuple[str, ...] = ()


class Reading:
    """Reads one version of a web.yaml. ``stamps`` are the files that it took, found or not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.time()
        self._warnings: list[str] = []
        self.stamps: dict[Path, Stamp] = {}

    @property
    def is_settled(self) -> bool:
        """Whether a later change of any file is sure to be seen in its stamp."""
        changes = [stamp[-1] / 1e9 for stamp in self.stamps.values() if stamp is not None]
        return all(abs(self._began - change) > SETTLED_SECONDS for change in changes)

    def protection(self) -> Protection:
        """The protection that it asks for; raises SpecError with all problems at once."""
        document = read_document(self._read(self._path), str(self._path))
        web = validate(document, WebConfig)
        context = None
        if web is not None:
            for fault in WebChecks(web, document.bad).faults():
                document.report(fault)
                document.bad.add(fault.path)
            if web.tls_server_config is not None:
                context = self._context(web.tls_server_config, document)
        if web is None or document.problems:
            raise SpecError(tuple(map(_without_secrets, in_order(document))))
        self._warn(web)
        return _protection(web, context, tuple(self._warnings))

    def _read(self, path: Path) -> bytes:
        self.stamps[path] = stamp_of(path)
        return read_file(path)

    def _context(self, tls: TlsConfig, document: Document) -> ssl.SSLContext | None:
        """The context, where all of its parts are good; else None, with problems reported."""
        parts = {part: self._part(tls, part, document) for part in ("cert", "key", "client_ca")}
        for part in ("cert", "client_ca"):
            if parts[part]:
                with self._reported(tls, document):
                    check_certificates(parts[part], part)
        bad = [path for path in document.bad if path[0] == TLS]
        if bad or not parts["cert"] or not parts["key"]:
            return None
        with self._reported(tls, document):
            context = make_context(tls, parts["cert"], parts["key"], parts["client_ca"])
            if why := objection(tls, parts["cert"], parts["key"]):
                self._warnings.append(f"{self._path}: clients won't take the certificate: {why}")
            return context
        return None

    @contextlib.contextmanager
    def _reported(self, tls: TlsConfig, document: Document) -> Iterator[None]:
        """Report what is wrong with a certificate or key, where it stands or is named."""
        try:
            yield
        except TlsFault as fault:
            inline = getattr(tls, fault.part) is not None
            path = (TLS, fault.part if inline else f"{fault.part}_file")
            document.report(Fault(path, fault.message, fault.hint, on_key=inline))
            document.bad.add(path)
        except (OSError, ValueError) as error:
            document.report(Fault((TLS,), f"is refused by OpenSSL: {error}", on_key=True))

    def _part(self, tls: TlsConfig, part: str, document: Document) -> bytes:
        """The bytes of a certificate or key, in place or in a file; nothing where there is none."""
        inline, name = getattr(tls, part), getattr(tls, f"{part}_file")
        if inline is not None:
            return str(inline).encode()
        key = (TLS, f"{part}_file")
        if name is None or key in document.bad:
            return b""
        path = self._path.parent / name
        try:
            content = self._read(path)
        except SpecError as error:
            document.report(Fault(key, error.problems[0].message, _hint(path, error)))
            document.bad.add(key)
            return b""
        if not content or len(content) > LARGEST_FILE:
            size = "is empty" if not content else f"is larger than {LARGEST_FILE >> 20}MiB"
            document.report(Fault(key, size))
            document.bad.add(key)
            return b""
        return content

    def _warn(self, web: WebConfig) -> None:
        """Note what is good enough to be used, and should be otherwise."""
        tls = web.tls_server_config
        warnings = self._warnings
        if tls is not None and tls.key_file is not None:
            path = self._path.parent / tls.key_file
            warnings += _if_readable(path, "holds a private key")
        if tls is not None and tls.key is not None:
            warnings += _if_readable(self._path, "holds a private key")
        elif web.basic_auth_users:
            warnings += _if_readable(self._path, "holds hashes of passwords")
        if web.basic_auth_users and tls is None:
            warnings.append(f"{self._path}: without {TLS} passwords are sent in the clear")


def _protection(
    web: WebConfig, context: ssl.SSLContext | None, warnings: tuple[str, ...]
) -> Protection:
    tls = web.tls_server_config
    users = web.basic_auth_users or {}
    return Protection(
        context=context,
        allowed_sans=(tls.client_allowed_sans or ()) if tls else (),
        users={user: hashed.encode() for user, hashed in users.items()},
        headers=web.http_server_config.headers or {},
        rate_interval_seconds=web.rate_limit.interval,
        rate_burst=web.rate_limit.burst,
        words=", ".join(_words(tls, len(users), web.rate_limit)),
        warnings=warnings,
    )


def _words(tls: TlsConfig | None, n_users: int, limit: RateLimitConfig) -> list[str]:
    """What it protects by, for people."""
    if tls is None:
        words = ["no TLS"]
    else:
        versions = sorted({tls.min_version, tls.max_version})
        words = [" and ".join(f"TLS 1.{version[-1]}" for version in versions)]
        if tls.client_auth_type in VERIFYING:
            words.append(f"client_auth_type {tls.client_auth_type}")
    words.append(f"{n_users or 'no'} user{'' if n_users == 1 else 's'}")
    if limit.interval:
        words.append("a rate limit")
    return words


def _hint(path: Path, error: SpecError) -> str | None:
    """What to do about a file that can't be read."""
    cause = error.__cause__
    if isinstance(cause, PermissionError):
        name = printable(str(path), longest=None)
        return f"let gmemd's user read it: chgrp gmemd {name}; chmod 640 {name}"
    if isinstance(cause, FileNotFoundError):
        name = printable(str(path.absolute()), longest=None)
        return f"it was looked for at {name}: names are relative to this file's directory"
    return error.problems[0].hint


def _if_readable(path: Path, why: str) -> list[str]:
    """A warning, if everybody may read the file."""
    try:
        is_readable = path.stat().st_mode & stat.S_IROTH
    except OSError:
        return []
    if not is_readable:
        return []
    return [f"{printable(str(path), longest=None)}: {why}, and everybody may read it: chmod o= it"]


def _without_secrets(problem: Problem) -> Problem:
    """The problem without what a log, or a screen, mustn't have."""
    if not is_secret(problem.key):
        return problem
    return replace(problem, value=None, source="")
