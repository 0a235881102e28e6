from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from gmemd.export.page import render_page

if TYPE_CHECKING:
    from gmemd.export.snapshot import Snapshot, VmStatus

VOID = {"meta"}


class Outline(HTMLParser):
    """Collects cells and links, and fails on tags that don't match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        self.links += [value for name, value in attrs if name in {"href", "src"} and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def test_version_link_and_a_row_per_vm(snapshot: Snapshot) -> None:
    page = render_page(snapshot)
    outline = Outline(page)
    assert "version 0.1.0" in page
    assert outline.links == ["/metrics"]
    rows = [outline.cells[start : start + 6] for start in range(0, len(outline.cells), 6)]
    assert [row[:2] for row in rows] == [
        ["web-01", "ready"],
        ["db-01", "degraded"],
        ["late", "waiting"],
        ["broken", "failed"],
    ]
    assert rows[1][2:5] == ["256 MiB", "256 MiB", "64 MiB"]
    assert "guest node 0 drifts" in rows[1][5]
    assert rows[2][3] == "\N{EN DASH}"


def test_texts_are_escaped(snapshot: Snapshot, broken: VmStatus) -> None:
    page = render_page(replace(snapshot, vms=(broken,)))
    assert "<b>" not in page
    assert "&lt;broken&gt;" in page
    assert "&lt;b&gt;bad&lt;/b&gt;" in page


def test_a_failed_reload_is_said(snapshot: Snapshot) -> None:
    failed = replace(snapshot, reload_successful=False, reload_message="vms.d is <gone>")
    assert "The last reload failed. vms.d is &lt;gone&gt;" in render_page(failed)


def test_no_vms(snapshot: Snapshot) -> None:
    assert "No VMs are known" in render_page(replace(snapshot, vms=()))
