"""YAML that is nearly a VM spec, a configuration or the metrics' access: made, then damaged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.mutation import LARGEST_BYTES, mutate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

REPOSITORY = Path(__file__).parents[2]


def corpus(*patterns: str) -> tuple[bytes, ...]:
    """The repository's own files, the smaller ones: many inputs find more than large ones."""
    paths = sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern))
    return tuple(
        data for path in paths if path.is_file() and len(data := path.read_bytes()) <= 4096
    )


SPECS = corpus("config/vms.d/*.yaml", "tests/unit/spec/broken/*.yaml")
CONFIGS = corpus("config/gmemd.yaml")
WEBS = corpus("config/web.yaml")

_SIZES = (
    "4KiB",
    "4MiB",
    "1GiB",
    "16Gi",
    "1.5GiB",
    "2MiB",
    "0GiB",
    "16G",
    "16GB",
    "512",
    "3KiB",
    "5PiB",
)
_NODESETS = (
    "0",
    "0-3",
    "0-3,^1",
    "[0, 2]",
    "1023",
    "1024",
    "3-1",
    "^0",
    "0-1023",
    "",
    "0,,1",
    "[]",
)
_VCPUS = ("0-7", "8-15", "0", "[0, 1]", "0-4095", "4096", "0-7,16-23")
_WORDS = (
    "true",
    "false",
    "yes",
    "~",
    "",
    "null",
    "1",
    "a",
    "{}",
    "[]",
    "{a: b}",
    "- 1",
    "'x'",
    '"\\u0000"',
)
_POLICIES = (
    "bind",
    "default",
    "local",
    "preferred",
    "preferred-many",
    "interleave",
    "weighted-interleave",
)
_DISTANCES = ("{1: 21}", "{0: 10}", "{1: 21, 2: 31}", "{x: 1}", "{1: 999}", "[21]", "{}", "{0: 20}")
_FORMATS = {
    "version": ("1", "2", "'1'", "1.0"),
    "vm": ("a", "db-01", "a b", "-a", "x" * 65, "010"),
    "source": ("create", "register", "adopt", "observe", "creat"),
    "backend": ("guest_memfd", "memfd", "anonymous", "hugetlb"),
    "page_size": ("4KiB", "2MiB", "1GiB", "8KiB", "2M"),
    "prefault": ("true", "false", "no"),
    "confidential": ("true", "false"),
    "on_vmm_exit": ("release", "keep"),
    "cgroup": ("none", "peer", "/a.slice", "/../a", "a"),
    "owner": ("{unit: 'a@*.service'}", "{user: 0}", "{group: kvm}", "{}", "{user: a, group: b}"),
    "match": ("{qemu_name: a}", "{unit: a.service}", "{cgroup: /a}", "{pidfile: /run/a}", "{x: 1}"),
    "drift_tolerance": ("1%", "0.5%", "101%", "1", "0.01", "0%"),
}
_NODE = {
    "id": ("0", "1", "2", "3", "1023", "1024", "-1", "00"),
    "vcpus": _VCPUS,
    "memory": _SIZES,
    "host_nodes": _NODESETS,
    "policy": _POLICIES,
    "distances": _DISTANCES,
    "memdev": ("m0", "m1"),
    **{key: _FORMATS[key] for key in ("backend", "page_size", "prefault")},
}
_REGION = {
    "size": _SIZES,
    **{key: _NODE[key] for key in ("host_nodes", "policy", "backend", "page_size")},
}
_CONFIG = {
    "version": ("1", "2"),
    "vms_directories": ("[/a, /b]", "/a", "[]", "[/a, /a]", "a"),
    "socket": ("/run/a", "a", "/../a"),
    "state_directory": ("/a",),
    "inline_spec_users": ("[a, 0]", "a", "[]", "[4294967295]"),
    "discovery": ("true", "off"),
    "metrics": (
        "{listen: '127.0.0.1:1'}",
        "{listen: ['[::1]:9', ':0']}",
        "{listen: []}",
        "{listen: ['a:99999']}",
    ),
    "audit": (
        "{interval: 60s}",
        "{interval: 5m, budget: 1%, page_tables: none}",
        "{interval: 60, sample: 1024}",
    ),
    "admission": ("{reserve: 2%, reserve_minimum: 256MiB}", "{reserve: 2}"),
}

_HASH = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze"
_WEB = {
    "tls_server_config": (
        "{cert_file: a.crt, key_file: a.key}",
        "{cert_file: /dev/zero, key_file: ../web.yaml, min_version: TLS13, max_version: TLS12}",
        "{cert: '-----BEGIN CERTIFICATE-----', key: x, client_auth_type: RequireAnyClientCert}",
        "{cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256], curve_preferences: [X25519]}",
        "{client_auth_type: NoClientCert, client_ca_file: ca, client_allowed_sans: []}",
    ),
    "basic_auth_users": (f"{{a: {_HASH}}}", f"{{'a:b': {_HASH}, '': x}}", "{}", "{a: hunter2}"),
    "http_server_config": (
        "{http2: false, headers: {X-Frame-Options: deny}}",
        "{http2: true, headers: {X-XSS-Protection: 'ä', X-Other: a}}",
    ),
    "rate_limit": ("{interval: 1s, burst: 20}", "{burst: 20}", "{interval: 1}", "{}"),
}

ODD_WORDS: tuple[bytes, ...] = (
    *(b"&a ", b"*a", b"<<: *a\n", b"!!int ", b"!!python/object:os.system ", b"!<tag:a> ", b"! "),
    *(b"---\n", b"...\n", b"--- ", b"%YAML 1.1\n---\n", b"%YAML 9.9\n", b"%TAG ! tag:a,b:\n"),
    b"%X\n",
    *(b": ", b"- ", b"? ", b", ", b"[", b"]", b"{", b"}", b"| ", b"|\n", b">-\n", b">9+\n"),
    *(b"#", b" #"),
    *(b"'", b'"', b'"\\x00"', b'"\\ud800"', b'"\\U00110000"', b'"\\', b"=", b"@", b"`", b"%"),
    *(b"\n  ", b"\n", b"\n- ", b"a: &b [*b]\n", b"? [a]\n: b\n", b"{a, b, c: }"),
    b"[[[[[[[[[[[[[[[[[[",
    *(b"vm", b"version: 1\n", b"guest_nodes:\n", b"  - id: 0\n", b"regions: ", b"GiB", b"KiB"),
    b"%",
)  # fmt: skip


def vm_spec(rng: Random) -> bytes:
    """One of the repository's specs or one that is made, mostly damaged."""
    if rng.random() < 0.35:
        return _damaged(rng, rng.choice(SPECS), SPECS)
    return _damaged(rng, _made_spec(rng), SPECS, often=0.6)


def config(rng: Random) -> bytes:
    """As above, of the daemon's configuration."""
    if rng.random() < 0.3:
        return _damaged(rng, rng.choice(CONFIGS), CONFIGS)
    return _damaged(rng, _block(rng, _CONFIG, "", n_least=0), CONFIGS, often=0.6)


def web(rng: Random) -> bytes:
    """As above, of what protects the metrics; half of the time with the comments' examples."""
    if rng.random() < _RARELY:
        text = rng.choice(WEBS)
        if rng.random() < _OFTEN:
            text = re.sub(rb"(?m)^# ?(?=[a-z ])", b"", text)
        return _damaged(rng, text, WEBS)
    return _damaged(rng, _block(rng, _WEB, "", n_least=0), WEBS, often=0.6)


_RARELY, _OFTEN = 0.3, 0.7


def _damaged(rng: Random, text: bytes | str, others: Sequence[bytes], often: float = 0.95) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    if rng.random() < often:
        data = mutate(rng, data, ODD_WORDS, others)
    if rng.random() < 0.01:
        data = _encoded_otherwise(rng, data)
    return data[:LARGEST_BYTES]


def _encoded_otherwise(rng: Random, data: bytes) -> bytes:
    kind = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "bom"))
    if kind == "bom":
        return b"\xef\xbb\xbf" * rng.randrange(1, 3) + data
    return data.decode("latin-1").encode(kind)


def _made_spec(rng: Random) -> str:
    """Every second one as it should be, but for values that are wrong."""
    good = rng.random() < 0.5
    n_nodes = rng.choice((1, 1, 1, 2, 2, 3, 4))
    top = _good_top(rng) if good else _block(rng, _FORMATS, "", n_least=2)
    nodes = [_made_node(rng, number, good=good) for number in range(n_nodes)]
    return f"{top}guest_nodes:\n{''.join(nodes)}"


def _good_top(rng: Random) -> str:
    source = rng.choice(("create", "create", "register", "adopt", "observe"))
    text = f"version: 1\nvm: a\nsource: {source}\n"
    for key in ("drift_tolerance", "owner"):
        if rng.random() < 0.2:
            text += f"{key}: {rng.choice(_FORMATS[key])}\n"
    return text


def _made_node(rng: Random, number: int, *, good: bool) -> str:
    if not good:
        return _item(_block(rng, _NODE, "    ", n_least=1) + _made_regions(rng, 0.2))
    text = f"    id: {number}\n    vcpus: {number * 4}-{number * 4 + 3}\n"
    if rng.random() < 0.3:
        return _item(text + _made_regions(rng, 1.0))
    size = rng.choice(("4MiB", "1GiB", "16Gi", "1.5GiB", "4KiB"))
    text += f"    memory: {size}\n    host_nodes: {rng.choice(('0', '0-3', '0-3,^1', '[0, 2]'))}\n"
    if rng.random() < 0.5:
        text += f"    policy: {rng.choice(_POLICIES)}\n"
    return _item(text)


def _made_regions(rng: Random, likely: float) -> str:
    if rng.random() > likely:
        return ""
    regions = [_flow(rng, _REGION) for _ in range(rng.randrange(4))]
    return "    regions:\n" + "".join(f"      - {region}\n" for region in regions)


def _item(block: str) -> str:
    return f"  - {block.removeprefix('    ')}"


def _block(rng: Random, values: dict[str, tuple[str, ...]], indent: str, *, n_least: int) -> str:
    return "".join(f"{indent}{key}: {value}\n" for key, value in _pairs(rng, values, n_least))


def _flow(rng: Random, values: dict[str, tuple[str, ...]]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in _pairs(rng, values, 1)) + "}"


def _pairs(rng: Random, values: dict[str, tuple[str, ...]], n_least: int) -> list[tuple[str, str]]:
    chosen = rng.sample(list(values), rng.randrange(n_least, len(values) + 1))
    pairs = [(key, rng.choice(values[key] if rng.random() < 0.9 else _WORDS)) for key in chosen]
    if rng.random() < 0.1:
        pairs.append(rng.choice((("vms", "1"), ("a.b", "[]"), ("<<", "*a"), *pairs)))
    return pairs


YAMLS: dict[str, Callable[[Random], bytes]] = {"vm-spec": vm_spec, "config": config}
