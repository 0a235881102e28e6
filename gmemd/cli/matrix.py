"""A VM's guest nodes against the host nodes that hold their memory, as tables.

The VM is the JSON that `gmemd status VM --json` prints and the API's Describe returns. What lies
on a host node that the spec doesn't allow is red and carries a ``!``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmemd.cli.figures import estimate, nodes, percent
from gmemd.cli.output import PLAIN_WIDTH, table
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MISPLACED = "!"
UNSEEN = "?"


def matrix_lines(
    console: Console, vm: Mapping[str, Any], host_nodes: Sequence[int] = ()
) -> Iterator[Table]:
    """Return the tables of one VM that fit the console; one where its width allows.

    ``host_nodes`` are the host's nodes with memory; each has a column where there is room. Those
    that hold or may hold any of the VM's memory always have one.
    """
    used = _host_nodes_of(vm)
    if all(row["drift"] is None for row in _rows(vm)):
        yield _summary(vm)
        return
    every = sorted(used | set(host_nodes))
    for columns in (every, sorted(used)):
        whole = _whole(vm, columns)
        if _fits(console, whole):
            yield whole
            return
    yield _summary(vm)
    yield from _placements(console, vm, sorted(used))


def has_rows(vm: Mapping[str, Any]) -> bool:
    """Whether there is anything to draw."""
    return bool(_rows(vm))


def _rows(vm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The guest nodes; below them, in their form, what a running VMM has and nothing declares."""
    rows = list(vm["guest_nodes"])
    running = vm.get("running")
    if running is not None and running["unmatched"]:
        rows.append(_unmatched_row(running["unmatched"]))
    return rows


def _unmatched_row(pieces: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    seen = [piece for piece in pieces if piece["resident"] is not None]
    by_node: dict[str, int] = {}
    for piece in seen:
        for node, size in piece["by_node"].items():
            by_node[node] = by_node.get(node, 0) + size
    drift = {
        "resident": sum(piece["resident"] for piece in seen),
        "unknown": sum(piece["unknown"] for piece in seen),
        "by_node": by_node,
        "host_nodes_allowed": [],
        "misplaced": 0,
        "drift_ratio": None,
        "share_error_ratio": None,
        "policy_match": None,
        "drifting": False,
        "declared": False,
        "sampled": any(piece["sampled"] for piece in seen),
    }
    return {
        "id": "unmatched",
        "memory": sum(piece["size"] for piece in pieces),
        "regions": [],
        "drift": drift if seen else None,
    }


def _fits(console: Console, candidate: Table) -> bool:
    """Whether a table needs no more than the console's columns."""
    unbounded = console.options.update(max_width=PLAIN_WIDTH)
    return console.measure(candidate, options=unbounded).maximum <= console.width


def _host_nodes_of(vm: Mapping[str, Any]) -> set[int]:
    """Host nodes that hold the VM's memory, or may."""
    found: set[int] = set()
    for guest_node in _rows(vm):
        drift = guest_node["drift"]
        if drift is not None:
            found.update(int(node) for node, size in drift["by_node"].items() if size)
        found.update(_allowed(guest_node))
    return found


def _allowed(guest_node: Mapping[str, Any]) -> set[int]:
    """Host nodes where the guest node's memory may be, by the audit or else by its regions."""
    if guest_node["drift"] is not None:
        return set(guest_node["drift"]["host_nodes_allowed"])
    return {node for region in guest_node["regions"] for node in region["host_nodes"]}


def _whole(vm: Mapping[str, Any], columns: Sequence[int]) -> Table:
    """Everything in one table: the guest nodes' figures, then the host nodes."""
    drawn = table()
    _add_summary_columns(drawn)
    for node in columns:
        drawn.add_column(f"host {node}", justify="right", no_wrap=True)
    unseen = _has_unseen(vm)
    if unseen:
        drawn.add_column("unseen", justify="right", no_wrap=True)
    for guest_node in _rows(vm):
        cells = [_cell(guest_node, node, between=" ") for node in columns]
        if unseen:
            cells.append(_unseen_cell(guest_node, between=" "))
        drawn.add_row(*_summary_cells(guest_node), *cells)
    return drawn


def _summary(vm: Mapping[str, Any]) -> Table:
    """The guest nodes' figures alone."""
    drawn = table()
    _add_summary_columns(drawn)
    for guest_node in _rows(vm):
        drawn.add_row(*_summary_cells(guest_node))
    return drawn


def _placements(console: Console, vm: Mapping[str, Any], columns: Sequence[int]) -> Iterator[Table]:
    """The host nodes alone, bytes above percent, in as many tables as the width asks for."""
    unseen = _has_unseen(vm)
    left: list[int | None] = [*columns, *([None] if unseen else [])]
    while left:
        count = len(left)
        drawn = _placement(vm, left)
        while count > 1 and not _fits(console, drawn):
            count -= 1
            drawn = _placement(vm, left[:count])
        yield drawn
        left = left[count:]


def _placement(vm: Mapping[str, Any], columns: Sequence[int | None]) -> Table:
    """One table of host nodes; None stands for the column of what wasn't seen."""
    drawn = table()
    drawn.add_column("guest\nnode", justify="right", no_wrap=True)
    for node in columns:
        heading = "unseen" if node is None else f"host\n{node}"
        drawn.add_column(heading, justify="right", no_wrap=True)
    for guest_node in _rows(vm):
        cells = (
            _unseen_cell(guest_node, between="\n")
            if node is None
            else _cell(guest_node, node, between="\n")
            for node in columns
        )
        drawn.add_row(str(guest_node["id"]), *cells)
    return drawn


def _add_summary_columns(drawn: Table) -> None:
    drawn.add_column("guest node", justify="right", no_wrap=True)
    drawn.add_column("size", justify="right", no_wrap=True)
    drawn.add_column("resident", justify="right", no_wrap=True)
    drawn.add_column("policy", no_wrap=True)
    drawn.add_column("drift", justify="right", no_wrap=True)


def _summary_cells(guest_node: Mapping[str, Any]) -> list[str | Text]:
    drift = guest_node["drift"]
    resident = _about(drift, drift["resident"]) if drift is not None else "-"
    return [
        str(guest_node["id"]),
        format_size(guest_node["memory"]),
        resident,
        policy_words(guest_node["regions"]),
        drift_words(drift),
    ]


def policy_words(regions: Sequence[Mapping[str, Any]]) -> str:
    """The policies of a guest node's regions: ``bind 0``, ``bind 1, interleave 1-3``."""
    words = []
    for region in regions:
        host_nodes = f" {nodes(region['host_nodes'])}" if region["host_nodes"] else ""
        word = f"{region['policy']}{host_nodes}"
        if word not in words:
            words.append(word)
    return ", ".join(words) or "-"


def drift_words(drift: Mapping[str, Any] | None) -> str | Text:
    """What drifts, as short as can be: misplaced share, shares off, policy changed."""
    if drift is None or not drift["declared"]:
        return "-"
    words = []
    if drift["misplaced"] or drift["share_error_ratio"] is None:
        words.append(_ratio_words(drift) if drift["resident"] else "-")
    if drift["share_error_ratio"] is not None:
        words.append(f"shares ±{percent(drift['share_error_ratio'])}")
    if drift["policy_match"] is False:
        words.append("policy differs")
    if not drift["drifting"]:
        return ", ".join(words)
    return _marked(", ".join(words))


def _ratio_words(drift: Mapping[str, Any]) -> str:
    """The misplaced share; of a sample with its interval, as far as there is one."""
    ratio, upper = drift["drift_ratio"], drift["drift_upper_ratio"]
    if not drift["sampled"] or ratio is None:
        return percent(ratio)
    if not ratio:
        return f"0%, at most {percent(upper)}"
    return f"{percent(ratio)} ({percent(drift['drift_lower_ratio'])} to {percent(upper)})"


def _about(drift: Mapping[str, Any], size: int) -> str:
    """A size, marked where it is estimated from a sample."""
    return estimate(size) if drift["sampled"] and size else format_size(size)


def _marked(words: str) -> Text:
    """Red, with the sign of what is misplaced."""
    from rich.text import Text  # noqa: PLC0415  rich is imported only where something is drawn

    return Text(f"{words} {MISPLACED}", style="bold red")


def _cell(guest_node: Mapping[str, Any], node: int, *, between: str) -> str | Text:
    """A guest node's bytes on one host node, and their share of what is resident."""
    from rich.text import Text  # noqa: PLC0415  as above

    drift = guest_node["drift"]
    allowed = node in _allowed(guest_node)
    if drift is None:
        return UNSEEN
    size = int(drift["by_node"].get(str(node), 0))
    if not size:
        return "0" if allowed else "-"
    words = f"{_about(drift, size)}{between}{percent(size / drift['resident'])}"
    if not drift["declared"] or not (allowed or drift["misplaced"]):
        return words
    if allowed:
        return Text(words, style="green")
    return _marked(words)


def _has_unseen(vm: Mapping[str, Any]) -> bool:
    drifts = (row["drift"] for row in _rows(vm))
    return any(drift is not None and drift["unknown"] for drift in drifts)


def _unseen_cell(guest_node: Mapping[str, Any], *, between: str) -> str | Text:
    """Resident bytes whose host node wasn't seen."""
    from rich.text import Text  # noqa: PLC0415  as above

    drift = guest_node["drift"]
    if drift is None or not drift["unknown"]:
        return "-"
    share = percent(drift["unknown"] / drift["resident"])
    return Text(f"{_about(drift, drift['unknown'])}{between}{share} {UNSEEN}", style="yellow")
