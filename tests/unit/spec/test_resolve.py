"""What a written spec means: defaults, both forms, distances, words that YAML 1.1 would turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.spec.loading import parse_spec
from gmemd.spec.model import (
    Backend,
    GuestNode,
    Match,
    OnVmmExit,
    Owner,
    PolicyMode,
    Source,
    VmSpec,
)
from gmemd.spec.problems import SpecError

NODE = "  - {id: 0, memory: 1GiB, host_nodes: 0}\n"


def read(body: str, source: str = "create", stem: str = "vm") -> VmSpec:
    text = f"version: 1\nvm: {stem}\nsource: {source}\n{body}"
    return parse_spec(text.encode(), file=f"{stem}.yaml", stem=stem)


def node(keys: str, top: str = "") -> GuestNode:
    return read(f"{top}guest_nodes:\n  - {{id: 0, {keys}}}\n").guest_nodes[0]


def test_defaults() -> None:
    spec = read(f"guest_nodes:\n{NODE}")
    assert spec.source is Source.CREATE
    assert spec.on_vmm_exit is OnVmmExit.RELEASE
    assert spec.cgroup == "none"
    assert spec.owner is None
    assert spec.match is None
    assert spec.drift_tolerance == 0.01
    assert not spec.confidential
    (region,) = spec.guest_nodes[0].regions
    assert region.policy is PolicyMode.BIND
    assert region.backend is Backend.GUEST_MEMFD
    assert region.page_size == 4096
    assert region.prefault
    assert spec.guest_nodes[0].vcpus == ()


def test_nothing_is_prefaulted_where_no_node_is_named() -> None:
    (region,) = node("memory: 1GiB").regions
    assert region.policy is PolicyMode.DEFAULT
    assert region.host_nodes == frozenset()
    assert not region.prefault


def test_what_a_vmm_brings_is_not_prefaulted_unless_it_is_said() -> None:
    body = f"guest_nodes:\n{NODE}"
    prefaults = {s: read(body, source=s).guest_nodes[0].regions[0].prefault for s in Source}
    assert prefaults == {
        Source.CREATE: True,
        Source.REGISTER: False,
        Source.ADOPT: False,
        Source.OBSERVE: False,
    }
    asked = read(f"prefault: true\n{body}", source="register")
    assert asked.guest_nodes[0].regions[0].prefault


def test_a_backend_is_named_in_both_forms() -> None:
    spec = read(
        "guest_nodes:\n"
        "  - {id: 0, memory: 1GiB, host_nodes: 0, memdev: ram0}\n"
        "  - {id: 1, regions: [{size: 1GiB, memdev: 1}, {size: 1GiB}]}\n",
        source="adopt",
    )
    assert [
        [region.memdev for region in guest_node.regions] for guest_node in spec.guest_nodes
    ] == [["ram0"], ["1", None]]


@pytest.mark.parametrize("source", Source)
def test_every_source_has_an_owner(source: str) -> None:
    spec = read(f"owner: {{group: kvm}}\nguest_nodes:\n{NODE}", source=source)
    assert spec.owner == Owner(group="kvm")


def test_default_with_host_nodes_expects_them() -> None:
    (region,) = node("memory: 1GiB, host_nodes: 0-1, policy: default").regions
    assert region.policy is PolicyMode.DEFAULT
    assert region.host_nodes == {0, 1}


def test_local_may_name_where_it_is_prefaulted() -> None:
    (region,) = node("memory: 1GiB, host_nodes: 0, policy: local").regions
    assert (region.policy, region.prefault) == (PolicyMode.LOCAL, True)


def test_defaults_are_overridden_from_the_outside_in() -> None:
    top = "backend: memfd\npage_size: 2MiB\nprefault: false\n"
    first, second, third = node(
        "page_size: 1GiB, regions: [{size: 1GiB, host_nodes: 0}, "
        "{size: 4MiB, host_nodes: 1, page_size: 2MiB, prefault: true}, "
        "{size: 4KiB, host_nodes: 2, backend: guest_memfd}]",
        top,
    ).regions
    assert (first.page_size, first.prefault) == (1 << 30, False)
    assert (second.page_size, second.prefault) == (2 << 20, True)
    assert (third.backend, third.page_size) == (Backend.GUEST_MEMFD, 4096)


def test_distances_are_mirrored_with_ten_on_the_diagonal() -> None:
    spec = read(
        "guest_nodes:\n"
        "  - {id: 0, memory: 1GiB, host_nodes: 0, distances: {2: 21}}\n"
        "  - {id: 2, memory: 1GiB, host_nodes: 0, distances: {0: 21, 5: 31}}\n"
        "  - {id: 5, memory: 1GiB, host_nodes: 0, distances: {5: 10}}\n"
    )
    assert [dict(node.distances) for node in spec.guest_nodes] == [
        {0: 10, 2: 21, 5: 20},
        {0: 21, 2: 10, 5: 31},
        {0: 20, 2: 31, 5: 10},
    ]


@pytest.mark.parametrize("stem", ["010", "16.20", "no", "null", "1e3", "0x10", "2026-11-21"])
def test_no_word_is_converted(stem: str) -> None:
    assert read(f"guest_nodes:\n{NODE}", stem=stem).vm == stem


def test_a_leading_zero_is_decimal() -> None:
    assert node("memory: 1GiB, host_nodes: 010").regions[0].host_nodes == {10}


def test_lists_and_texts_name_the_same() -> None:
    listed = node("memory: 1GiB, host_nodes: [0, 2-3], vcpus: [0-1, '4'], policy: interleave")
    spelled = node("memory: 1GiB, host_nodes: '0,2-3', vcpus: '0-1,4', policy: interleave")
    assert listed == spelled


def test_quotes_change_nothing() -> None:
    assert node('memory: "1GiB", "host_nodes": "0"') == node("memory: 1GiB, host_nodes: 0")


def test_owner_and_match() -> None:
    assert read(f"owner: {{unit: db.service}}\nguest_nodes:\n{NODE}").owner == Owner(
        unit="db.service"
    )
    spec = read("match: {qemu_name: db}\n", source="observe")
    assert spec.match == Match(qemu_name="db")
    assert spec.guest_nodes == ()


@pytest.mark.parametrize("source", ["register", "adopt"])
def test_confidential_memory_has_a_vmm_that_made_it(source: str) -> None:
    assert read(f"confidential: true\nguest_nodes:\n{NODE}", source=source).confidential


@pytest.mark.parametrize("mode", list(PolicyMode))
def test_every_mode_can_be_written(mode: PolicyMode) -> None:
    assert node(f"memory: 1GiB, host_nodes: 0, policy: {mode}").regions[0].policy is mode


@pytest.mark.parametrize(
    ("text", "ratio"), [("0%", 0), ("1%", 0.01), ("0.5 %", 0.005), ("100%", 1)]
)
def test_tolerances(text: str, ratio: float) -> None:
    spec = read(f"drift_tolerance: {text}\nguest_nodes:\n{NODE}")
    assert spec.drift_tolerance == pytest.approx(ratio)


@given(
    st.lists(st.sets(st.integers(0, 40), max_size=6), min_size=1, max_size=4),
)
def test_vcpus_are_in_one_guest_node(sets: list[set[int]]) -> None:
    nodes = "".join(
        f"  - {{id: {index}, memory: 1GiB, vcpus: [{', '.join(map(str, vcpus)) or 999 + index}]}}\n"
        for index, vcpus in enumerate(sets)
    )
    overlap = sum(map(len, sets)) != len(set().union(*sets))
    if overlap:
        with pytest.raises(SpecError, match="again"):
            read(f"guest_nodes:\n{nodes}")
    else:
        assert len(read(f"guest_nodes:\n{nodes}").guest_nodes) == len(sets)
