"""Specs and a host in, plans out: strategy, demand and admission of every region. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.plan.admission import Ask, Reserve, admit
from gmemd.plan.checks import findings, region_title
from gmemd.plan.ledger import Ledger, Pool
from gmemd.plan.model import Refusal, RegionPlan, VmPlan
from gmemd.plan.strategy import choose_strategy
from gmemd.spec.model import PolicyMode, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gmemd.host.model import Host
    from gmemd.plan.checks import Finding
    from gmemd.spec.model import GuestNode, RegionSpec, VmSpec

DEFAULT_RESERVE = Reserve()
_SPILLING = frozenset({PolicyMode.PREFERRED, PolicyMode.PREFERRED_MANY})


def plan_vm(
    spec: VmSpec,
    host: Host,
    *,
    committed: Mapping[int, int] | None = None,
    hugepages_committed: Mapping[Pool, int] | None = None,
    reserve: Reserve = DEFAULT_RESERVE,
) -> VmPlan:
    """Plan one VM beside what is promised already.

    ``committed`` is bytes per host node promised and not yet resident, ``hugepages_committed`` the
    same in huge pages per (host node, page size in bytes).
    """
    ledger = Ledger(host, reserve, committed or {}, hugepages_committed or {})
    return _plan(spec, host, ledger)


def plan_all(
    specs: Iterable[VmSpec],
    host: Host,
    *,
    committed: Mapping[int, int] | None = None,
    hugepages_committed: Mapping[Pool, int] | None = None,
    reserve: Reserve = DEFAULT_RESERVE,
) -> tuple[VmPlan, ...]:
    """Plan VMs, each beside those admitted before it; a refused one takes nothing.

    The plans come in the specs' order; those that can spill are admitted last (`can_spill`).
    """
    ledger = Ledger(host, reserve, committed or {}, hugepages_committed or {})
    numbered = list(enumerate(specs))
    plans: dict[int, VmPlan] = {}
    for number, spec in sorted(numbered, key=lambda pair: can_spill(pair[1])):
        tried = ledger.copy()
        plan = plans[number] = _plan(spec, host, tried)
        if plan.admitted:
            ledger = tried
    return tuple(plans[number] for number, _ in numbered)


def can_spill(spec: VmSpec) -> bool:
    """Whether all of the VM's memory may go elsewhere when its nodes are full.

    Such VMs are admitted after those that can't, or they would take the room that others must have.
    """
    return all(
        region.policy in _SPILLING or not region.host_nodes
        for node in spec.guest_nodes
        for region in node.regions
    )


def _plan(spec: VmSpec, host: Host, ledger: Ledger) -> VmPlan:
    """Plan one VM; its demand is taken from the ledger, even where it is refused in part."""
    if spec.source is not Source.CREATE:
        found = [finding for finding in findings(spec, host) if finding.fatal]
        return VmPlan(spec=spec, regions=(), warnings=tuple(map(str, found)))
    return _admit_all(spec, host, ledger)


def _admit_all(spec: VmSpec, host: Host, ledger: Ledger) -> VmPlan:
    """Check and admit the regions, those with the fewest host nodes to choose from first."""
    found = findings(spec, host)
    refusals = [_refusal_of(finding) for finding in found if finding.fatal]
    notes = [str(finding) for finding in found if not finding.fatal]
    impossible = {finding.region for finding in found if finding.fatal}
    order = [
        (node, index, region)
        for node in spec.guest_nodes
        for index, region in enumerate(node.regions)
    ]
    plans: dict[tuple[int, int], RegionPlan] = {}
    for node, index, region in sorted(order, key=lambda item: len(item[2].host_nodes) or 1 << 16):
        plan, warning = _region(spec, node, index, region, host)
        plans[node.id, index] = plan
        if None in impossible or (node.id, index) in impossible:
            continue
        ask = Ask(region_title(spec, node.id, index), region, plan.strategy, plan.prefault)
        admission = admit(ask, host, ledger)
        ledger.take(admission.demand, region.page_size, movable=ask.movable)
        refusals += admission.refusals
        notes += [f"{ask.title}: {warning}"] if warning else []
        notes += admission.warnings
        plans[node.id, index] = replace(plan, demand=dict(admission.demand))
    regions = tuple(plans[node.id, index] for node, index, _ in order)
    return VmPlan(spec, regions, tuple(refusals), tuple(notes))


def _region(
    spec: VmSpec, node: GuestNode, index: int, region: RegionSpec, host: Host
) -> tuple[RegionPlan, str]:
    """The region's plan without demand, and the strategy's warning, if any."""
    choice = choose_strategy(region, host)
    plan = RegionPlan(
        vm=spec.vm,
        guest_node=node.id,
        index=index,
        size_bytes=region.size_bytes,
        backend=region.backend,
        page_size=region.page_size,
        policy=region.policy,
        host_nodes=region.host_nodes,
        strategy=choice.strategy,
        reason=choice.reason,
        prefault=choice.prefault,
    )
    return plan, choice.warning


def _refusal_of(finding: Finding) -> Refusal:
    return Refusal(
        reason=finding.reason,
        host_nodes=finding.host_nodes,
        page_size=finding.page_size,
        needed_bytes=0,
        available_bytes=0,
        committed_bytes=0,
        reserve_bytes=0,
        message=finding.message,
        hint=finding.hint,
    )
