"""web.yaml, in the format of Prometheus' own exporters: TLS, passwords and headers of HTTP.

The format is the exporter-toolkit's (docs/web-configuration.md there). What gmemd can't do of it is
refused by `gmemd.spec.web_checks`, never left undone in silence.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

from gmemd.spec import scalars
from gmemd.spec.config import Section, each, one_or_more
from gmemd.spec.document import BOOLEAN_SCHEMA, from_text, number_schema, words_schema
from gmemd.spec.problems import FieldError, FieldErrors

WEB_PATH = Path("/etc/gmemd/web.yaml")
"""Where an installed web.yaml is by custom; metrics.web_config has to name it."""

MOST_BURST = 1_000_000
HASH = r"\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}"
HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
"""The headers that can be set, and what each can be; nothing: any text."""


class ClientAuth(StrEnum):
    """What is asked of clients: Go's names for it."""

    NONE = "NoClientCert"
    REQUEST = "RequestClientCert"
    REQUIRE_ANY = "RequireAnyClientCert"
    REQUIRE = "RequireClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


class TlsVersion(StrEnum):
    """The versions of the format, oldest first."""

    TLS10 = "TLS10"
    TLS11 = "TLS11"
    TLS12 = "TLS12"
    TLS13 = "TLS13"


def _text(text: str) -> str:
    return text


def _read_texts(value: object) -> object:
    if not isinstance(value, dict):
        raise FieldError("must be a mapping")
    errors = [
        FieldError("must be a text", within=(key,))
        for key, item in value.items()
        if not isinstance(item, str)
    ]
    if errors:
        raise FieldErrors(errors)
    return value


def _read_interval(text: str) -> float:
    return 0.0 if re.fullmatch("0(ms|s|m|h)?", text) else scalars.parse_duration(text)


def _read_burst(text: str) -> int:
    return scalars.parse_whole_number(text, lowest=0, highest=MOST_BURST)


Text: TypeAlias = Annotated[
    str | None, from_text(_text, "a text"), WithJsonSchema({"type": "string", "minLength": 1})
]
Texts: TypeAlias = Annotated[
    tuple[str, ...] | None,
    each(_text, "a word"),
    one_or_more({"type": "string", "minLength": 1}, 1),
]
Boolean: TypeAlias = Annotated[
    bool, from_text(scalars.parse_boolean, "true or false"), WithJsonSchema(BOOLEAN_SCHEMA)
]
Version: TypeAlias = Annotated[
    TlsVersion,
    from_text(scalars.choice_parser(TlsVersion), "a word"),
    WithJsonSchema(words_schema("TLS12", "TLS13")),
]


class TlsConfig(Section):
    """The certificate that is served, and what is asked of clients. Paths may be relative."""

    cert_file: Annotated[
        Text, Field(description="The certificate, with its chain: PEM. Relative to this file.")
    ] = None
    key_file: Annotated[Text, Field(description="The certificate's private key: PEM.")] = None
    client_ca_file: Annotated[
        Text, Field(description="The certificates that clients' ones are verified by: PEM.")
    ] = None
    cert: Annotated[Text, Field(description="The certificate itself, for cert_file.")] = None
    key: Annotated[Text, Field(description="The key itself, for key_file.")] = None
    client_ca: Annotated[Text, Field(description="Instead of client_ca_file.")] = None
    client_auth_type: Annotated[
        ClientAuth,
        from_text(scalars.choice_parser(ClientAuth), "a word"),
        WithJsonSchema(
            words_schema(ClientAuth.NONE, ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY)
        ),
        Field(description="Whether clients need a certificate."),
    ] = ClientAuth.NONE
    client_allowed_sans: Annotated[
        Texts, Field(description="Names of which a client's certificate must have one.")
    ] = None
    min_version: Annotated[Version, Field(description="The oldest version that is spoken.")] = (
        TlsVersion.TLS12
    )
    max_version: Annotated[Version, Field(description="The newest version that is spoken.")] = (
        TlsVersion.TLS13
    )
    cipher_suites: Annotated[
        Texts, Field(description="The cipher suites for TLS 1.2, by Go's names.")
    ] = None
    prefer_server_cipher_suites: Annotated[
        Boolean, Field(description="Whether their order counts, and not the client's.")
    ] = True
    curve_preferences: Annotated[
        Texts, Field(description="The elliptic curve that is used; default: OpenSSL's choice.")
    ] = None


class HttpConfig(Section):
    """What answers look like."""

    http2: Annotated[
        bool,
        from_text(scalars.parse_boolean, "true or false"),
        WithJsonSchema({"const": False}),
        Field(description="gmemd doesn't speak HTTP/2."),
    ] = False
    headers: Annotated[
        dict[str, str] | None,
        BeforeValidator(_read_texts),
        WithJsonSchema(
            {
                "type": "object",
                "properties": {
                    name: words_schema(*values) if values else {"type": ["string", "integer"]}
                    for name, values in HEADERS.items()
                },
                "additionalProperties": False,
            }
        ),
        Field(description="Headers of every answer."),
    ] = None


class RateLimitConfig(Section):
    """How many requests are answered: a bucket of tokens."""

    interval: Annotated[
        float,
        from_text(_read_interval, "a time such as 1s"),
        WithJsonSchema(
            {"type": ["string", "integer"], "pattern": f"^(0|{scalars.DURATION})$", "maximum": 0}
        ),
        Field(
            description="A token comes this often; 0: no limit.", json_schema_extra={"default": 0}
        ),
    ] = 0.0
    burst: Annotated[
        int,
        from_text(_read_burst, "a number"),
        WithJsonSchema(number_schema(0, MOST_BURST)),
        Field(description="So many tokens there are at the most."),
    ] = 0


class WebConfig(Section):
    """What protects the metrics: TLS, passwords, headers."""

    tls_server_config: TlsConfig | None = None
    http_server_config: HttpConfig = HttpConfig()
    basic_auth_users: Annotated[
        dict[str, str] | None,
        BeforeValidator(_read_texts),
        WithJsonSchema(
            {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": "^[^:]+$"},
                "additionalProperties": {"type": "string", "pattern": f"^{HASH}$"},
            }
        ),
        Field(description="Users and the bcrypt hashes of their passwords."),
    ] = None
    rate_limit: RateLimitConfig = RateLimitConfig()
