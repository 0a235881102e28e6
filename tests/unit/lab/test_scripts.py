import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.definition import GUEST_FILES

SCRIPTS = sorted(GUEST_FILES.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_shell(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck isn't installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    subprocess.run(["shellcheck", str(script)], check=True)


def test_backports_come_from_the_mirror_that_mmdebstrap_chose(tmp_path: Path) -> None:
    sources = tmp_path / "etc" / "apt" / "sources.list"
    sources.parent.mkdir(parents=True)
    (sources.parent / "sources.list.d").mkdir()
    sources.write_text(
        "deb [signed-by=/k.gpg] file:/mirror trixie main\n"
        "deb [signed-by=/k.gpg] file:/mirror trixie-updates main\n"
    )
    subprocess.run([str(GUEST_FILES / "sources.sh"), str(tmp_path)], check=True)
    assert (sources.parent / "sources.list.d" / "backports.list").read_text() == (
        "deb [signed-by=/k.gpg] file:/mirror trixie-backports main\n"
    )
