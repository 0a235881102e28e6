"""The wheel as deploy/wheel.sh builds it: what it asks of a machine, and a start from nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("LICENSE", "README.md", "deploy", "gmemd", "pyproject.toml", "setup.py")
COMMIT_TIME = "1700000000"
DEBIAN_12_GLIBC_MINOR = 36


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command away from the checkout, and without what points Python at it."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        env=variables | {"SOURCE_DATE_EPOCH": COMMIT_TIME} | environment,
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
    )
    if "connection broken by" in done.stderr:
        pytest.skip("no package index can be reached from here")
    return done


def copy_checkout(at: Path, original: Path = REPOSITORY) -> Path:
    at.mkdir()
    for name in SOURCES:
        source = original / name
        if source.is_dir():
            unbuilt = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(source, at / name, ignore=unbuilt)
        else:
            shutil.copy(source, at / name)
    return at


def build(checkout: Path) -> Path:
    """The wheel, by the one command that README names."""
    done = run("bash", str(checkout / "deploy/wheel.sh"))
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = Path(done.stdout.strip())
    assert list(checkout.glob("dist/*")) == [wheel]
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_checkout(tmp_path_factory.mktemp("wheel") / "checkout"))


def glibc_minor(wheel: Path) -> int:
    name = r"gmemd-[0-9.]+-cp311-abi3-manylinux_2_(\d+)_\w+\.whl"
    found = re.fullmatch(name, wheel.name)
    assert found is not None, wheel.name
    return int(found[1])


def test_one_wheel_serves_debian_12_and_later(wheel: Path) -> None:
    assert glibc_minor(wheel) <= DEBIAN_12_GLIBC_MINOR


def test_readme_names_the_oldest_glibc(wheel: Path) -> None:
    assert f"glibc 2.{glibc_minor(wheel)} or later" in (REPOSITORY / "README.md").read_text()


def test_auditwheel_finds_the_tag_right(wheel: Path) -> None:
    done = run(sys.executable, "-m", "auditwheel", "show", str(wheel))
    assert done.returncode == 0, done.stderr
    assert re.search(r'platform tag:\s+"manylinux_2_\d+_\w+"', done.stdout), done.stdout
    named = [int(minor) for minor in re.findall(r"'GLIBC_2\.(\d+)", done.stdout)]
    assert max(named) == glibc_minor(wheel)


def test_nothing_of_the_building_machine_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        extension = archive.read("gmemd/kernel/_kernel.abi3.so")
    assert {name.split("/")[0] for name in names} == {"gmemd", "gmemd-0.1.0.dist-info"}
    assert not [name for name in names if "__pycache__" in name]
    for folder in (str(wheel.parents[1]), sys.base_prefix, "/.venv/"):
        assert folder == "/usr" or folder.encode() not in extension


def test_another_folder_makes_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "elsewhere", wheel.parents[1])
    (checkout / ".venv").symlink_to(wheel.parents[1] / ".venv")
    assert build(checkout).read_bytes() == wheel.read_bytes()


def test_it_installs_and_runs_where_there_is_no_compiler(wheel: Path, tmp_path: Path) -> None:
    done = run("python3", "-m", "venv", str(tmp_path / "venv"))
    assert done.returncode == 0, done.stderr
    programs = tmp_path / "venv/bin"
    for compiler in ("cc", "gcc", "c99", "clang"):
        assert shutil.which(compiler, path=programs) is None
    done = run(str(programs / "pip"), "install", str(wheel), PATH=str(programs))
    assert done.returncode == 0, done.stdout + done.stderr
    gmemd = str(programs / "gmemd")
    version = run(gmemd, "--version", PATH=str(programs))
    assert (version.returncode, version.stdout.split()[0]) == (0, "gmemd")
    host = run(gmemd, "host", PATH=str(programs))
    assert host.returncode in {0, 3}, host.stderr
    assert "distances" in host.stdout
    audit = run(gmemd, "audit", "--help", PATH=str(programs))
    assert (audit.returncode, audit.stderr) == (0, "")
