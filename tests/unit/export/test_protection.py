"""A web.yaml with its files: what is wrong with them, where, and what is never told."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from gmemd.export import protection as protection_module
from gmemd.export.protection import Protection, Reading
from gmemd.export.tls import is_allowed
from gmemd.spec.problems import SpecError
from gmemd.spec.yamltree import LARGEST_FILE
from tests.certificates import Pair, certify, expire, hashed

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.crt"
PAIR = "tls_server_config: {cert_file: server.crt, key_file: server.key"


@pytest.fixture
def server(tmp_path: Path) -> Pair:
    pair = certify(tmp_path, "server")
    pair.key.chmod(0o640)
    return pair


def protection(directory: Path, text: str, *, mode: int = 0o640) -> Protection:
    path = directory / "web.yaml"
    path.write_text(text)
    path.chmod(mode)
    return Reading(path).protection()


def problems(directory: Path, text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        protection(directory, text)
    return [
        f"{problem}".removeprefix(f"{directory}/") + (f" | {problem.hint}" if problem.hint else "")
        for problem in caught.value.problems
    ]


def test_a_context_is_what_was_asked_for(tmp_path: Path, server: Pair) -> None:
    suites = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"
    made = protection(
        tmp_path,
        f"{PAIR}, cipher_suites: [{suites}], prefer_server_cipher_suites: false, "
        f"client_auth_type: VerifyClientCertIfGiven, client_ca_file: {server.cert}, "
        "max_version: TLS12, curve_preferences: [CurveP384]}",
    )
    context = made.context
    assert context is not None
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert [name for name in names if not name.startswith("TLS_")] == [
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-SHA",
    ]
    assert context.maximum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_OPTIONAL
    assert not context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert made.words == "TLS 1.2, client_auth_type VerifyClientCertIfGiven, no users"
    assert made.warnings == ()


def test_server_preference_is_the_default(tmp_path: Path, server: Pair) -> None:
    made = protection(tmp_path, f"{PAIR}}}")
    assert server.cert.parent == tmp_path
    assert made.context is not None
    assert made.context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert made.words == "TLS 1.2 and TLS 1.3, no users"


def test_certificate_and_key_may_stand_in_the_file_itself(tmp_path: Path, server: Pair) -> None:
    def block(pair_file: Path) -> str:
        return "|\n" + "".join(f"    {line}\n" for line in pair_file.read_text().splitlines())

    text = f"tls_server_config:\n  cert: {block(server.cert)}  key: {block(server.key)}"
    made = protection(tmp_path, text, mode=0o644)
    assert made.context is not None
    assert made.warnings == (
        f"{tmp_path}/web.yaml: holds a private key, and everybody may read it: chmod o= it",
    )
    other = certify(tmp_path, "other")
    text = text.replace(block(server.key), block(other.key))
    (told,) = problems(tmp_path, text)
    assert "tls_server_config.key: is not the certificate's key | " in told
    assert "PRIVATE" not in told


def test_what_everybody_may_read_and_what_is_sent_in_the_clear(
    tmp_path: Path, server: Pair
) -> None:
    server.key.chmod(0o644)
    users = f"basic_auth_users: {{alice: {hashed('a')}, bob: {hashed('b')}}}"
    made = protection(tmp_path, f"{PAIR}}}\n{users}", mode=0o644)
    assert made.words == "TLS 1.2 and TLS 1.3, 2 users"
    assert made.warnings == (
        f"{server.key}: holds a private key, and everybody may read it: chmod o= it",
        (f"{tmp_path}/web.yaml: holds hashes of passwords, and everybody may read it: "
         "chmod o= it"),
    )  # fmt: skip
    made = protection(tmp_path, users)
    assert made.words == "no TLS, 2 users"
    assert made.warnings == (
        f"{tmp_path}/web.yaml: without tls_server_config passwords are sent in the clear",
    )


def test_files_that_are_of_no_use_are_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "server.crt").write_text("not a certificate\n")
    (tmp_path / "empty").touch()
    text = (
        "tls_server_config: {cert_file: gone.crt, key_file: empty, client_ca_file: server.crt, "
        "client_auth_type: VerifyClientCertIfGiven, min_version: TLS9}\n"
        "basic_auth_users: {alice: secret}\n"
    )
    told = problems(tmp_path, text)
    assert [line.partition(" | ")[0] for line in told] == [
        ("web.yaml:1:32: tls_server_config.cert_file: can't be read: No such file or directory "
         "(got gone.crt)"),
        "web.yaml:1:52: tls_server_config.key_file: is empty (got empty)",
        ("web.yaml:1:75: tls_server_config.client_ca_file: holds no certificate in PEM (got "
         "server.crt)"),
        ("web.yaml:1:143: tls_server_config.min_version: must be one of TLS10, TLS11, TLS12, TLS13 "
         "(got TLS9)"),
        "web.yaml:2:20: basic_auth_users.alice: is not a bcrypt hash, like $2y$10$…",
    ]  # fmt: skip
    assert told[0].endswith(
        f" | it was looked for at {tmp_path}/gone.crt: names are relative to this file's directory"
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("server.crt", "other.key", "server.crt"), "key_file: is not the certificate's key"),
        (("server.crt", "rsa.key", "server.crt"), "key_file: is not the certificate's key"),
        (("server.crt", "server.crt", "server.crt"), "key_file: holds no private key in PEM"),
        (("server.crt", "locked.key", "server.crt"), "key_file: is encrypted, and nobody is there"),
        (("server.key", "server.key", "server.crt"), "cert_file: holds no certificate in PEM"),
        (("weak.crt", "weak.key", "server.crt"), "cert_file: is refused by OpenSSL: ee key too sm"),
        (("server.crt", "server.key", "server.key"), "client_ca_file: holds no certificate in PEM"),
        (("large", "server.key", "server.crt"), "cert_file: is larger than 1MiB"),
    ],
)
def test_files_of_the_wrong_kind(
    tmp_path: Path, server: Pair, names: tuple[str, str, str], expected: str
) -> None:
    cert, key, ca = names
    certify(tmp_path, "other")
    (tmp_path / "large").write_bytes(b"\n" * (LARGEST_FILE + 1))
    for name, bits in (("rsa", 2048), ("weak", 512)):
        if name in cert + key:
            make = ("openssl", "req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-subj", "/CN=a")
            out = ("-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt")
            subprocess.run([*make, *out], check=True, capture_output=True)
    lock = ("openssl", "pkey", "-in", server.key, "-aes256", "-passout", "pass:abcd")
    subprocess.run([*lock, "-out", tmp_path / "locked.key"], check=True)
    text = (
        f"tls_server_config: {{cert_file: {cert}, key_file: {key}, client_ca_file: {ca}, "
        "client_auth_type: RequireAndVerifyClientCert}"
    )
    (told,) = problems(tmp_path, text)
    assert f"tls_server_config.{expected}" in told


def test_what_openssl_refuses_is_a_problem_too(
    tmp_path: Path, server: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> ssl.SSLContext:
        raise ssl.SSLError("No cipher can be selected.")

    monkeypatch.setattr(protection_module, "make_context", refuse)
    (told,) = problems(tmp_path, f"{PAIR}}}")
    assert "tls_server_config: is refused by OpenSSL: ('No cipher can be selected.',)" in told
    assert server.cert.exists()


def test_secrets_are_in_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text("basic_auth_users: {alice: hunter2}\n")
    with pytest.raises(SpecError) as caught:
        Reading(path).protection()
    assert "hunter2" not in repr(caught.value.problems)
    assert "hunter2" not in caught.value.in_one_line


@pytest.mark.parametrize(
    ("name", "is_in"),
    [
        ("a.example", True),
        ("A.example", False),
        ("ops@example.com", True),
        ("spiffe://x/y", True),
        ("10.0.0.1", True),
        ("2001:db8::1", True),
        ("2001:0db8:0::1", True),
        ("b.example", False),
        ("Some CA", False),
    ],
)
def test_names_of_clients(name: str, *, is_in: bool) -> None:
    names = (
        ("DNS", "a.example"),
        ("email", "ops@example.com"),
        ("URI", "spiffe://x/y"),
        ("IP Address", "10.0.0.1"),
        ("IP Address", "2001:DB8:0:0:0:0:0:1"),
        ("DirName", "Some CA"),
    )
    assert is_allowed({"subjectAltName": names}, [name]) is is_in
    assert not is_allowed({}, [name])


@pytest.mark.parametrize(
    ("usage", "more", "why"),
    [
        ("serverAuth", "", None),
        ("clientAuth", "", "unsuitable certificate purpose"),
        (
            "",
            ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256], max_version: TLS12",
            "no shared cipher",
        ),
        ("", f", {REQUIRED}", None),
    ],
)
def test_what_no_client_would_take_is_warned_of(
    tmp_path: Path, usage: str, more: str, why: str | None
) -> None:
    pair = certify(tmp_path, "server", usage=usage)
    pair.key.chmod(0o640)
    made = protection(tmp_path, f"{PAIR}{more}}}")
    assert made.context is not None
    told = f"{tmp_path}/web.yaml: clients won't take the certificate: {why}"
    assert made.warnings == (() if why is None else (told,))


def test_an_expired_certificate_is_warned_of(tmp_path: Path, server: Pair) -> None:
    expire(server)
    (warning,) = protection(tmp_path, f"{PAIR}}}").warnings
    assert warning.endswith("clients won't take the certificate: certificate has expired")


def test_a_name_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text('tls_server_config: {cert_file: "a\\tb", key_file: "\u202ec"}\n')
    with pytest.raises(SpecError) as caught:
        Reading(path).protection()
    for problem in caught.value.problems:
        assert str(problem).isprintable()
        assert problem.hint is None or problem.hint.isprintable()
