"""The host's and the inside's pytest, joined by a file instead of a machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab.errors import LabError
from tests.lab.pytest_guest import REPORTS_FILE, TESTS_VARIABLE
from tests.lab.pytest_host import parts_of
from tests.lab.pytest_machines import ReportStream
from tests.lab.running import REPOSITORY

MODULE = """
import pytest

def test_passes():
    print("said inside")

@pytest.mark.parametrize("word", ["a b", "c/d"])
def test_words(word):
    assert word == "a b"

def test_skips():
    pytest.skip("has none")

@pytest.fixture
def broken():
    yield
    raise RuntimeError("at the end")

def test_breaks_down(broken):
    pass

def test_not_chosen():
    raise AssertionError
"""

NARROW = """
import os, resource, time

def test_no_descriptor_is_free(monkeypatch, tmp_path):
    started = time.monotonic()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    while time.monotonic() < started + 3:
        time.sleep(0.1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""

CONFTEST = """
from tests.lab import pytest_guest

def pytest_configure(config):
    pytest_guest.register(config)
"""

HOST_CONFTEST = f"""
import os, subprocess, sys
from pathlib import Path
from tests.lab import pytest_host, pytest_machines
from tests.lab.errors import LabError

class Lab:
    "Runs the command here, and as often as it is asked says that it is still at it."

    def __init__(self, variant, command, *, environment, stdout, stderr, files, quiet):
        self.share = Path(os.environ["SHARE"])
        for name, text in files.items():
            (self.share / name).write_text(text)
        self.stdout = stdout

    def __enter__(self):
        environment = {{**os.environ, {TESTS_VARIABLE!r}: str(self.share)}}
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
            cwd=os.environ["INSIDE"], env=environment, stdout=self.stdout, check=False,
        )
        self.polls = 0
        return self

    def __exit__(self, *exc):
        pass

    def poll(self):
        self.polls += 1
        if self.polls < 3:
            return None
        if os.environ.get("CRASH") == "killed":
            os.kill(os.getpid(), 9)
        if os.environ.get("CRASH"):
            raise LabError("the lab's kernel panicked", detail="Kernel panic - not syncing")
        return 1

pytest_machines.Lab = Lab
pytest_host.ensure_image = lambda: None
pytest_host.REPOSITORY = Path.cwd()
pytest_host.LAB_FOLDERS = {{"far": "default"}}

def pytest_addoption(parser):
    parser.addoption("--no-lab", action="store_true")

def pytest_configure(config):
    config.addinivalue_line("markers", "lab(variant): in the lab")
    config.pluginmanager.register(pytest_host.LabRouting())
"""


class Result:
    def __init__(self, text: str, exit_code: int) -> None:
        self.text = text
        self.exit_code = exit_code
        self.last_line = text.strip().splitlines()[-1]


@pytest.fixture
def run_host(tmp_path: Path):  # noqa: ANN201 - a function, described by its own signature
    host, inside, share = (tmp_path / name for name in ("host", "inside", "share"))
    for folder in (host / "far", inside / "far", share):
        folder.mkdir(parents=True)
    (host / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (inside / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (host / "conftest.py").write_text(HOST_CONFTEST)
    (inside / "conftest.py").write_text(CONFTEST)
    (host / "far" / "test_far.py").write_text(MODULE)
    (inside / "far" / "test_far.py").write_text(MODULE)
    (host / "test_near.py").write_text("def test_near():\n    pass\n")

    def run(*arguments: str, crash: str = "", inside_module: str = MODULE) -> Result:
        (inside / "far" / "test_far.py").write_text(inside_module)
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "XDG_CACHE_HOME": str(tmp_path),
            "SHARE": str(share),
            "INSIDE": str(inside),
            "CRASH": crash,
        }
        (tmp_path / "gmemd" / "lab").mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments],
            cwd=host,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(result.stdout + result.stderr, result.returncode)

    return run


def test_results_of_both_are_in_one_summary(run_host) -> None:  # noqa: ANN001
    result = run_host("--deselect", "far/test_far.py::test_not_chosen")
    assert "test_near.py::test_near PASSED" in result.text
    assert "far/test_far.py::test_passes PASSED" in result.text
    assert "far/test_far.py::test_words[a b] PASSED" in result.text
    assert "far/test_far.py::test_words[c/d] FAILED" in result.text
    assert "assert 'c/d' == 'a b'" in result.text
    assert "RuntimeError: at the end" in result.text
    assert "2 failed, 4 passed, 1 deselected, 1 error" in result.last_line
    assert result.exit_code == 1


def test_a_skip_inside_is_a_failure(run_host) -> None:  # noqa: ANN001
    result = run_host("-k", "skips")
    assert "skipped inside the lab, which has to have it all: Skipped: has none" in result.text
    assert "1 failed, 6 deselected" in result.last_line


def test_only_what_was_chosen_runs(run_host) -> None:  # noqa: ANN001
    result = run_host("far/test_far.py::test_passes")
    assert result.last_line.strip("= ").startswith("1 passed in")
    assert result.exit_code == 0


def test_a_panic_makes_errors_of_what_had_not_run(run_host) -> None:  # noqa: ANN001
    dying = MODULE.replace('print("said inside")', "import os; os._exit(9)")
    result = run_host("far", "-k", "passes or words", crash="panicked", inside_module=dying)
    assert "this test was running in the lab" in result.text
    assert "Kernel panic - not syncing" in result.text
    assert "the first of these errors has the details" in result.text
    assert "3 errors" in result.last_line
    assert result.exit_code == 1


def test_a_killed_process_of_a_machine_is_an_error_too(run_host) -> None:  # noqa: ANN001
    dying = MODULE.replace('print("said inside")', "import os; os._exit(9)")
    result = run_host("far", "-k", "passes", crash="killed", inside_module=dying)
    assert "the lab's process ended by itself, with exit code -9" in result.text
    assert "1 error" in result.last_line


def test_what_a_test_does_to_its_process_stays_there(run_host, tmp_path: Path) -> None:  # noqa: ANN001
    (tmp_path / "host" / "test_near.py").write_text(NARROW)
    result = run_host("test_near.py", "far/test_far.py::test_passes")
    assert result.last_line.strip("= ").startswith("2 passed in")


def test_a_module_that_fails_to_import_inside_says_so(run_host) -> None:  # noqa: ANN001
    result = run_host("far", "-k", "passes", inside_module="import nowhere_to_be_found\n")
    assert "No module named 'nowhere_to_be_found'" in result.text
    assert "1 error" in result.last_line


def test_the_lab_can_be_left_out(run_host) -> None:  # noqa: ANN001
    result = run_host("--no-lab")
    assert "1 passed, 6 deselected" in result.last_line


def test_an_unknown_variant_is_a_usage_error(run_host, tmp_path: Path) -> None:  # noqa: ANN001
    (tmp_path / "host" / "test_near.py").write_text(
        "import pytest\npytestmark = pytest.mark.lab(variant='none')\ndef test_near(): pass\n"
    )
    result = run_host("test_near.py")
    assert "the lab has no variant 'none'" in result.text
    assert result.exit_code != 0


def test_two_machines_share_a_variants_files() -> None:
    names = ["a::1", "a::2", "b::1", "c::1", "c::2", "c::3"]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    parts = {name: [item.nodeid for item in part] for name, part in parts_of(items, 2)}
    assert parts == {"1 of 2": ["a::1", "a::2", "c::1", "c::2", "c::3"], "2 of 2": ["b::1"]}
    assert list(parts_of(items[:2], 2)) == [("", items[:2])]
    assert list(parts_of([], 2)) == []


def test_lines_are_given_when_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / REPORTS_FILE
    stream = ReportStream(path)
    assert list(stream.new_lines()) == []
    with path.open("a", buffering=1) as file:
        file.write('{"a": 1}\n{"b"')
        file.flush()
        assert [json.loads(line) for line in stream.new_lines()] == [{"a": 1}]
        assert list(stream.new_lines()) == []
        file.write(": 2}\n")
        assert [json.loads(line) for line in stream.new_lines()] == [{"b": 2}]


def test_a_lab_error_is_explained_with_its_way_out() -> None:
    error = LabError("it broke", hint="mend it", detail="the log")
    assert error.explain() == "lab: it broke\nhint: mend it\nthe log"
