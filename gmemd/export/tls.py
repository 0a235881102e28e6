"""A server's TLS context, made of a web.yaml's words and the bytes of its files."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

from gmemd.spec.web import ClientAuth, TlsVersion
from gmemd.spec.web_checks import CURVES, SUITES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gmemd.spec.web import TlsConfig

_VERSIONS = {
    TlsVersion.TLS12: ssl.TLSVersion.TLSv1_2,
    TlsVersion.TLS13: ssl.TLSVersion.TLSv1_3,
}
_VERIFY_MODES = {
    ClientAuth.NONE: ssl.CERT_NONE,
    ClientAuth.VERIFY_IF_GIVEN: ssl.CERT_OPTIONAL,
    ClientAuth.REQUIRE_AND_VERIFY: ssl.CERT_REQUIRED,
}
_UNFIT = {"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH"}
_WEAK = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}


_NOT_HTTPS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"this is a server of https\n"
)


class TlsFault(Exception):  # noqa: N818  a fault of a file, said in the words of its format
    """What is wrong with ``part``: cert, key or client_ca."""

    def __init__(self, part: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.part = part
        self.message = message
        self.hint = hint


def make_context(tls: TlsConfig, cert: bytes, key: bytes, client_ca: bytes) -> ssl.SSLContext:
    """A context that serves the certificate; raises TlsFault. Without CAs ``client_ca`` is empty.

    The certificates are ones: check_certificates() found no fault with them. No session
    outlives the context, so that a client is verified by what is in force when it connects.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.maximum_version = _VERSIONS[tls.max_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    suites = [SUITES[name] for name in tls.cipher_suites or () if name in SUITES]
    if suites:
        context.set_ciphers(":".join(suites))
    for curve in tls.curve_preferences or ():
        context.set_ecdh_curve(CURVES[curve])
    _load_chain(context, cert, key)
    context.verify_mode = _VERIFY_MODES[tls.client_auth_type]
    if client_ca:
        # What is named is trusted, whoever signed it, as Go has it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _load_authorities(context, client_ca, "client_ca")
    return context


def check_certificates(pem: bytes, part: str) -> None:
    """Raise TlsFault where these bytes of ``part`` hold no certificates."""
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem, part)


def objection(tls: TlsConfig, cert: bytes, key: bytes) -> str | None:
    """Why a client that trusts this very certificate wouldn't connect; None if it would.

    That is tried, in memory, with the certificate and key that make_context() took.
    """
    anybody = tls.model_copy(update={"client_auth_type": ClientAuth.NONE})
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_authorities(trusting, cert, "cert")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make_context(anybody, cert, key, b"").wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    try:
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return _words(error)
    return None


def shake_hands(
    connection: ssl.SSLSocket, allowed_sans: Collection[str], timeout_seconds: float
) -> None:
    """Agree on TLS within that time; raises OSError where that, or the client's certificate, fails.

    With ``allowed_sans`` the certificate must have one of these names.
    """
    connection.settimeout(timeout_seconds)
    try:
        connection.do_handshake()
    except ssl.SSLError as error:
        if error.reason == "HTTP_REQUEST":
            socket.socket.send(connection, _NOT_HTTPS)
        raise
    certificate = cast("dict[str, Any]", connection.getpeercert() or {})
    if allowed_sans and not is_allowed(certificate, allowed_sans):
        raise ssl.SSLError("the client's certificate has none of client_allowed_sans")


def say_goodbye(connection: ssl.SSLSocket) -> None:
    """Tell the client that this was all, without waiting for what it says to that."""
    connection.settimeout(0)
    with contextlib.suppress(OSError, ValueError):
        connection.unwrap()


def is_allowed(certificate: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a verified certificate has one of these alternative names; addresses as such."""
    wanted = {_canonical(name) for name in names}
    kinds = {"DNS", "email", "URI", "IP Address"}
    found = {
        _canonical(value) for kind, value in certificate.get("subjectAltName", ()) if kind in kinds
    }
    return bool(wanted & found)


def _canonical(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name.strip()))
    except ValueError:
        return name


def _load_chain(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Serve that certificate. OpenSSL reads files only: these are ones in memory."""
    with contextlib.ExitStack() as stack:
        paths: list[str] = []
        for content in (cert, key):
            fd = os.memfd_create("gmemd-web", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            with os.fdopen(fd, "wb", closefd=False) as file:
                file.write(content)
            paths.append(f"/proc/self/fd/{fd}")
        try:
            context.load_cert_chain(paths[0], paths[1], password=lambda: "")
        except ssl.SSLError as error:
            raise _chain_fault(error, key) from error


def _chain_fault(error: ssl.SSLError, key: bytes) -> TlsFault:
    if error.reason in _UNFIT:
        return TlsFault("key", "is not the certificate's key", "renew both together")
    if error.reason in _WEAK:
        return TlsFault("cert", f"is refused by OpenSSL: {_words(error)}", "make a stronger one")
    if b"ENCRYPTED" in key:
        return TlsFault(
            "key",
            "is encrypted, and nobody is there to be asked for its password",
            "openssl pkey -in KEY -out PLAIN, readable by gmemd's user alone",
        )
    return TlsFault("key", "holds no private key in PEM", "it begins with -----BEGIN")


def _load_authorities(context: ssl.SSLContext, pem: bytes, part: str) -> None:
    """Trust these certificates; raises TlsFault where there are none."""
    try:
        text = pem.decode("latin-1").encode("ascii", "replace").decode()
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise TlsFault(
            part, "holds no certificate in PEM", "it begins with -----BEGIN CERTIFICATE-----"
        ) from error


def _words(error: ssl.SSLError) -> str:
    return (error.reason or "unknown reason").lower().replace("_", " ")
