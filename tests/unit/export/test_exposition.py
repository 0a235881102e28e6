"""All formats tell the same, of one snapshot, and a VM's lines are made once for each status."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from gmemd.export import exposition
from gmemd.export.exposition import Exposition
from gmemd.export.instruments import Counters
from gmemd.export.vm_metrics import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from gmemd.export.snapshot import Snapshot, VmStatus

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(families: Iterable[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("gmemd_")
    }


def test_both_formats_tell_the_same(snapshot: Snapshot) -> None:
    odd = replace(snapshot.vms[0], vm='a "quoted"\nname\\ \u00fc')
    snapshot = replace(snapshot, vms=(*snapshot.vms, odd))
    rendered = Exposition(Counters())
    text = samples(parse(rendered.render(snapshot)[1].decode()))
    open_metrics = samples(parse_openmetrics(rendered.render(snapshot, OPENMETRICS)[1].decode()))
    assert text == open_metrics
    assert (
        "gmemd_vm_info",
        frozenset({("vm", odd.vm), ("source", "create"), ("uuid", "")}),
    ) in text


@pytest.mark.parametrize("escaping", ["underscores", "allow-utf-8", "values", "dots"])
def test_names_are_the_same_in_every_escaping(snapshot: Snapshot, escaping: str) -> None:
    kind, body = Exposition(Counters()).render(snapshot, f"{OPENMETRICS}; escaping={escaping}")
    assert kind.startswith("application/openmetrics-text")
    assert "escaping=dots" not in kind
    assert b"# TYPE gmemd_vm_state gauge\n" in body
    assert b"# TYPE gmemd_audit_pages counter\n" in body


def test_families_are_to_be_had_by_name(snapshot: Snapshot) -> None:
    names = ["gmemd_vm_state", "gmemd_audit_pages_total"]
    found = parse(Exposition(Counters()).render(snapshot, "", names)[1].decode())
    assert {name for name, _ in samples(found)} == set(names)


def test_every_family_of_vms_has_its_header_once(snapshot: Snapshot) -> None:
    lines = Exposition(Counters()).render(replace(snapshot, vms=()))[1].decode().splitlines()
    for family in FAMILIES:
        assert lines.count(f"# TYPE {family.name} gauge") == 1


def test_only_vms_that_changed_are_rendered_anew(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    lines_of = exposition.lines_of

    def noting(vm: VmStatus, with_memory: frozenset[int]) -> tuple[str, ...]:
        rendered.append(vm.vm)
        return lines_of(vm, with_memory)

    monkeypatch.setattr(exposition, "lines_of", noting)
    ours = Exposition(Counters())
    ours.render(snapshot)
    rendered.clear()
    ours.render(replace(snapshot, taken_timestamp=2000.0))
    assert rendered == []
    changed = replace(snapshot.vms[1], since=1.0)
    ours.render(replace(snapshot, vms=(snapshot.vms[0], changed)))
    assert rendered == [changed.vm]
    host = snapshot.host
    assert host is not None
    ours.render(replace(snapshot, host=replace(host, nodes=host.nodes[:1])))
    assert len(rendered) == 1 + len(snapshot.vms), "they have other host nodes' cells"
