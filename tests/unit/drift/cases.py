"""Values that the tests of drift are made of: a four-node host, plans and audits in MiB."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.audit.model import PolicyRead, RegionAudit, Sample, VmAudit
from gmemd.audit.sampling import scale_up
from gmemd.drift.compute import compute_drift
from gmemd.host.model import Cpuset, Feature, Host, HostNode
from gmemd.plan.model import RegionPlan, Strategy, VmPlan
from gmemd.spec.model import Backend, GuestNode, PolicyMode, RegionSpec, Source, VmSpec

if TYPE_CHECKING:
    from gmemd.drift.model import GuestNodeDrift

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096


def host_node(number: int, *, movable_only: bool = False, weight: int = 1) -> HostNode:
    placeable = 0 if movable_only else GIB
    return HostNode(
        id=number,
        cpus=frozenset(),
        distances={},
        total_bytes=GIB,
        free_bytes=GIB,
        placeable_bytes=placeable,
        placeable_available_bytes=12 * MIB if not movable_only else 0,
        placeable_free_bytes=placeable,
        movable_bytes=GIB - placeable,
        movable_available_bytes=GIB - placeable,
        interleave_weight=weight,
    )


def make_host(
    *,
    nodes: tuple[HostNode, ...] = tuple(host_node(number) for number in range(4)),
    inode_policy: bool = True,
    mems: frozenset[int] = frozenset(range(8)),
) -> Host:
    features = {
        "inode_policy": Feature("inode_policy", inode_policy),
        "memfd_inode_policy": Feature("memfd_inode_policy", supported=True),
    }
    return Host(
        nodes=nodes,
        features=features,
        cpuset=Cpuset(mems, frozenset({0})),
        possible_nodes=frozenset(range(8)),
        kernel_release="7.2",
    )


@dataclass
class Case:
    """One region of one guest node, declared and seen. Sizes in bytes; ``by_node`` too.

    With ``hits`` it was sampled: pages drawn of ``drawn``, by host node, and the rest follows.
    """

    policy: PolicyMode = PolicyMode.BIND
    host_nodes: frozenset[int] = frozenset({1})
    by_node: dict[int, int] = field(default_factory=dict)
    read: PolicyRead | None = None
    unknown: int = 0
    strategy: Strategy = Strategy.INODE_POLICY
    backend: Backend = Backend.GUEST_MEMFD
    page_size: int = PAGE
    prefault: bool = True
    source: Source = Source.CREATE
    tolerance: float = 0.01
    outcome: str = "applied"
    others: tuple[PolicyRead, ...] = ()
    rebound: bool = False
    hits: dict[int, int] | None = None
    hits_unknown: int = 0
    drawn: int = 4096

    def plan(self, index: int = 0) -> RegionPlan:
        return RegionPlan(
            vm="db-01",
            guest_node=0,
            index=index,
            size_bytes=GIB,
            backend=self.backend,
            page_size=self.page_size,
            policy=self.policy,
            host_nodes=self.host_nodes,
            strategy=self.strategy,
            reason="",
            prefault=self.prefault,
        )

    def audit(self, index: int = 0) -> RegionAudit:
        if self.hits is not None:
            return self._sampled(index, self.hits)
        return RegionAudit(
            guest_node=0,
            index=index,
            size_bytes=GIB,
            page_size=self.page_size,
            resident_bytes=sum(self.by_node.values()) + self.unknown,
            by_node=self.by_node,
            unknown_bytes=self.unknown,
            unknown_reason="poisoned" if self.unknown else "",
            policy=self.read,
            other_policies=self.others,
        )

    def _sampled(self, index: int, hits: dict[int, int]) -> RegionAudit:
        population = GIB // self.page_size
        found = [*hits.values(), self.hits_unknown]
        absent = self.drawn - sum(found)
        *held, unknown, _ = scale_up([*found, absent], population)
        unknown_bytes = unknown * self.page_size + self.unknown
        return RegionAudit(
            guest_node=0,
            index=index,
            size_bytes=GIB,
            page_size=self.page_size,
            resident_bytes=sum(held) * self.page_size + unknown_bytes,
            by_node=dict(zip(hits, (pages * self.page_size for pages in held), strict=True)),
            unknown_bytes=unknown_bytes,
            unknown_reason="poisoned" if unknown_bytes else "",
            exact=False,
            sample=Sample(population, self.drawn, hits, self.hits_unknown),
        )


def drift_of(*cases: Case, host: Host | None = None) -> GuestNodeDrift:
    """The drift of a guest node made of these regions; source and tolerance are the first's."""
    first = cases[0]
    spec = VmSpec(
        vm="db-01",
        source=first.source,
        drift_tolerance=first.tolerance,
        guest_nodes=(GuestNode(id=0, regions=(RegionSpec(size_bytes=GIB),)),),
    )
    plan = VmPlan(spec=spec, regions=tuple(case.plan(i) for i, case in enumerate(cases)))
    audited = tuple(case.audit(i) for i, case in enumerate(cases))
    audit = VmAudit("db-01", 0.0, 0.0, 0.0, audited)
    achieved = {(0, index): case.outcome for index, case in enumerate(cases)}
    rebound = {(0, index) for index, case in enumerate(cases) if case.rebound}
    found = compute_drift(plan, audit, host or make_host(), achieved=achieved, rebound=rebound)
    assert found.vm == "db-01"
    (node,) = found.guest_nodes
    assert node.placed_bytes + node.misplaced_bytes + node.unknown_bytes == node.resident_bytes
    return node
