"""``gmemd check`` as its user sees it."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest

from gmemd.cli.check import excerpt
from gmemd.cli.check_web import unreadable
from gmemd.cli.main import main
from gmemd.spec import config
from tests.certificates import certify

ROOT = Path(__file__).parents[3]
GOOD = """\
version: 1
vm: {vm}
source: {source}
guest_nodes:
  - {{id: 0, memory: 1GiB, host_nodes: {nodes}, policy: bind}}
"""


def write(
    directory: Path, name: str, *, source: str = "create", nodes: str = "0", text: str | None = None
) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(GOOD.format(vm=name, source=source, nodes=nodes) if text is None else text)
    return path


def check(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    assert main(["check", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def check_json(
    capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0
) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("\n".join(check(capsys, "--json", *arguments, code=code)))
    return found


@pytest.fixture
def configured(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration that names one directory of VM specs, and that directory."""
    vms = tmp_path / "vms.d"
    vms.mkdir()
    path = tmp_path / "gmemd.yaml"
    path.write_text(f"version: 1\nvms_directories: {vms}\n")
    return path, vms


def test_the_examples_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    lines = check(capsys, ROOT / "config/gmemd.yaml", ROOT / "config/vms.d")
    assert lines[0] == f"{ROOT}/config/gmemd.yaml: valid configuration"
    file = f"{ROOT}/config/vms.d/four-nodes.yaml"
    assert f"{file}: valid: four-nodes, 2 guest nodes, 64GiB" in lines
    assert lines[-1] == "8 files checked: all valid."


def test_a_problem_is_shown_in_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.format(vm="a", source="create", nodes="0").replace("1GiB", "16G")
    path = write(tmp_path, "a", text=text)
    assert check(capsys, path, code=2) == [
        (
            f"{path}:5:21: guest_nodes[0].memory: must be a size with an IEC unit, like 512MiB or "
            "16GiB (got 16G)"
        ),
        "    5 |   - {id: 0, memory: 16G, host_nodes: 0, policy: bind}",
        "      |                     ^~~",
        (
            "      hint: 16G may mean 16GiB (17179869184 bytes) or 16GB (16000000000 bytes): "
            "write 16GiB or 15625000KiB"
        ),
        "1 file checked: 1 problem in 1.",
    ]


def test_good_files_beside_bad_ones_are_said_to_be_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a", text="vm: [\n")
    good = write(tmp_path, "b")
    lines = check(capsys, tmp_path, code=2)
    assert f"{good}: valid: b, 1 guest node, 1GiB" in lines
    assert lines[-1] == "2 files checked: 1 problem in 1."


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("register", "waits for its VMM to register its memory"),
        ("adopt", "waits for its VMM to run"),
    ],
)
def test_a_vm_that_waits_for_its_vmm_is_said_to(
    source: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "a", source=source)
    assert check(capsys, path)[0] == f"{path}: valid: a, 1 guest node, 1GiB; it {reason}"
    (vm,) = check_json(capsys, path)["vms"]
    assert vm["waiting"] == reason


def test_shadowed_files_are_noted_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    first, second = write(etc, "a"), write(run, "a")
    path = tmp_path / "gmemd.yaml"
    path.write_text(f"vms_directories: [{etc}, {run}]\n")
    lines = check(capsys, "--config", path)
    assert f"{second}: not read: {first} stands in its place" in lines
    assert check_json(capsys, "--config", path)["shadowed"] == [
        {"file": str(second), "by": str(first)}
    ]


def test_without_paths_the_configuration_s_directories_are_checked(
    configured: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, vms = configured
    write(vms, "a")
    assert check(capsys, "--config", path) == [
        f"{path}: valid configuration",
        f"{vms}/a.yaml: valid: a, 1 guest node, 1GiB",
        "2 files checked: all valid.",
    ]


def test_an_empty_directory_is_noted(
    configured: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, vms = configured
    assert f"note: no VM specs (*.yaml, *.yml) in {vms}" in check(capsys, "--config", path)


def test_installed_specs_are_compared_with_this_host(
    configured: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, vms = configured
    spec = write(vms, "far", nodes="1000")
    lines = check(capsys, "--config", path, code=3)
    assert lines[0].startswith(f"{spec}: not on this host: guest node 0: host node 1000 is not ")
    assert lines[-1] == "2 files checked: all valid, but 1 can't be placed on this host."
    (impossible,) = check_json(capsys, "--config", path, code=3)["impossible"]
    assert impossible["vm"] == "far"


def test_files_that_are_named_may_be_for_another_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, write(tmp_path, "far", nodes="1000"))


def test_a_missing_installed_directory_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gmemd.yaml"
    path.write_text(f"vms_directories: {tmp_path}/gone\n")
    lines = check(capsys, "--config", path, code=2)
    assert lines[0] == f"{tmp_path}/gone: can't be read: No such file or directory"
    assert lines[1].startswith("      hint: make it a directory")


def test_defaults_hold_without_an_installed_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "CONFIG_PATH", tmp_path / "gmemd.yaml")
    assert main(["check"]) in {0, 2, 3}
    assert f"note: {tmp_path}/gmemd.yaml does not exist: the defaults hold" in (
        capsys.readouterr().out
    )


def test_a_bad_configuration_is_shown_and_the_rest_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gmemd.yaml"
    path.write_text("audit: {interval: 60}\n")
    lines = check(capsys, "--config", path, code=2)
    assert lines[0].startswith(f"{path}:1:19: audit.interval: must be a time with a unit")
    assert any("the default directories were checked" in line for line in lines)


def test_a_vm_may_be_called_gmemd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "gmemd")
    assert check(capsys, path)[0] == f"{path}: valid: gmemd, 1 guest node, 1GiB"


def test_stdin_is_a_spec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = io.BytesIO(GOOD.format(vm="any", source="create", nodes="0").encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert check(capsys, "-")[0] == "<stdin>: valid: any, 1 guest node, 1GiB"


def test_json_has_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "a", text="version: 1\nvm: a\nsource: creat\n")
    found = check_json(capsys, path, "nosuch.yaml", code=2)
    assert found["version"] == 1
    assert found["valid"] is False
    assert found["files"] == 2
    assert found["vms"] == []
    assert [problem["key"] for problem in found["problems"]] == ["guest_nodes", "source", None]
    assert found["problems"][1] == {
        "file": str(path),
        "line": 3,
        "column": 9,
        "key": "source",
        "value": "creat",
        "message": "must be one of create, register, adopt, observe",
        "hint": "did you mean create?",
    }
    assert found["problems"][2]["line"] is None


def test_nothing_of_a_file_reaches_the_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "a", text='version: "\\e[31m"\nvm: [bold]a[/bold]\nx: \x1b[2J\n')
    out = "\n".join(check(capsys, path, code=2))
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("line", "column", "width", "expected"),
    [
        ("memory: 16G", 9, 3, ("memory: 16G", "        ^~~")),
        ("\tx: 1", 1, 1, ("\\tx: 1", "^~")),
        ("", 1, 1, ("", "^")),
        ("ab", 3, 1, ("ab", "  ^")),
    ],
)
def test_excerpts(line: str, column: int, width: int, expected: tuple[str, str]) -> None:
    assert excerpt(line, column, width) == expected


def test_long_lines_are_cut_around_the_place() -> None:
    line = "x" * 500 + "here" + "y" * 500
    code, caret = excerpt(line, 501, 4)
    assert len(code) < 100
    assert code.startswith("…")
    assert code.endswith("…")
    assert code[caret.index("^") :][:4] == "here"


def test_the_web_configuration_that_is_named_is_checked_with_its_files(
    configured: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, vms = configured
    write(vms, "a")
    pair = certify(tmp_path, "server")
    pair.key.chmod(0o644)
    web = tmp_path / "web.yaml"
    web.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
    with path.open("a") as file:
        file.write(f"metrics: {{web_config: {web}}}\n")
    lines = [
        f"{path}: valid configuration",
        f"{web}: valid web configuration: TLS 1.2 and TLS 1.3, no users",
        f"warning: {pair.key}: holds a private key, and everybody may read it: chmod o= it",
    ]
    assert check(capsys, path) == [*lines, "2 files checked: all valid."]
    assert lines[1] in check(capsys, "--config", path)
    found = check_json(capsys, path)
    assert found["web_configs"] == [str(web)]
    assert len(found["warnings"]) == 1
    certify(tmp_path, "other").key.replace(pair.key)
    assert check(capsys, path, code=2) == [
        (f"{web}:1:54: tls_server_config.key_file: is not the certificate's key (got server.key)"),
        "    1 | tls_server_config: {cert_file: server.crt, key_file: server.key}",
        "      |                                                      ^~~~~~~~~~",
        "      hint: renew both together",
        f"{path}: valid configuration",
        "2 files checked: 1 problem in 1.",
    ]


def test_a_web_configuration_is_known_by_its_name_or_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("web", "other"):
        path = write(tmp_path, name, text="basic_auth_users: {alice: hunter2}\n")
        out = "\n".join(check(capsys, path, code=2))
        assert "basic_auth_users.alice: is not a bcrypt hash" in out
        assert "hunter2" not in out
    assert "is empty" in check(capsys, write(tmp_path, "web", text="#\n"), code=2)[0]
    assert "valid: web," in check(capsys, write(tmp_path, "web"))[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="who isn't root finds out by reading")
def test_what_only_root_may_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o640)
    assert unreadable([path], "nobody") == [
        (
            f"{path}: user nobody, which the service runs as, may not read it: chgrp nobody it, "
            "and chmod g+r"
        )
    ]
    os.chown(path, -1, grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_gid)
    assert unreadable([path], "nobody") == []
    os.chown(path, pwd.getpwnam("nobody").pw_uid, 0)
    path.chmod(0o040)
    assert len(unreadable([path], "nobody")) == 1
    os.chown(path, 0, 0)
    path.chmod(0o604)
    assert unreadable([path, tmp_path / "gone"], "nobody") == []
    assert unreadable([path], "nobody-of-that-name") == []
