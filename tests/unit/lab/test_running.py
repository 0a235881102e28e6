import shlex
import subprocess
from pathlib import Path

import pytest

from tests.lab.__main__ import parse
from tests.lab.machine import VARIANTS
from tests.lab.running import Lab, machine_slot


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(VARIANTS["default"], ["printf", "%s|", "a b", "'", "$HOME"])
    made.share = tmp_path
    return made


def test_the_command_comes_through_as_it_was_given(lab: Lab) -> None:
    lab._fill_share()
    result = subprocess.run(
        ["sh", str(lab.share / "command")], capture_output=True, text=True, check=True
    )
    assert result.stdout == "a b|'|$HOME|"


def test_the_environment_comes_through(lab: Lab) -> None:
    lab.command = ["env"]
    lab.environment = {"ODD": "it's; `odd` $HOME"}
    lab._fill_share()
    result = subprocess.run(
        ["sh", str(lab.share / "command")], capture_output=True, text=True, check=True
    )
    assert "ODD=it's; `odd` $HOME\n" in result.stdout
    assert "GMEMD_LAB=1\n" in result.stdout
    assert "GMEMD_LAB_VARIANT=default\n" in result.stdout


def test_files_are_put_in_the_share(lab: Lab) -> None:
    lab.files = {"tests.json": "[]"}
    lab._fill_share()
    assert (lab.share / "tests.json").read_text() == "[]"


def test_settings_are_shell(lab: Lab) -> None:
    lab._fill_share()
    names = {line.split("=")[0] for line in (lab.share / "settings").read_text().splitlines()}
    assert names >= {"LAB_CHECKOUT", "LAB_SYSTEMD", "LAB_SHELL"}


def test_options_of_the_command_are_its_own() -> None:
    options = parse(shlex.split("run --variant movable --timeout 5 -- ls --memory 3"))
    assert options.command == ["ls", "--memory", "3"]
    assert (options.variant, options.timeout, options.memory) == ("movable", 5.0, 1024)


def test_slots_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(3):
        with machine_slot(), machine_slot():
            pass
