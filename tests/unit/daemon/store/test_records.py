"""What is written down is read back as it was, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.daemon.store.records import (
    HolderRecord,
    NewerStateError,
    PlanRecord,
    RegionRecord,
    StateError,
    VmRecord,
    decode_state,
    encode_state,
    encode_vm,
)
from gmemd.plan.model import RegionPlan, Strategy
from gmemd.spec.loading import parse_spec
from gmemd.spec.model import Backend, PolicyMode

SPEC = b"""\
version: 1
vm: db-01
source: create
owner: {unit: "db@*.service"}
drift_tolerance: 2%
guest_nodes:
  - {id: 0, vcpus: 0-3, memory: 8MiB, host_nodes: 0, policy: bind, distances: {1: 21}}
  - {id: 1, vcpus: 4-7, memory: 8MiB, host_nodes: 0-1, policy: interleave}
"""
PLAN = RegionPlan(
    vm="db-01",
    guest_node=1,
    index=0,
    size_bytes=8 << 20,
    backend=Backend.GUEST_MEMFD,
    page_size=4096,
    policy=PolicyMode.INTERLEAVE,
    host_nodes=frozenset({0, 1}),
    strategy=Strategy.INODE_POLICY,
    reason="the kernel keeps it",
    prefault=True,
    demand={0: 4 << 20, 1: 4 << 20},
)


def record() -> VmRecord:
    return VmRecord(
        vm="db-01",
        spec=parse_spec(SPEC, file="db-01.yaml").model_copy(update={"path": None}),
        path="/etc/gmemd/vms.d/db-01.yaml",
        state="ready",
        since=1000.5,
        regions=(
            RegionRecord(
                inode=(26, 4711),
                offset=4096,
                plan=PlanRecord.of(PLAN),
                strategy=Strategy.PROXY_ALLOCATION,
                reason="as it is",
                notes=("one", "two"),
                id=7,
                spec_index=1,
                verified_timestamp=999.0,
            ),
        ),
        holder=HolderRecord(
            pid=42,
            start_ticks=4242,
            since=1001.0,
            alive=True,
            vouched=True,
            program="qemu",
            unit="db@1.service",
            stored_as="h.1",
        ),
        prefaulted=True,
    )


def encoded(*records: VmRecord, sequence: int = 3) -> bytes:
    lines = [encode_vm(each) for each in records]
    return encode_state(lines, boot_id="boot", sequence=sequence, unclaimed=["r.1.2"])


def test_what_is_written_is_read_back() -> None:
    state = decode_state(encoded(record()))
    assert state.vms == (record(),)
    assert state.vms[0].spec_in_force.path == "/etc/gmemd/vms.d/db-01.yaml"
    assert state.vms[0].regions[0].plan.plan("db-01") == PLAN
    assert (state.header.sequence, state.header.unclaimed) == (3, ("r.1.2",))


def test_what_follows_it_doesnt_count() -> None:
    assert decode_state(encoded(record()) + b"\0more").vms == (record(),)


@given(st.data())
def test_no_part_of_it_is_taken_for_it(data: st.DataObject) -> None:
    whole = encoded(record())
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(StateError):
        decode_state(whole[:length])


@given(st.data())
def test_a_damaged_body_is_found_out(data: st.DataObject) -> None:
    whole = bytearray(encoded(record()))
    body = whole.index(b"\n") + 1
    at = data.draw(st.integers(body, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError):
        decode_state(bytes(whole))


@given(st.binary(max_size=200))
def test_anything_else_is_no_state(data: bytes) -> None:
    with pytest.raises(StateError):
        decode_state(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_nor_is_any_json(value: object) -> None:
    with pytest.raises(StateError):
        decode_state(json.dumps(value).encode() + b"\n")


def test_a_newer_one_is_told_apart() -> None:
    data = encoded(record()).replace(b'"gmemd_state":1', b'"gmemd_state":9', 1)
    with pytest.raises(NewerStateError) as newer:
        decode_state(data)
    assert newer.value.version == 9


def test_a_line_that_isnt_understood_costs_its_vm_alone() -> None:
    odd = encode_vm(record()).replace(b'"bind"', b'"conjure"')
    data = encode_state([odd, encode_vm(record())], boot_id="boot", sequence=1)
    state = decode_state(data)
    assert state.vms == (record(),)
    assert len(state.unreadable) == 1
    assert "spec.guest_nodes.0.regions.0.policy" in state.unreadable[0]
