"""The linters, as tests: what they complain about is a failure like any other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def scripts() -> list[str]:
    """All shell scripts of the checkout, by name or first line, relative to it."""
    paths = [
        path
        for folder in (".ci", "deploy", "tests")
        for path in REPOSITORY.joinpath(folder).rglob("*")
    ]
    return sorted(str(path.relative_to(REPOSITORY)) for path in paths if is_script(path))


def is_script(path: Path) -> bool:
    if not path.is_file() or path.suffix not in {"", ".sh"}:
        return False
    first = path.read_bytes().split(b"\n", 1)[0]
    return path.suffix == ".sh" or (first.startswith(b"#!") and first.endswith(b"sh"))


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check", "--diff")])
def test_ruff(arguments: tuple[str, ...]) -> None:
    run(sys.executable, "-m", "ruff", *arguments)


def test_mypy() -> None:
    run(sys.executable, "-m", "mypy")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    run("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts())
