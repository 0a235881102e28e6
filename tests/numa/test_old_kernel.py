"""A kernel from before mappable guest_memfds and inode policies: said, and lived with."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from gmemd.plan.model import Strategy
from gmemd.spec.model import Backend
from tests.numa.provisioning import (
    MIB,
    bytes_by_node,
    difference,
    huge_pages,
    huge_pages_free,
    planned,
    provisioned,
    region,
    spec,
)

pytestmark = pytest.mark.lab(variant="old-kernel")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What `gmemd host` says here."""
    command = [sys.executable, "-m", "gmemd", "host", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["guest_memfd_mmap", "inode_policy"])
def test_host_says_what_is_missing_and_what_to_do(told: dict[str, Any], name: str) -> None:
    (feature,) = [feature for feature in told["features"] if feature["name"] == name]
    assert feature["supported"] is not True
    assert feature["detail"]
    assert feature["remedy"]


def test_host_says_what_works_all_the_same(told: dict[str, Any]) -> None:
    assert told["able"]
    assert "memfd" in told["verdict"]


def test_a_guest_memfd_that_no_vmm_could_map_is_refused_with_the_way_out() -> None:
    plan = planned(spec(region(64, {2})))
    assert not plan.admitted
    assert any("guest_memfd" in refusal.message for refusal in plan.refusals)
    assert any(refusal.hint for refusal in plan.refusals)


def test_memfd_keeps_its_policy_on_every_kernel() -> None:
    before = bytes_by_node()
    with provisioned(planned(spec(region(64, {2}, backend=Backend.MEMFD)))) as regions:
        assert regions[0].strategy is Strategy.INODE_POLICY
        assert difference(bytes_by_node(), before) == {2: 64}


def test_huge_pages_land_by_proxy_allocation() -> None:
    with huge_pages(3, 32):
        plan = planned(spec(region(64, {3}, backend=Backend.MEMFD, page_size=2 * MIB)))
        with provisioned(plan) as regions:
            assert regions[0].strategy is Strategy.PROXY_ALLOCATION
            assert huge_pages_free()[3] == 0
