"""What the parts of a web.yaml say together, and what of the format gmemd can't do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gmemd.spec.problems import Fault, KeyPath
from gmemd.spec.scalars import did_you_mean
from gmemd.spec.web import HASH, HEADERS, ClientAuth, TlsConfig, TlsVersion, WebConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TLS = "tls_server_config"
USERS = "basic_auth_users"
HIGHEST_COST = 14
"""bcrypt's cost doubles the time with each step: 14 takes about a second."""

LEAST_COST = 4
SYSTEMS_CAS = "/etc/ssl/certs/ca-certificates.crt"

SUITES = {
    f"TLS_ECDHE_{key}_WITH_{ours}": f"ECDHE-{key}-{theirs}"
    for key in ("ECDSA", "RSA")
    for ours, theirs in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
    )
}
"""Go's names for the cipher suites of TLS 1.2 that it thinks secure, and OpenSSL's."""

SUITES_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_INSECURE_SUITES = re.compile(r"TLS_(RSA|ECDHE_RSA|ECDHE_ECDSA)_WITH_\w+_(SHA|SHA256|SHA384)")

CURVES = {
    "X25519": "X25519",
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
}
"""Go's names for elliptic curves, and OpenSSL's."""

_CANT_BE_ASKED = {
    ClientAuth.REQUEST: (
        "is not served: a certificate that is asked for is verified here",
        "write NoClientCert, which lets in the same clients",
    ),
    ClientAuth.REQUIRE_ANY: (
        "is not served: it lets in whoever makes a certificate, and here each one is verified",
        "write RequireAndVerifyClientCert, with client_ca_file; it may hold self-signed ones, too",
    ),
}
_CANT_BE_ASKED[ClientAuth.REQUIRE] = _CANT_BE_ASKED[ClientAuth.REQUIRE_ANY]
VERIFYING = (ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY)


class WebChecks:
    """The checks of one document; ``bad`` are key paths that a problem was reported for."""

    def __init__(self, web: WebConfig, bad: set[KeyPath]) -> None:
        self._web = web
        self._bad = bad

    def faults(self) -> Iterator[Fault]:
        """Find every fault."""
        tls = self._web.tls_server_config
        if tls is not None:
            yield from self._check_pairs(tls)
            yield from self._check_clients(tls)
            yield from _check_versions(tls)
            yield from _check_suites(tls)
            yield from _check_curves(tls)
        yield from self._check_http()
        yield from self._check_users()
        yield from self._check_rate()

    def _given(self, *path: str | int) -> bool:
        """Whether a problem with that key was reported already."""
        return any(path[:length] in self._bad for length in range(1, len(path) + 1))

    def _check_pairs(self, tls: TlsConfig) -> Iterator[Fault]:
        """Certificate and key: each in a file, or in place, and never in both."""
        for inline, file in (("cert", "cert_file"), ("key", "key_file"), (_CA, f"{_CA}_file")):
            if getattr(tls, inline) is not None and getattr(tls, file) is not None:
                yield Fault((TLS, inline), f"is given beside {file}", "keep one", on_key=True)
        for inline, file in (("cert", "cert_file"), ("key", "key_file")):
            neither = getattr(tls, inline) is None and getattr(tls, file) is None
            if neither and not self._given(TLS, inline) and not self._given(TLS, file):
                yield Fault((TLS, file), "is missing", _NO_TLS, on_key=True)

    def _check_clients(self, tls: TlsConfig) -> Iterator[Fault]:
        """Whom clients are verified by."""
        wanted = tls.client_auth_type
        if wanted in _CANT_BE_ASKED:
            yield Fault((TLS, _AUTH), *_CANT_BE_ASKED[wanted])
            return
        if self._given(TLS, _AUTH):
            return
        ca = _CA if tls.client_ca is not None else f"{_CA}_file"
        has_ca = getattr(tls, ca) is not None
        if has_ca and wanted is ClientAuth.NONE:
            yield Fault((TLS, ca), f"is of no use without {_AUTH}", _VERIFY, on_key=True)
        if not has_ca and wanted in VERIFYING and not self._given(TLS, ca):
            yield Fault(
                (TLS, f"{_CA}_file"),
                "is missing",
                f"name a file of the CAs that clients' certificates come from; {SYSTEMS_CAS} would "
                "let in all whom any public CA gave one",
                on_key=True,
            )
        if tls.client_allowed_sans is None:
            return
        if wanted is not ClientAuth.REQUIRE_AND_VERIFY:
            yield Fault(
                (TLS, "client_allowed_sans"),
                f"needs {_AUTH}: {ClientAuth.REQUIRE_AND_VERIFY}",
                "else a client without a certificate, and so without a name, is let in",
                on_key=True,
            )
        elif not tls.client_allowed_sans:
            yield Fault((TLS, "client_allowed_sans"), "must have at least one name")

    def _check_http(self) -> Iterator[Fault]:
        http = self._web.http_server_config
        if http.http2:
            yield Fault(
                ("http_server_config", "http2"),
                "must be false: gmemd doesn't speak HTTP/2",
                "remove it: clients agree on HTTP/1 by themselves",
            )
        for name, value in (http.headers or {}).items():
            path = ("http_server_config", "headers", name)
            if name not in HEADERS:
                hint = did_you_mean(name, HEADERS) or f"known are {', '.join(HEADERS)}"
                yield Fault(path, "can't be set", hint, on_key=True)
            elif HEADERS[name] and value not in HEADERS[name]:
                yield Fault(path, f"must be {' or '.join(HEADERS[name])}")
            elif not re.fullmatch("[ -~]+", value):
                yield Fault(path, "must be one line of ASCII")

    def _check_users(self) -> Iterator[Fault]:
        """Names that can be sent, and hashes; what stands in a hash's place is never told."""
        users = self._web.basic_auth_users
        if users == {}:
            yield Fault((USERS,), "must have at least one user", "or remove it, for no passwords")
        for user, hashed in (users or {}).items():
            if not user or ":" in user:
                yield Fault((USERS, user), "must be a name without a colon", on_key=True)
            yield from _check_hash((USERS, user), hashed)

    def _check_rate(self) -> Iterator[Fault]:
        limit = self._web.rate_limit
        if limit.interval and not limit.burst and not self._given("rate_limit", "burst"):
            yield Fault(
                ("rate_limit", "burst"),
                "must be at least 1 beside an interval",
                "without it no request is ever answered",
                on_key=True,
            )
        if limit.burst and not limit.interval and not self._given("rate_limit", "interval"):
            yield Fault(
                ("rate_limit", "burst"),
                "is of no use without an interval",
                "write interval: 1s, or remove it",
                on_key=True,
            )


_AUTH = "client_auth_type"
_CA = "client_ca"
_VERIFY = f"write {_AUTH}: {ClientAuth.REQUIRE_AND_VERIFY}"
_NO_TLS = f"TLS needs cert_file and key_file; remove {TLS} for none"


def _check_versions(tls: TlsConfig) -> Iterator[Fault]:
    for key in ("min_version", "max_version"):
        if getattr(tls, key) in {TlsVersion.TLS10, TlsVersion.TLS11}:
            yield Fault(
                (TLS, key),
                "is not served: OpenSSL refuses what is older than TLS 1.2 (RFC 8996)",
                "write TLS12, which all versions of Prometheus speak",
            )
    if (tls.min_version, tls.max_version) == (TlsVersion.TLS13, TlsVersion.TLS12):
        yield Fault((TLS, "max_version"), "is older than min_version, which is TLS13")


def _check_suites(tls: TlsConfig) -> Iterator[Fault]:
    """Known ones; those of TLS 1.3 all or none; and one at least for a TLS 1.2 that is spoken."""
    path = (TLS, "cipher_suites")
    suites = tls.cipher_suites
    if suites is None:
        return
    if not suites:
        yield Fault(path, "must have at least one suite", "or remove it, for OpenSSL's own")
        return
    unknown = [name for name in suites if name not in SUITES and name not in SUITES_13]
    yield from _unknown_suites(path, suites)
    new = [name for name in suites if name in SUITES_13]
    if new and set(new) != set(SUITES_13):
        yield Fault(
            (*path, suites.index(new[0])),
            "can't be chosen by itself: of TLS 1.3 all three suites are served",
            f"remove it, or name all: {', '.join(SUITES_13)}",
        )
    elif len(new) == len(suites) and not unknown and tls.min_version is not TlsVersion.TLS13:
        yield Fault(
            path, "has no suite of TLS 1.2", "name one, or write min_version: TLS13", on_key=True
        )


def _unknown_suites(path: KeyPath, suites: Iterable[str]) -> Iterator[Fault]:
    for index, name in enumerate(suites):
        if name in SUITES or name in SUITES_13:
            continue
        if _INSECURE_SUITES.fullmatch(name):
            yield Fault(
                (*path, index),
                "is not served: it is not secure, as Go has it too",
                "remove it: every Prometheus knows better ones",
            )
        else:
            hint = did_you_mean(name, SUITES) or f"known are {', '.join(SUITES)}"
            yield Fault((*path, index), "is not a known cipher suite", hint)


def _check_curves(tls: TlsConfig) -> Iterator[Fault]:
    path = (TLS, "curve_preferences")
    curves = tls.curve_preferences
    if curves is None:
        return
    if not curves:
        yield Fault(path, "must have a curve", "or remove it, for OpenSSL's own choice")
    for index, name in enumerate(curves):
        if "MLKEM" in name:
            yield Fault(
                (*path, index),
                "can't be chosen",
                "leave curve_preferences out: OpenSSL 3.5 and later offer it by themselves",
            )
        elif name not in CURVES:
            hint = did_you_mean(name, CURVES)
            yield Fault((*path, index), f"must be one of {', '.join(CURVES)}", hint)
    if len(curves) > 1:
        yield Fault(
            path,
            "must be a single curve: an order of several can't be set",
            "name one, or leave it out for OpenSSL's own order",
        )


def _check_hash(path: KeyPath, hashed: str) -> Iterator[Fault]:
    if not re.fullmatch(HASH, hashed):
        yield Fault(path, "is not a bcrypt hash, like $2y$10$…", _HASHING, on_key=True)
        return
    cost = int(hashed[4:6])
    if not LEAST_COST <= cost <= HIGHEST_COST:
        yield Fault(
            path,
            f"has cost {cost}, which must be {LEAST_COST} to {HIGHEST_COST}: each step up doubles "
            "the time that a password takes",
            _HASHING,
            on_key=True,
        )


_HASHING = "make one that takes a twentieth of a second: htpasswd -nBC 10 '' | tr -d ':\\n'"


def is_secret(path: str) -> bool:
    """Whether what stands at that spelled key path is never to be told."""
    return path.startswith(f"{USERS}.") or path == f"{TLS}.key"
