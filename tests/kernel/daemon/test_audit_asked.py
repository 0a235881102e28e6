"""An audit by the daemon looks at what it was asked to look at: every page, or a sample."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gmemd.client import Client

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

MIB = 1 << 20


def samples(vm: Any) -> list[Any]:  # noqa: ANN401  JSON
    return [region["sample"] for node in vm["guest_nodes"] for region in node["regions"]]


def test_memory_that_the_daemon_holds(daemon: Daemon) -> None:
    daemon.write("db-01")
    with daemon.running():
        daemon.wait_for("db-01", "ready")
        client = Client(daemon.socket)
        assert samples(client.audit("db-01")) == [None, None]
        drawn = client.audit("db-01", sample_pages=300, confidence=0.99)
        assert samples(drawn) == [
            {"population": 2048, "drawn": 300, "confidence": 0.99, "margin": None},
            None,  # hardly larger than the sample, and looked at whole
        ]
        assert drawn["audit"] is not None
        assert drawn["audit"]["errors"] == {}
        assert drawn["guest_nodes"][0]["regions"][0]["resident"] == 8 * MIB
        exact = client.audit("db-01", full=True, jobs=2)
        assert samples(exact) == [None, None]
        assert exact["audit"] is not None
        assert exact["audit"]["cpu_seconds"] > 0


def test_margins_by_the_command_line(daemon: Daemon) -> None:
    daemon.write("db-01")
    with daemon.running():
        daemon.wait_for("db-01", "ready")
        ran = daemon.gmemd("audit", "db-01", "--margin", "5%", "--json")
        assert ran.returncode == 0, ran.stderr
        first, _ = samples(json.loads(ran.stdout))
        assert (first["drawn"], first["margin"], first["confidence"]) == (381, 0.05, 0.95)
        drift = json.loads(ran.stdout)["guest_nodes"][0]["drift"]
        assert drift["drift_upper_ratio"] - drift["drift_lower_ratio"] <= 2 * 0.05
        ran = daemon.gmemd("audit", "db-01", "--margin", "5%")
        assert "shares to within 5%" in ran.stdout
