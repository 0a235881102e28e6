"""web.yaml: what is refused, with its place and a way out, and what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from gmemd.spec.schema import web_schema
from gmemd.spec.validate import validate
from gmemd.spec.web import ClientAuth, TlsVersion, WebConfig
from gmemd.spec.web_checks import SUITES, SUITES_13, WebChecks
from gmemd.spec.yamltree import Document, read_document

EXAMPLE = Path(__file__).parents[3] / "config" / "web.yaml"
HASH = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze"
PAIR = "cert_file: c, key_file: k"

# What the schema can't tell: it takes two keys together, or is told about in words of its own.
ONLY_CHECK_TELLS = {
    "is of no use without client_auth_type",
    "has no suite of TLS 1.2",
    "is older than min_version",
    "can't be chosen by itself",
    "is not a known cipher suite",
    "is not served: it is not secure",
    "must be one of X25519",
    "can't be chosen (got",
    "must be a single curve",
    "must be at least 1 beside",
    "is of no use without an interval",
    "needs client_auth_type",
    "client_ca_file: is missing",
    "has cost",
    "must be one line",
}


def read(text: str) -> tuple[WebConfig | None, Document]:
    document = read_document(text.encode(), "w.yaml")
    web = validate(document, WebConfig)
    if web is not None:
        for fault in WebChecks(web, document.bad).faults():
            document.report(fault)
    return web, document


def tls(more: str) -> str:
    return f"tls_server_config: {{{PAIR}, {more}}}"


def test_everything_that_is_served() -> None:
    web, document = read(f"""\
tls_server_config:
  cert_file: server.crt
  key_file: /etc/ssl/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  client_allowed_sans: [prometheus.example, 10.0.0.1]
  min_version: TLS13
  max_version: TLS13
  cipher_suites: [{", ".join([*SUITES, *SUITES_13])}]
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP256]
http_server_config:
  http2: false
  headers: {{X-Frame-Options: deny, Strict-Transport-Security: max-age=5}}
basic_auth_users: {{alice: {HASH}, 42: {HASH}}}
rate_limit: {{interval: 500ms, burst: 20}}
""")
    assert document.problems == []
    assert web is not None
    assert web.tls_server_config is not None
    assert web.tls_server_config.client_auth_type is ClientAuth.REQUIRE_AND_VERIFY
    assert web.tls_server_config.client_allowed_sans == ("prometheus.example", "10.0.0.1")
    assert web.tls_server_config.min_version is TlsVersion.TLS13
    assert web.tls_server_config.prefer_server_cipher_suites is False
    assert web.http_server_config.headers == {
        "X-Frame-Options": "deny",
        "Strict-Transport-Security": "max-age=5",
    }
    assert web.basic_auth_users == {"alice": HASH, "42": HASH}
    assert (web.rate_limit.interval, web.rate_limit.burst) == (0.5, 20)


@pytest.mark.parametrize("auth", ["NoClientCert", "VerifyClientCertIfGiven"])
def test_clients_may_do_without_certificates(auth: str) -> None:
    ca = "" if auth == "NoClientCert" else ", client_ca_file: a"
    web, document = read(tls(f"client_auth_type: {auth}{ca}"))
    assert document.problems == []
    assert web is not None
    assert web.tls_server_config is not None
    assert web.tls_server_config.client_auth_type == auth


BROKEN = [
    ("rate_limit: {interval: 0}\ntls_server_config: {key_file: k}", [
        ("2:20: tls_server_config.cert_file: is missing | TLS needs cert_file and key_file; "
        "remove tls_server_config for none")]),
    (tls("cert: c"), ["1:48: tls_server_config.cert: is given beside cert_file | keep one"]),
    (tls("client_auth_type: RequestClientCert"), [
        ("1:66: tls_server_config.client_auth_type: is not served: a certificate that is asked for "
        "is verified here (got RequestClientCert) | write NoClientCert, which lets in the same "
        "clients")]),
    *((tls(f"client_auth_type: {word}"), [
        ("1:66: tls_server_config.client_auth_type: is not served: it lets in whoever makes a "
        f"certificate, and here each one is verified (got {word}) | write "
        "RequireAndVerifyClientCert, with client_ca_file; it may hold self-signed ones, too")])
      for word in ("RequireAnyClientCert", "RequireClientCert")),
    (tls("client_auth_type: require"), [
        ("1:66: tls_server_config.client_auth_type: must be one of NoClientCert, "
        "RequestClientCert, RequireAnyClientCert, RequireClientCert, VerifyClientCertIfGiven, "
        "RequireAndVerifyClientCert (got require)")]),
    (tls("client_auth_type: RequireAndVerifyClientCert"), [
        ("1:20: tls_server_config.client_ca_file: is missing | name a file of the CAs that "
        "clients' certificates come from; /etc/ssl/certs/ca-certificates.crt would let in all whom "
        "any public CA gave one")]),
    (tls("client_ca_file: a"), [
        ("1:48: tls_server_config.client_ca_file: is of no use without client_auth_type | write "
        "client_auth_type: RequireAndVerifyClientCert")]),
    (tls("client_allowed_sans: [a]"), [
        ("1:48: tls_server_config.client_allowed_sans: needs client_auth_type: "
        "RequireAndVerifyClientCert | else a client without a certificate, and so without a name, "
        "is let in")]),
    (tls("client_auth_type: RequireAndVerifyClientCert, client_ca_file: a, "
         "client_allowed_sans: []"), [
        ("1:134: tls_server_config.client_allowed_sans: must have at least one name (got an empty "
        "list)")]),
    (tls("min_version: TLS10, max_version: TLS11"), [
        ("1:61: tls_server_config.min_version: is not served: OpenSSL refuses what is older than "
        "TLS 1.2 (RFC 8996) (got TLS10) | write TLS12, which all versions of Prometheus speak"),
        ("1:81: tls_server_config.max_version: is not served: OpenSSL refuses what is older than "
        "TLS 1.2 (RFC 8996) (got TLS11) | write TLS12, which all versions of Prometheus speak")]),
    (tls("min_version: TLS13, max_version: TLS12"), [
        ("1:81: tls_server_config.max_version: is older than min_version, which is TLS13 (got "
        "TLS12)")]),
    (tls("cipher_suites: [TLS_AES_256_GCM_SHA384]"), [
        ("1:64: tls_server_config.cipher_suites[0]: can't be chosen by itself: of TLS 1.3 all "
        "three suites are served (got TLS_AES_256_GCM_SHA384) | remove it, or name all: "
        "TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256")]),
    (tls(f"cipher_suites: [{', '.join(SUITES_13)}]"), [
        ("1:48: tls_server_config.cipher_suites: has no suite of TLS 1.2 | name one, or write "
        "min_version: TLS13")]),
    (tls("cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]"), [
        ("1:64: tls_server_config.cipher_suites[0]: is not served: it is not secure, as Go has it "
        "too (got TLS_RSA_WITH_AES_128_CBC_SHA) | remove it: every Prometheus knows better ones")]),
    (tls("cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM]"), [
        ("1:64: tls_server_config.cipher_suites[0]: is not a known cipher suite (got "
        "TLS_ECDHE_RSA_WITH_AES_128_GCM) | did you mean TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256?")]),
    (tls("cipher_suites: []"), [
        ("1:63: tls_server_config.cipher_suites: must have at least one suite (got an empty list) "
        "| or remove it, for OpenSSL's own")]),
    (tls("curve_preferences: [X25519, P256]"), [
        ("1:67: tls_server_config.curve_preferences: must be a single curve: an order of several "
        "can't be set (got a list) | name one, or leave it out for OpenSSL's own order"),
        ("1:76: tls_server_config.curve_preferences[1]: must be one of X25519, CurveP256, "
        "CurveP384, CurveP521 (got P256)")]),
    (tls("curve_preferences: [X25519MLKEM768]"), [
        ("1:68: tls_server_config.curve_preferences[0]: can't be chosen (got X25519MLKEM768) | "
        "leave curve_preferences out: OpenSSL 3.5 and later offer it by themselves")]),
    (tls("cipher_suite: [a]"), [
        "1:48: tls_server_config.cipher_suite: is not a known key | did you mean cipher_suites?"]),
    ("http_server_config: {http2: true}", [
        ("1:29: http_server_config.http2: must be false: gmemd doesn't speak HTTP/2 (got true) | "
        "remove it: clients agree on HTTP/1 by themselves")]),
    ("http_server_config: {headers: {X-Frame-Option: deny}}", [
        ("1:32: http_server_config.headers.X-Frame-Option: can't be set | did you mean "
        "X-Frame-Options?")]),
    ("http_server_config: {headers: {X-Frame-Options: allow}}", [
        ("1:49: http_server_config.headers.X-Frame-Options: must be deny or sameorigin (got "
        "allow)")]),
    ('http_server_config: {headers: {X-XSS-Protection: "1\\r\\nSet-Cookie: a"}}', [
        ("1:50: http_server_config.headers.X-XSS-Protection: must be one line of ASCII (got "
        "1\\r\\nSet-Cookie: a)")]),
    ("basic_auth_users: {}", [
        ("1:19: basic_auth_users: must have at least one user (got an empty mapping) | or remove "
        "it, for no passwords")]),
    ("basic_auth_users: [alice]", ["1:19: basic_auth_users: must be a mapping (got a list)"]),
    (f"basic_auth_users: {{'a:b': {HASH}}}", [
        "1:20: basic_auth_users.a:b: must be a name without a colon"]),
    ("basic_auth_users: {alice: secret}", [
        ("1:20: basic_auth_users.alice: is not a bcrypt hash, like $2y$10$… | make one that takes "
        "a twentieth of a second: htpasswd -nBC 10 '' | tr -d ':\\n'")]),
    (f"basic_auth_users: {{alice: {HASH.replace('10', '31')}}}", [
        ("1:20: basic_auth_users.alice: has cost 31, which must be 4 to 14: each step up doubles "
        "the time that a password takes | make one that takes a twentieth of a second: htpasswd "
        "-nBC 10 '' | tr -d ':\\n'")]),
    ("basic_auth_users:", [
        "1:1: basic_auth_users: has no value | give it one, or remove the line"]),
    ("rate_limit: {interval: 1s}", [
        ("1:13: rate_limit.burst: must be at least 1 beside an interval | without it no request is "
        "ever answered")]),
    ("rate_limit: {burst: 5}", [
        ("1:14: rate_limit.burst: is of no use without an interval | write interval: 1s, or remove "
        "it")]),
    ("rate_limit: {interval: 5, burst: 5}", [
        ("1:24: rate_limit.interval: must be a time with a unit, above nothing and at most 24h, "
        "like 500ms, 60s, 5m or 1h (got 5) | write 5s for seconds")]),
    ("# nothing", ["1:1: is empty"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BROKEN, ids=[text for text, _ in BROKEN])
def test_what_is_refused(text: str, expected: list[str]) -> None:
    _, document = read(text)
    told = sorted(
        f"{problem}".removeprefix("w.yaml:") + (f" | {problem.hint}" if problem.hint else "")
        for problem in document.problems
    )
    assert told == expected


@pytest.mark.parametrize(("text", "expected"), BROKEN, ids=[text for text, _ in BROKEN])
def test_what_editors_can_tell_they_do(text: str, expected: list[str]) -> None:
    value = yaml.safe_load(text)
    is_valid = Draft202012Validator(web_schema()).is_valid(value)
    is_for_check = all(any(words in told for words in ONLY_CHECK_TELLS) for told in expected)
    assert is_valid == is_for_check


def test_the_example_says_nothing_and_would_be_good_without_its_comments() -> None:
    text = EXAMPLE.read_text()
    assert read(text)[1].problems[0].message == "is empty"
    sections = ("tls_server_config", "basic_auth_users", "http_server_config", "rate_limit")
    begin = text.index(f"# {sections[0]}:")
    uncommented = "\n".join(
        line.removeprefix("# ")
        for line in text[begin:].splitlines()
        if line.startswith(("#   ", *(f"# {section}:" for section in sections)))
    ).replace("  # ", "  #")
    web, document = read(uncommented)
    assert document.problems == []
    assert web is not None
    assert web.model_fields_set == set(sections)
    assert [*Draft202012Validator(web_schema()).iter_errors(yaml.safe_load(uncommented))] == []
