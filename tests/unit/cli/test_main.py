from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

import gmemd
from gmemd.cli import main as frame
from gmemd.cli.main import SUBCOMMANDS, main
from gmemd.errors import Exit, GmemdError


class Failing:
    """Stands in for a subcommand's module."""

    HELP = "fails"

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def add_arguments(self, parser: object) -> None:
        del parser

    def run(self, args: object) -> int:
        del args
        if self._error is not None:
            raise self._error
        return Exit.DRIFT


def run_failing(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    monkeypatch.setattr(frame, "_load", lambda _: Failing(error))
    return main(["status"])


def gmemd_process(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = code or "import sys; from gmemd.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_subcommand() -> None:
    done = gmemd_process("--help")
    assert done.returncode == 0
    assert all(f"\n    {name} " in done.stdout for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help(name: str) -> None:
    done = gmemd_process(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: gmemd {name} ")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = "('pydantic', 'rich', 'asyncvarlink', 'prometheus_client', 'cffi', 'yaml', 'asyncio')"
    code = (
        "import sys; from gmemd.cli.main import main; main();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert gmemd_process(*arguments, code=code).stdout.splitlines()[-1] == "[]"


def test_status_and_reload_help_import_nothing_heavy() -> None:
    code = (
        "import sys; from gmemd.cli.main import main; main();"
        "print([name for name in ('pydantic', 'rich', 'asyncvarlink') if name in sys.modules])"
    )
    for name in ("status", "reload", "daemon"):
        assert gmemd_process(name, "--help", code=code).stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gmemd {gmemd.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["status", "--frobnicate"]])
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("gmemd: ")
    assert lines[-1].startswith("hint: gmemd")


def test_errors_have_a_hint_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = GmemdError("reading it: no such file", hint="make one")
    error.exit_code = Exit.USAGE
    assert run_failing(monkeypatch, error) == 2
    assert capsys.readouterr().err == "gmemd: reading it: no such file\nhint: make one\n"


def test_what_nobody_expected_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(monkeypatch, RuntimeError("oops")) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "gmemd: internal error: RuntimeError: oops"
    assert "GMEMD_TRACEBACK=1" in lines[1]


def test_its_traceback_is_shown_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GMEMD_TRACEBACK", "1")
    run_failing(monkeypatch, RuntimeError("oops"))
    assert capsys.readouterr().err.startswith("Traceback")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_failing(monkeypatch, KeyboardInterrupt()) == 130


def test_the_subcommands_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_failing(monkeypatch, None) == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys; from gmemd.cli import main as m;"
        "m._load = lambda _: type('M', (), {'HELP': '', 'add_arguments': lambda p: None,"
        " 'run': lambda a: print('x' * 10**6) or 0});"
        "sys.exit(m.main(['status']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def printing(stdout: int | IO[bytes], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a command that draws a table."""
    return subprocess.run(
        [sys.executable, "-m", "gmemd", "host"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )


def test_a_reader_of_a_table_that_goes_away_is_no_failure() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = printing(write_end)
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (0, b"")


def test_output_that_has_no_room_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        result = printing(full)
    assert result.returncode == 3
    assert result.stderr == b"gmemd: output can't be written: No space left on device\n"


def test_a_terminal_that_lacks_characters() -> None:
    result = printing(subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert result.returncode in (0, 3)
    assert b"internal error" not in result.stderr
    assert result.stdout.isascii()
