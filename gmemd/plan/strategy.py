"""How a region's placement will be brought about, by what the host was seen to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gmemd.plan.model import Strategy
from gmemd.spec.model import SMALL_PAGE, Backend, PolicyMode

if TYPE_CHECKING:
    from gmemd.host.model import Host
    from gmemd.spec.model import RegionSpec

_EVERY_FAULT = "holds for every later allocation, the guest's faults too"


class Choice(NamedTuple):
    """A strategy, why it is that one, whether the region is prefaulted, and what to know."""

    strategy: Strategy
    reason: str
    prefault: bool
    warning: str = ""


def choose_strategy(region: RegionSpec, host: Host, *, received: bool = False) -> Choice:
    """Choose the best strategy that the host supports for the region.

    ``received`` is memory that a VMM has made. Whether its guest_memfd can be mapped is seen when
    it comes; what gmemd makes itself is always prefaulted where it is hugetlb.
    """
    if region.policy is PolicyMode.DEFAULT:
        return _without_policy(region)
    if region.page_size > SMALL_PAGE:
        if received:
            return _by_proxy(region, "hugetlb memory keeps no policy")
        return Choice(
            Strategy.PROXY_ALLOCATION,
            "hugetlb memory keeps no policy: a helper allocates all of it beforehand",
            prefault=True,
        )
    if region.backend is Backend.MEMFD:
        return _by_inode(region, host, "memfd_inode_policy", "a memfd keeps its policy")
    if not host.supports("guest_memfd_mmap"):
        return _by_proxy(region, "this kernel can't map guest_memfd, so no policy can be set")
    return _by_inode(region, host, "inode_policy", "this kernel keeps guest_memfd's policy")


def _by_inode(region: RegionSpec, host: Host, feature: str, why: str) -> Choice:
    if host.supports(feature):
        return Choice(Strategy.INODE_POLICY, f"{why}: {_EVERY_FAULT}", region.prefault)
    found = host.features.get(feature)
    if found is None or found.supported is None:
        return _by_proxy(
            region, f"whether this kernel keeps a {region.backend}'s policy is unknown"
        )
    if found.forbidden:
        return _by_proxy(
            region, f"gmemd may set no {region.backend}'s policy: {found.detail} ({found.remedy})"
        )
    return _by_proxy(region, f"this kernel drops a {region.backend}'s policy")


def _by_proxy(region: RegionSpec, why: str) -> Choice:
    if region.prefault:
        return Choice(
            Strategy.PROXY_ALLOCATION,
            f"{why}: a helper allocates all of it beforehand; "
            "what a balloon punches and the guest touches again is unplaced",
            prefault=True,
        )
    return Choice(
        Strategy.UNMANAGED,
        f"{why}, and without prefault nothing can place it",
        prefault=False,
        warning=f"{why}: without prefault its pages go where the guest's threads run; "
        "set prefault: true to have them placed",
    )


def _without_policy(region: RegionSpec) -> Choice:
    if region.prefault and region.host_nodes:
        return Choice(
            Strategy.PROXY_ALLOCATION,
            "policy default sets nothing: a helper bound to the host nodes allocates it beforehand",
            prefault=True,
        )
    expected = "; where its pages go is measured" if region.host_nodes else ""
    return Choice(
        Strategy.UNMANAGED, f"policy default sets nothing{expected}", prefault=region.prefault
    )
