from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gmemd.cli.main import main

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert main(["host", *arguments]) == code
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_verdict_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--host", str(HOSTS / "cxl"))
    assert lines[0] == "gmemd can place guest_memfd by inode policy here"


def test_nodes_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--host", str(HOSTS / "cxl"))
    heading = next(line.split() for line in lines if line.startswith("node"))
    assert heading[:3] == ["node", "CPUs", "memory"]
    expander = next(line for line in lines if line.split()[:2] == ["2", "none"])
    assert "64GiB" in expander
    assert "4096 of 4096 free" in expander
    assert expander.endswith("0:14 1:24 2:10")
    assert any("Node 2 has movable memory only" in line for line in lines)


def test_gmemds_own_cpuset_is_said_where_it_leaves_something_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = lines_of(capsys, "--host", str(HOSTS / "holes"))
    assert lines[1].endswith("gmemd itself may use memory of nodes 0,2 and CPUs 0-3 only")
    assert lines_of(capsys, "--host", str(HOSTS / "cxl"))[1] == "Linux 6.19.0"


def test_a_missing_feature_comes_with_what_was_seen_and_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = lines_of(capsys, "--host", str(HOSTS / "no-kvm"))
    at = next(number for number, line in enumerate(lines) if line.startswith("✗ kvm"))
    assert lines[at + 1].strip() == "seen: open /dev/kvm: ENOENT"
    assert lines[at + 2].strip() == "do: pass /dev/kvm in"
    assert any(line.startswith("? inode_policy") for line in lines)
    assert any(line.startswith("✓ memfd_inode_policy") for line in lines)


def test_a_host_where_nothing_can_be_placed_exits_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "host"
    assert main(["host", "--host", str(HOSTS / "no-kvm"), "--record", str(tree)]) == 0
    record = json.loads((tree / "gmemd-host.json").read_text())
    for feature in record["features"]:
        feature["supported"] = False
    (tree / "gmemd-host.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert lines_of(capsys, "--host", str(tree), code=3)[0].startswith("gmemd can place nothing")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads("\n".join(lines_of(capsys, "--host", str(HOSTS / "cxl"), "--json")))
    assert value["version"] == 1
    assert value["able"] is True
    assert value["nodes"][2]["movable_only"] is True
    assert value["nodes"][2]["hugepages"] == [
        {"page_size": 2097152, "total": 4096, "free": 4096, "surplus": 0}
    ]
    assert [feature["name"] for feature in value["features"]][:2] == ["kvm", "guest_memfd"]


def test_a_recorded_host_shows_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lines_of(capsys, "--host", str(HOSTS / "two-sockets"))
    assert not lines_of(
        capsys, "--host", str(HOSTS / "two-sockets"), "--record", str(tmp_path / "copy")
    )
    assert lines_of(capsys, "--host", str(tmp_path / "copy")) == before


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads("\n".join(lines_of(capsys, "--json")))
    assert value["nodes"][0]["placeable_available"] > 0


def test_a_directory_that_is_no_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "--host", str(tmp_path)]) == 3
    assert "hint: a tree that `gmemd host --record DIR` wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "said"), [("0", None), ("1", "all of its memory"), ("2", "Twice the reserve")]
)
def test_a_kernel_that_panics_for_want_of_memory_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str | None
) -> None:
    tree = tmp_path / "host"
    shutil.copytree(HOSTS / "cxl", tree)
    (tree / "proc/sys/vm").mkdir()
    (tree / "proc/sys/vm/panic_on_oom").write_text(f"{setting}\n")
    shown = " ".join(lines_of(capsys, "--host", str(tree)))
    assert ("vm.panic_on_oom" in shown) is (said is not None)
    assert said is None or said in shown
    main(["host", "--host", str(tree), "--json"])
    assert json.loads(capsys.readouterr().out)["panic_on_oom"] == int(setting)
