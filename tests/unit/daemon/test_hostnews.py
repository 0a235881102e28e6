"""What is told, and what is done, when nodes and limits of the host come and go."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.fleet import Fleet
from gmemd.daemon.hostnews import make_up, news, out_of_reach
from gmemd.daemon.vm import ManagedVm
from gmemd.daemon.work import Workers
from gmemd.export.instruments import Counters
from gmemd.export.snapshot import VmState
from gmemd.host.model import Cpuset
from gmemd.memory.regions import Region
from gmemd.plan.admission import Reserve
from gmemd.plan.model import Strategy
from tests.unit.daemon.vms import host, region_plan, spec

if TYPE_CHECKING:
    from gmemd.host.model import Host


def two_nodes() -> Host:
    one = host()
    other = replace(one.nodes[0], id=1, cpus=frozenset({1}))
    both = frozenset({0, 1})
    return replace(one, nodes=(*one.nodes, other), cpuset=Cpuset(both, both), possible_nodes=both)


def without_node_1(before: Host) -> Host:
    return replace(before, nodes=before.nodes[:1])


def test_a_host_as_it_was_is_no_news() -> None:
    busier = replace(two_nodes(), nodes=tuple(replace(n, free_bytes=0) for n in two_nodes().nodes))
    assert list(news(two_nodes(), busier)) == []
    assert make_up(busier) == make_up(two_nodes())
    assert list(news(None, two_nodes())) == []


def test_nodes_that_go_and_come_are_told() -> None:
    gone = without_node_1(two_nodes())
    assert list(news(two_nodes(), gone)) == [
        "host nodes with memory were 0-1, and are 0 now",
    ]
    assert list(news(gone, two_nodes())) == ["host nodes with memory were 0, and are 0-1 now"]
    assert make_up(gone) != make_up(two_nodes())


def test_a_cpuset_that_shrinks_is_told() -> None:
    narrow = replace(two_nodes(), cpuset=Cpuset(frozenset({0}), frozenset({1})))
    assert list(news(two_nodes(), narrow)) == [
        "gmemd's own cpuset allowed memory of nodes 0-1, and allows 0 now",
        "gmemd's own cpuset allowed CPUs 0-1, and allows 1 now",
    ]
    assert make_up(narrow) != make_up(two_nodes())


@pytest.mark.parametrize(("setting", "word"), [(1, "all of its memory"), (2, "Twice the reserve")])
def test_a_kernel_that_panics_is_told_at_the_start_and_when_it_is_set(
    setting: int, word: str
) -> None:
    panics = replace(two_nodes(), panic_on_oom=setting)
    for before in (None, two_nodes()):
        (line,) = news(before, panics)
        assert f"vm.panic_on_oom is {setting}" in line
        assert word in line
    assert list(news(panics, panics)) == []


def test_only_the_nodes_are_out_of_reach() -> None:
    wanted = spec(host_nodes=frozenset({1}))
    assert out_of_reach(wanted, two_nodes()) == ()
    (gone,) = out_of_reach(wanted, without_node_1(two_nodes()))
    assert gone.reason == "no-such-node"
    narrow = replace(two_nodes(), cpuset=Cpuset(frozenset({0}), frozenset({0, 1})))
    (forbidden,) = out_of_reach(wanted, narrow)
    assert forbidden.reason == "cpuset"


class Changing(Workers):
    """Reads a host that is another each time."""

    def __init__(self, *hosts: Host) -> None:
        super().__init__()
        self._hosts = list(hosts)

    async def read_host(self) -> Host:
        return self._hosts.pop(0)


def test_vms_are_told_of_it_and_what_failed_or_was_put_off_is_tried_again() -> None:
    both = two_nodes()
    narrow = replace(both, cpuset=Cpuset(frozenset({0}), frozenset({0, 1})))

    async def go_through() -> None:
        workers = Changing(both, without_node_1(both), narrow, both)
        fleet = Fleet(workers, Counters(), reserve=Reserve(0.0, 0), audit_interval_seconds=60)
        plan = region_plan(nodes=1)
        ready = ManagedVm("ready", spec=spec(host_nodes=frozenset({1})), state=VmState.READY)
        ready.regions = [Region(plan, -1, (0, 1), Strategy.INODE_POLICY, "")]
        ready.postpone(spec(), "node 7 is not online")
        failed = ManagedVm("failed", spec=spec(), state=VmState.FAILED, retry_at=1e9)
        fleet.vms = {"ready": ready, "failed": failed}
        await fleet.read_host()
        assert failed.retry_at == 1e9
        assert ready.pending_spec is not None
        await fleet.read_host()
        assert (failed.retry_at, failed.state) == (0.0, VmState.FAILED)
        assert ready.pending_spec is None
        assert ready.state is VmState.DEGRADED
        assert "host node 1 is not online" in ready.message
        await fleet.read_host()
        assert ready.state is VmState.READY, "its pages are where they are, whatever gmemd may use"
        assert any("gmemd's own cpuset" in warning for warning in ready.status().warnings)
        await fleet.read_host()
        assert not any("cpuset" in warning for warning in ready.status().warnings)
        workers.close()

    asyncio.run(go_through())
