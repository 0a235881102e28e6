"""Shares of interleaved memory, against equal shares or the host's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.spec.model import PolicyMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.host.model import Host
    from gmemd.plan.model import RegionPlan


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
