from pathlib import Path

import pytest

from gmemd.spec.config import (
    AdmissionConfig,
    AuditConfig,
    DaemonConfig,
    load_config,
    parse_config,
)
from gmemd.spec.problems import SpecError

EXAMPLE = Path(__file__).parents[3] / "config" / "gmemd.yaml"


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_config(text.encode(), file="g.yaml")
    return [
        str(problem) + (f" | {problem.hint}" if problem.hint else "")
        for problem in caught.value.problems
    ]


def test_the_example_is_the_defaults() -> None:
    assert load_config(EXAMPLE) == DaemonConfig()


@pytest.mark.parametrize("text", ["", "# all defaults\n"])
def test_nothing_is_all_defaults(text: str) -> None:
    assert parse_config(text.encode(), file="g.yaml") == DaemonConfig()


def test_all_keys() -> None:
    config = parse_config(
        b"version: 1\nvms_directories: /srv/vms\nsocket: /tmp/s\n"
        b"metrics: {listen: [':9989', '[::1]:1', 'localhost:0'], web_config: /etc/web.yaml}\n"
        b"state_directory: /var/lib/gmemd\ninline_spec_users: [nova, 107]\n"
        b"discovery: false\n"
        b"audit: {interval: 1.5m, sample: 4096}\n"
        b"admission: {reserve: 0.5%, reserve_minimum: 1GiB}\n",
        file="g.yaml",
    )
    assert config.vms_directories == (Path("/srv/vms"),)
    assert config.socket == Path("/tmp/s")  # noqa: S108  a path like another
    assert config.state_directory == Path("/var/lib/gmemd")
    assert config.inline_spec_users == ("nova", "107")
    assert config.metrics.listen == (":9989", "[::1]:1", "localhost:0")
    assert config.metrics.web_config == Path("/etc/web.yaml")
    assert config.discovery is False
    assert config.audit.interval_seconds == 90
    assert config.audit.sample_pages == 4096
    assert config.admission.reserve_ratio == pytest.approx(0.005)
    assert config.admission.reserve_bytes == 1 << 30


def test_metrics_may_be_off() -> None:
    assert parse_config(b"metrics: {listen: []}\n", file="g.yaml").metrics.listen == ()


def test_one_user_needs_no_list() -> None:
    config = parse_config(b"inline_spec_users: libvirt-qemu\n", file="g.yaml")
    assert config.inline_spec_users == ("libvirt-qemu",)


def test_fields_can_be_given_by_name_in_python_only() -> None:
    assert AuditConfig(interval_seconds=0.5).interval_seconds == 0.5
    assert AdmissionConfig(reserve_bytes=4096).reserve_bytes == 4096
    assert problems("audit: {interval_seconds: 5s}\n") == [
        (
            "g.yaml:1:9: audit.interval_seconds: is not a known key"
            " | known here: interval, sample, budget, page_tables"
        )
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "discovery: off",
            "g.yaml:1:12: discovery: must be true or false (got off) | write false",
        ),
        (
            "audit: {sample: 10}",
            "g.yaml:1:17: audit.sample: must be a whole number from 256 to 1048576 (got 10)",
        ),
        (
            "audit: {interval: 60}",
            ("g.yaml:1:19: audit.interval: must be a time with a unit, above nothing and at most "
            "24h, like 500ms, 60s, 5m or 1h (got 60) | write 60s for seconds"),
        ),
        (
            "admission: {reserve: 0.02}",
            ("g.yaml:1:22: admission.reserve: must be a percentage from 0% to 100%, like 1% or "
            "0.5% (got 0.02) | write 2% for a ratio of 0.02"),
        ),
        (
            "metrics: {listen: 9989}",
            ("g.yaml:1:19: metrics.listen: must be ADDRESS:PORT, like 127.0.0.1:9989 or "
            "[::1]:9989 (got 9989) | write 127.0.0.1:9989, or :9989 for every address"),
        ),
        (
            "metrics: {listen: ['::1:9989']}",
            ("g.yaml:1:20: metrics.listen[0]: must be ADDRESS:PORT, like 127.0.0.1:9989 or "
            "[::1]:9989 (got ::1:9989) | an IPv6 address goes in brackets: [::1]:9989"),
        ),
        (
            "metrics: {listen: '[::g]:1'}",
            "g.yaml:1:19: metrics.listen: '::g' is not an IPv6 address (got [::g]:1)",
        ),
        (
            "metrics: {listen: 'a:70000'}",
            ("g.yaml:1:19: metrics.listen: port 70000 is out of range, which is 0 to 65535 "
            "(got a:70000)"),
        ),
        (
            "metrics: {listen: 'a_b:1'}",
            "g.yaml:1:19: metrics.listen: 'a_b' is not an address or a host name (got a_b:1)",
        ),
        (
            "metrics: {web_config: web.yaml}",
            ("g.yaml:1:23: metrics.web_config: must be an absolute path without '..' (got "
             "web.yaml)"),
        ),
        (
            "metrics: {listen: {a: b}}",
            "g.yaml:1:19: metrics.listen: must be ADDRESS:PORT or a list of them (got a mapping)",
        ),
        (
            "vms_directories: []",
            "g.yaml:1:18: vms_directories: must have at least one directory (got an empty list)",
        ),
        (
            "vms_directories: [/a, b, /a]",
            "g.yaml:1:23: vms_directories[1]: must be an absolute path without '..' (got b)",
        ),
        (
            "vms_directories: [/a, /a]",
            "g.yaml:1:23: vms_directories[1]: is in the list twice (got /a)",
        ),
        ("socket: [/a]", "g.yaml:1:9: socket: must be a path (got a list)"),
        ("audit: 60s", "g.yaml:1:8: audit: must be a mapping (got 60s)"),
        ("version: 3", "g.yaml:1:10: version: must be 1, the only version of this format (got 3)"),
        ("vm: x", ("g.yaml:1:1: vm: is not a known key | known here: version, vms_directories, "
         "socket, state_directory, inline_spec_users, discovery, metrics, audit, admission")),
        ("inline_spec_users: [nova, 'a b']", ("g.yaml:1:27: inline_spec_users[1]: must be a "
         "user's name or number (got a b)")),
        ("inline_spec_users: 4294967295", ("g.yaml:1:20: inline_spec_users: must be a user's "
         "name or number (got 4294967295)")),
        ("inline_spec_users: [nova, nova]",
         "g.yaml:1:27: inline_spec_users[1]: is in the list twice (got nova)"),
        ("state_directory: gmemd",
         "g.yaml:1:18: state_directory: must be an absolute path without '..' (got gmemd)"),
    ],
)  # fmt: skip
def test_exact_message(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def test_a_missing_file_is_an_error_where_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="can't be read"):
        load_config(tmp_path / "gmemd.yaml")
