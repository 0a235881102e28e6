import pytest
from pydantic import ValidationError

from gmemd.spec.model import (
    GuestNode,
    PolicyMode,
    RegionSpec,
    Source,
    VmSpec,
    waiting_reason,
)


def make(**changes: object) -> VmSpec:
    region = RegionSpec(size_bytes=1 << 30)
    values = {"vm": "db", "guest_nodes": (GuestNode(id=0, regions=(region, region)),)}
    return VmSpec(**(values | changes))


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        make().vm = "other"


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError):
        make(colour="red")


def test_sizes_are_sums() -> None:
    assert make().guest_nodes[0].size_bytes == 2 << 30
    assert make().size_bytes == 2 << 30


@pytest.mark.parametrize("source", [Source.CREATE, Source.OBSERVE])
def test_what_is_acted_on_waits_for_nothing(source: str) -> None:
    assert waiting_reason(make(source=source)) is None


def test_what_a_vmm_brings_is_waited_for() -> None:
    reasons = {source: waiting_reason(make(source=source)) for source in Source}
    assert reasons[Source.REGISTER] == "waits for its VMM to register its memory"
    assert reasons[Source.ADOPT] == "waits for its VMM to run"


def test_modes_that_need_nodes() -> None:
    assert {mode for mode in PolicyMode if not mode.needs_nodes} == {
        PolicyMode.DEFAULT,
        PolicyMode.LOCAL,
    }


def test_the_file_is_no_part_of_the_dump() -> None:
    assert "path" not in make(path="/etc/x.yaml").model_dump()
