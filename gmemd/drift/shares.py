"""Shares of interleaved memory, against equal shares or the host's weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from gmemd.audit.model import UNKNOWN_NODE
from gmemd.drift.design import share_within
from gmemd.spec.model import PolicyMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.audit.model import Cluster, Sample
    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan

_NEARLY_ALWAYS = 0.9999


def expected_weights(plan: RegionPlan, host: Host) -> dict[int, int]:
    """Weight per host node: all 1 for ``interleave``, the host's for ``weighted-interleave``.

    A node that is offline keeps its claim with weight 1, so that its absence shows.
    """
    if plan.policy is not PolicyMode.WEIGHTED_INTERLEAVE:
        return dict.fromkeys(plan.host_nodes, 1)
    found = {number: host.node(number) for number in plan.host_nodes}
    return {number: node.interleave_weight if node else 1 for number, node in found.items()}


def share_error(by_node: Mapping[int, int], weights: Mapping[int, int], page_size: int) -> float:
    """The largest distance between a node's share and its weight's share, from 0 to 1.

    Round-robin leaves a node up to one turn (its weight, in pages) short or ahead, so a distance
    within two turns of the heaviest node is rounding and counts as none. ``by_node`` is in bytes.
    """
    seen = sum(by_node.values())
    total = sum(weights.values())
    if not seen or not total:
        return 0.0
    distance = max(
        abs(by_node.get(node, 0) - seen * weight / total) for node, weight in weights.items()
    )
    rounding = 2 * max(weights.values()) * page_size
    return distance / seen if distance > rounding else 0.0


def least_share_error(sample: Sample, weights: Mapping[int, int]) -> float:
    """The share error that is left when all that a sample's chance can explain is taken off it.

    The interval taken off holds 99.99 %: interleaved memory has its shares nearly always, and is
    looked at again and again. What is unknown has no part in it.
    """
    seen = sum(sample.by_node.values())
    total = sum(weights.values())
    if not seen or not total:
        return 0.0
    known = _known(sample)
    least = 0.0
    for node, weight in weights.items():
        share = share_within(known, node.__eq__, _NEARLY_ALWAYS)
        least = max(least, weight / total - share.upper, share.lower - weight / total)
    return least


def _known(sample: Sample) -> Sample:
    """The same without what is unknown."""
    clusters: Counter[Cluster] = Counter()
    for cluster, number in sample.clusters.items():
        clusters[tuple(part for part in cluster if part[0] != UNKNOWN_NODE)] += number
    return replace(sample, unknown=0, clusters=clusters)
