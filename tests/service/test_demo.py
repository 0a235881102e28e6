"""What deploy/try.sh --lab shows in here: a VM that is placed, and one that drifts."""

from __future__ import annotations

import subprocess
import sys

from tests.service import unit


def test_the_drifting_vm_is_seen() -> None:
    done = subprocess.run(
        [sys.executable, str(unit.CHECKOUT / "deploy/demo.py"), "--lab", "--once"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the drift of db-01 was found" in done.stderr
    assert "db-01  degraded" in done.stdout
    assert "web-01  ready" in done.stdout
    assert 'gmemd_guest_node_drift_ratio{guest_node="1",vm="db-01"} 0.' in done.stdout
