from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from gmemd.cli.figures import percent, span
from gmemd.cli.matrix import matrix_lines
from gmemd.export.snapshot_json import vm_to_json
from gmemd.spec.model import PolicyMode
from tests.unit.daemon.vms import MIB, audited_status, guest_node_drift

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDE = 1000


def drawn(
    vm: dict[str, Any], host_nodes: Sequence[int] = (), *, width: int = WIDE, colour: bool = False
) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    for table in matrix_lines(console, vm, host_nodes):
        console.print(table)
    return out.getvalue()


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip() and "─" not in line]


def one_guest_node(by_node: dict[int, int], allowed: set[int], unknown: int = 0) -> dict[str, Any]:
    return vm_to_json(audited_status(guest_node_drift(0, by_node, allowed, unknown_bytes=unknown)))


def test_bytes_and_percent_of_a_well_placed_vm() -> None:
    heading, first, second = rows(drawn(vm_to_json(audited_status())))
    assert heading[-2:] == ["host", "0"]
    assert first == ["0", "8MiB", "8MiB", "bind", "0", "0%", "8MiB", "100%"]
    assert second[0] == "1"


def test_every_node_with_memory_has_a_column() -> None:
    text = drawn(vm_to_json(audited_status()), [0, 1, 5])
    assert "host 1" in text
    assert "host 5" in text
    assert rows(text)[1][-4:] == ["8MiB", "100%", "-", "-"]


def test_misplaced_memory_carries_a_sign() -> None:
    row = rows(drawn(one_guest_node({0: 6 * MIB, 1: 2 * MIB}, {0})))[1]
    assert row[5:] == ["25%", "!", "6MiB", "75%", "2MiB", "25%", "!"]


def test_misplaced_memory_is_red_at_a_terminal() -> None:
    text = drawn(one_guest_node({0: 6 * MIB, 1: 2 * MIB}, {0}), colour=True)
    assert "\x1b[1;31m2MiB 25% !" in text
    assert "\x1b[32m6MiB 75%" in text


def test_an_allowed_node_without_pages_is_told_from_one_that_is_not_allowed() -> None:
    row = rows(drawn(one_guest_node({0: 8 * MIB}, {0, 1}), [0, 1, 2]))[1]
    assert row[-2:] == ["0", "-"]


def test_what_was_not_seen_has_a_column() -> None:
    text = drawn(one_guest_node({0: 6 * MIB}, {0}, unknown=2 * MIB))
    assert rows(text)[0][-1] == "unseen"
    assert rows(text)[1][-3:] == ["2MiB", "25%", "?"]


def test_before_the_first_audit_there_are_sizes_and_policies_alone() -> None:
    vm = vm_to_json(replace(audited_status(), drift=None, audit=None))
    heading, first, _ = rows(drawn(vm, [0, 1]))
    assert "host" not in heading
    assert first == ["0", "8MiB", "-", "bind", "0", "-"]


def test_shares_and_changed_policies_are_drift_too() -> None:
    status = audited_status()
    assert status.drift is not None
    first, second = status.drift.guest_nodes
    drift = replace(
        status.drift,
        guest_nodes=(
            replace(first, share_error_ratio=0.12, drifting=True),
            replace(second, policy_match=False, drifting=True),
        ),
    )
    _, shares, policy = rows(drawn(vm_to_json(replace(status, drift=drift))))
    assert shares[5:8] == ["shares", "±12%", "!"]
    assert policy[5:9] == ["0%,", "policy", "differs", "!"]


def test_several_policies_of_a_guest_node_are_all_named() -> None:
    status = audited_status(guest_node_drift(0, {0: 8 * MIB}, {0, 1}))
    (region,) = status.regions
    other = replace(
        region.plan, index=1, policy=PolicyMode.INTERLEAVE, host_nodes=frozenset({0, 1, 2})
    )
    two = replace(status, regions=(region, replace(region, plan=other)))
    assert "bind 0, interleave 0-2" in drawn(vm_to_json(two))


@pytest.mark.parametrize("width", [80, 60, 50])
def test_eight_host_nodes_are_legible_in_few_columns(width: int) -> None:
    drifts = [guest_node_drift(node, {node: 96 << 30}, {node}) for node in range(8)]
    drifts[3] = guest_node_drift(3, {2: 5 << 30, 3: 91 << 30}, {3})
    text = drawn(vm_to_json(audited_status(*drifts)), range(8), width=width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count("96GiB") == 8 + 7
    assert "5.2% !" in text


def test_nodes_that_hold_nothing_go_first_where_room_is_short() -> None:
    text = drawn(one_guest_node({3: 8 * MIB}, {3}), range(16), width=80)
    assert "host 3" in text
    assert "host 4" not in text


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (None, "?"),
        (0.0, "0%"),
        (1.0, "100%"),
        (1e-9, "<0.1%"),
        (1 - 1e-9, ">99.9%"),
        (0.0625, "6.2%"),
        (0.5, "50%"),
        (0.945, "94.5%"),
    ],
)
def test_percent(ratio: float | None, words: str) -> None:
    assert percent(ratio) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3600, "1 h"), (90000, "1 d 1 h"), (-3, "0 s")],
)
def test_span(seconds: float, words: str) -> None:
    assert span(seconds) == words
