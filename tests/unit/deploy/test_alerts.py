"""The alerts and their runbooks: what they say of gmemd, and what promtool says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gmemd.audit.observed import Unknown
from gmemd.drift.compute import LEAST_SHARE_TOLERANCE
from gmemd.drift.model import Cause
from gmemd.export.exposition import Exposition
from gmemd.export.instruments import Counters
from gmemd.export.snapshot import Kept, Snapshot

REPOSITORY = Path(__file__).parents[3]
DEPLOY = REPOSITORY / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
ALERTS = PROMETHEUS / "alerts.yaml"
WHERE_PROMTOOL_IS = () if shutil.which("promtool") else (pytest.mark.lab,)
CHAPTERS = ["Meaning", "Impact", "How to look", "Causes and remedies", "When to silence"]


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def runbook(alert: str) -> str:
    return (DEPLOY / "runbooks" / f"{alert}.md").read_text()


@pytest.mark.parametrize("alert", rules())
def test_an_alert_says_what_an_operator_needs(alert: str) -> None:
    rule = rules()[alert]
    assert rule["labels"] == {"severity": "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert "$labels.instance" in rule["annotations"]["description"]
    assert re.fullmatch(r"\d+[mh]", rule["for"])


@pytest.mark.parametrize("alert", rules())
def test_its_runbook_is_there(alert: str) -> None:
    path = DEPLOY / rules()[alert]["annotations"]["runbook_url"]
    text = path.read_text()
    assert path == DEPLOY / "runbooks" / f"{alert}.md"
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == CHAPTERS


def test_no_runbook_is_left_over() -> None:
    assert {path.stem for path in (DEPLOY / "runbooks").iterdir()} == set(rules())


@pytest.mark.parametrize("alert", rules())
def test_it_is_shown_to_fire_and_not_to(alert: str) -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    looks = [look for test in tests for look in test["alert_rule_test"]]
    mine = [bool(look.get("exp_alerts")) for look in looks if look["alertname"] == alert]
    assert set(mine) == {True, False}


def test_the_metrics_are_gmemds() -> None:
    snapshot = Snapshot(version="", taken_timestamp=0.0, kept=Kept())
    text = Exposition(Counters()).render(snapshot)[1].decode()
    exported = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    asked = set(re.findall(r"\bgmemd_\w+", " ".join(rule["expr"] for rule in rules().values())))
    asked |= set(re.findall(r"\bgmemd_guest_node_\w+?(?=%s)", ALERTS.read_text()))
    assert asked <= exported


def test_shares_count_from_where_status_counts_them() -> None:
    assert f", {LEAST_SHARE_TOLERANCE})" in rules()["GmemdInterleaveUneven"]["expr"]


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_its_remedy_in_a_runbook(cause: Cause) -> None:
    about_drift = ("GmemdMemoryMisplaced", "GmemdPolicyMismatch", "GmemdInterleaveUneven")
    assert any(f"**{cause}**" in runbook(alert) for alert in about_drift)


@pytest.mark.parametrize("reason", Unknown)
def test_every_reason_not_to_see_is_explained(reason: Unknown) -> None:
    assert f"- `{reason}`: " in runbook("GmemdPlacementUnknown")


def test_readme_has_them_all() -> None:
    listed = re.findall(r"^\| `(Gmemd\w+)`", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert listed == list(rules())


@pytest.mark.parametrize(
    ("what", "file"),
    [
        pytest.param("check", "alerts.yaml", marks=WHERE_PROMTOOL_IS),
        pytest.param("test", "alerts_test.yaml", marks=WHERE_PROMTOOL_IS),
    ],
)
def test_promtool(what: str, file: str) -> None:
    done = subprocess.run(
        ["promtool", what, "rules", file],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
