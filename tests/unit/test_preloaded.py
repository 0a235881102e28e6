"""Commands that the tests fork: what they say, how they end, and what they are given."""

import subprocess
from pathlib import Path

import pytest

from tests import preloaded


def test_a_command_is_as_one_that_was_executed() -> None:
    done = preloaded.run("--version")
    assert (done.returncode, done.stdout[:6], done.stderr) == (0, b"gmemd ", b"")
    wrong = preloaded.run("audit", "--nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"hint: gmemd audit --help" in wrong.stderr


def test_a_command_is_waited_for_and_killed(tmp_path: Path) -> None:
    config = tmp_path / "gmemd.yaml"
    (tmp_path / "vms.d").mkdir()
    config.write_text(
        f"vms_directories: [{tmp_path}/vms.d]\nsocket: {tmp_path}/io.gmemd\n"
        f"state_directory: {tmp_path}/state\nmetrics: {{listen: []}}\ndiscovery: false\n"
    )
    with (tmp_path / "log").open("wb") as log:
        process = preloaded.start(["daemon", "--config", str(config)], log)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    assert Path(f"/proc/{process.pid}/fd/1").readlink() == tmp_path / "log"
    process.kill()
    assert (process.wait(), process.poll()) == (-9, -9)
    process.kill()
