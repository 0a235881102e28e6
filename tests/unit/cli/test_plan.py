from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"
TWO_SOCKETS = ["--host", str(HOSTS / "two-sockets")]


def spec(directory: Path, name: str, *guest_nodes: str, source: str = "create") -> str:
    path = directory / f"{name}.yaml"
    listed = "".join(f"  - {{{node}}}\n" for node in guest_nodes)
    prefault = "" if source == "observe" else "prefault: true\n"
    path.write_text(f"version: 1\nvm: {name}\nsource: {source}\n{prefault}guest_nodes:\n{listed}")
    return str(path)


def node(number: int, memory: str, host_nodes: str, policy: str = "bind", more: str = "") -> str:
    text = f"id: {number}, vcpus: {number}, memory: {memory}, host_nodes: {host_nodes}"
    return f"{text}, policy: {policy}{more}"


def test_what_fits_exits_0_and_shows_where_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spec(tmp_path, "db-01", node(0, "2GiB", "0"), node(1, "4GiB", "1"))
    assert main(["plan", file, *TWO_SOCKETS]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith("it fits\n")
    assert ["db-01:", "fits"] in lines
    assert ["0", "2GiB", "guest_memfd", "bind", "0", "inode-policy", "0:", "2GiB"] in lines
    assert ["1", "4GiB", "guest_memfd", "bind", "1", "inode-policy", "1:", "4GiB"] in lines


def test_what_does_not_fit_exits_3_with_figures_and_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = spec(tmp_path, "good", node(0, "2GiB", "0"))
    bad = spec(tmp_path, "bad", node(0, "99GiB", "1"))
    assert main(["plan", good, bad, *TWO_SOCKETS]) == 3
    out = capsys.readouterr().out
    assert out.startswith("1 of 2 VMs refused: bad\n")
    assert "  refused: guest node 0 needs 99GiB on host node 1, 39.53GiB more than it has" in out
    assert "  hint: give the VM less memory" in out


def test_vms_are_held_against_the_host_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [spec(tmp_path, name, node(0, "40GiB", "1")) for name in ("a", "b")]
    assert [main(["plan", file, *TWO_SOCKETS]) for file in files] == [0, 0]
    assert main(["plan", *files, *TWO_SOCKETS]) == 3
    assert "40GiB committed" in capsys.readouterr().out


def test_a_directory_of_specs_is_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        spec(tmp_path, name, node(0, "1GiB", "1"))
    assert main(["plan", str(tmp_path), *TWO_SOCKETS]) == 0
    assert capsys.readouterr().out.startswith("all 2 VMs fit\n")


def test_a_bad_spec_exits_2_and_the_good_ones_are_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = spec(tmp_path, "good", node(0, "1GiB", "1"))
    bad = spec(tmp_path, "bad", node(0, "1GB", "1"))
    assert main(["plan", good, bad, *TWO_SOCKETS]) == 2
    captured = capsys.readouterr()
    assert "good: fits" in captured.out
    assert f"gmemd: {bad}:6:" in captured.err
    assert main(["plan", bad, *TWO_SOCKETS]) == 2
    assert capsys.readouterr().out == ""


def test_a_vm_named_by_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    first = spec(tmp_path, "db", node(0, "1GiB", "1"))
    second = spec(tmp_path / "other", "db", node(0, "1GiB", "1"))
    assert main(["plan", first, second, *TWO_SOCKETS]) == 2
    assert f"{second}: vm: names the VM that {first} names too" in capsys.readouterr().err


def test_sources_that_wait_take_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = spec(tmp_path, "reg", node(0, "999GiB", "0"), source="register")
    assert main(["plan", file, *TWO_SOCKETS]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing to place; 1 waiting for a VMM\n")
    assert "reg: waiting\n  it waits for its VMM to register its memory\n" in out


def test_what_is_observed_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = spec(tmp_path, "seen", node(0, "999GiB", "0"), source="observe")
    assert main(["plan", file, *TWO_SOCKETS]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing to place; 1 only observed\n")
    assert "seen: observed" in out


def test_the_configured_reserve_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "gmemd.yaml"
    config.write_text("admission: {reserve: 50%}\n")
    file = spec(tmp_path, "db", node(0, "30GiB", "1"))
    assert main(["plan", file, *TWO_SOCKETS]) == 0
    assert main(["plan", file, *TWO_SOCKETS, "--config", str(config)]) == 3
    assert "32GiB reserve" in capsys.readouterr().out


def test_a_kernel_without_inode_policies_falls_back_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spec(tmp_path, "db", node(0, "1GiB", "1"))
    assert main(["plan", file, "--host", str(HOSTS / "before-inode-policy")]) == 0
    assert "proxy-allocation: this kernel drops a guest_memfd's policy" in capsys.readouterr().out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = ", backend: memfd, page_size: 2MiB"
    good = spec(tmp_path, "good", node(0, "1GiB", "1"), node(1, "4MiB", "1", more=huge))
    bad = spec(tmp_path, "bad", node(0, "99GiB", "1"))
    assert main(["plan", good, bad, *TWO_SOCKETS, "--json"]) == 3
    value = json.loads(capsys.readouterr().out)
    assert (value["version"], value["fits"]) == (1, False)
    assert [(vm["vm"], vm["verdict"]) for vm in value["vms"]] == [
        ("good", "fits"),
        ("bad", "refused"),
    ]
    assert value["vms"][0]["regions"][0]["demand"] == {"1": 1 << 30}
    assert value["vms"][1]["refusals"][0]["needed"] == 99 << 30
    assert value["host_nodes"][1]["demand"] == 1 << 30
    assert value["host_nodes"][1]["demand_hugepages"] == {str(2 << 20): 4 << 20}


def test_a_plan_for_another_host_touches_nothing_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the kernel was probed")

    monkeypatch.setattr("gmemd.host.features.probe_features", forbidden)
    assert main(["plan", spec(tmp_path, "db", node(0, "1GiB", "1")), *TWO_SOCKETS]) == 0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    """A config whose socket answers one List: 50 GiB promised on node 0, ``held`` has memory."""
    config = tmp_path / "gmemd.yaml"
    path = tmp_path / "sock"
    config.write_text(f"socket: {path}\nvms_directories: [{tmp_path}]\n")
    reply = {
        "host_nodes": [{"id": 0, "committed": 50 << 40}],
        "vms": [{"vm": "held", "state": "ready"}, {"vm": "new", "state": "waiting"}],
    }

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(json.dumps({"parameters": reply}).encode() + b"\0")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        yield config
        thread.join()


def test_what_a_running_daemon_promised_and_placed_is_counted(
    tmp_path: Path, daemon: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memfd = ", backend: memfd"
    held = spec(tmp_path, "held", node(0, "1MiB", "0", more=memfd))
    new = spec(tmp_path, "new", node(0, "1MiB", "0", more=memfd))
    assert main(["plan", held, new, "--config", str(daemon)]) == 3
    out = capsys.readouterr().out
    assert "held: has its memory already; `gmemd status held` shows where" in out
    assert "50TiB committed" in out
