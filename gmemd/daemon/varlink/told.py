"""What the interface tells: gmemd's values as the types of io.gmemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncvarlink import FileDescriptor

from gmemd.daemon.varlink.errors import (
    Ambiguous,
    DoesNotFit,
    LayoutMismatch,
    NotSupportedByKernel,
    ProvisioningFailed,
)
from gmemd.daemon.varlink.interface import (
    Candidate,
    Extent,
    LayoutRegion,
    PlacedRegion,
    PlannedRegion,
    Policy,
    Problem,
    Refusal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gmemd.memory.errors import ProvisionError
    from gmemd.memory.regions import Region
    from gmemd.plan import errors as plan_errors
    from gmemd.plan import layout, model
    from gmemd.plan.errors import AmbiguousError, LayoutMismatchError
    from gmemd.spec import problems

_FEATURE_REASONS = frozenset({"feature-missing", "policy-unsupported", "page-size-unsupported"})


def told_layout(
    regions: Sequence[Region], extents: Mapping[tuple[int, int], Sequence[layout.Extent]]
) -> list[LayoutRegion]:
    """The regions with their files, each passed once; the descriptors stay the regions' own.

    ``extents`` are by guest node and index, their offsets from the region's start; memory that a
    VMM registered has none, as it alone knows where its guest has it.
    """
    passed: dict[tuple[int, int], FileDescriptor] = {}
    for region in regions:
        passed.setdefault(region.inode, FileDescriptor(region.fd))
    return [
        LayoutRegion(
            guest_node=region.plan.guest_node,
            index=region.plan.index,
            fd_index=passed[region.inode],
            offset=region.offset,
            size=region.plan.size_bytes,
            page_size=region.plan.page_size,
            backend=str(region.plan.backend),
            extents=[
                Extent(gpa=extent.gpa, offset=region.offset + extent.offset, size=extent.size)
                for extent in extents.get((region.plan.guest_node, region.plan.index), ())
            ],
            strategy=str(region.strategy),
            reason=region.reason,
            policy=str(region.plan.policy),
            host_nodes=sorted(region.plan.host_nodes),
            policy_outcome=_outcome(region),
            policy_achieved=_achieved(region),
        )
        for region in regions
    ]


def told_placed(region: Region, warnings: Sequence[str]) -> PlacedRegion:
    """What became of a region that was registered or adopted."""
    bind = region.bind
    reason = region.reason
    if bind is not None and not bind.ok and bind.detail not in reason:
        reason = f"{reason}; {bind.detail}" if reason else bind.detail
    remedy = [bind.remedy] if bind is not None and not bind.ok and bind.remedy else []
    return PlacedRegion(
        id=region.id,
        guest_node=region.plan.guest_node,
        index=region.plan.index,
        offset=region.offset,
        size=region.plan.size_bytes,
        page_size=region.plan.page_size,
        backend=str(region.plan.backend),
        strategy=str(region.strategy),
        reason=reason,
        policy=str(region.plan.policy),
        host_nodes=sorted(region.plan.host_nodes),
        policy_outcome=_outcome(region),
        policy_achieved=_achieved(region),
        resident=region.resident_before,
        warnings=[*remedy, *region.notes, *warnings],
    )


def told_planned(plan: model.RegionPlan) -> PlannedRegion:
    """A region as it would be made."""
    return PlannedRegion(
        guest_node=plan.guest_node,
        index=plan.index,
        size=plan.size_bytes,
        backend=str(plan.backend),
        page_size=plan.page_size,
        policy=str(plan.policy),
        host_nodes=sorted(plan.host_nodes),
        prefault=plan.prefault,
        strategy=str(plan.strategy),
        reason=plan.reason,
        demand={str(node): plan.demand[node] for node in sorted(plan.demand)},
    )


def told_refusal(refusal: model.Refusal) -> Refusal:
    """Why a VM doesn't fit."""
    return Refusal(
        reason=refusal.reason,
        message=refusal.message,
        hint=refusal.hint,
        host_nodes=sorted(refusal.host_nodes),
        page_size=refusal.page_size,
        needed=refusal.needed_bytes,
        available=refusal.available_bytes,
        committed=refusal.committed_bytes,
        reserve=refusal.reserve_bytes,
    )


def told_problem(problem: problems.Problem) -> Problem:
    """What is wrong with a file, or an inline spec."""
    return Problem(
        file=problem.file,
        line=problem.line,
        column=problem.column,
        key=problem.key,
        value=problem.value,
        message=problem.message,
        hint=problem.hint,
    )


def told_candidate(candidate: plan_errors.Candidate) -> Candidate:
    """One of several things that something could be."""
    return Candidate(
        what=candidate.what,
        pid=candidate.pid,
        guest_node=candidate.guest_node,
        size=candidate.size_bytes,
    )


def does_not_fit(vm: str, refusals: Sequence[model.Refusal]) -> DoesNotFit | NotSupportedByKernel:
    """The error of a VM that admission refused."""
    worst = refusals[0]
    message = "; ".join(refusal.message for refusal in refusals)
    if worst.reason in _FEATURE_REASONS:
        return NotSupportedByKernel(
            vm=vm, feature=worst.reason, message=message, hint=worst.hint or None
        )
    told: Any = [told_refusal(refusal) for refusal in refusals]
    return DoesNotFit(
        vm=vm,
        refusals=told,
        message=message,
        hint=worst.hint or None,
    )


def provisioning_failed(vm: str, error: ProvisionError) -> ProvisioningFailed:
    """The error of a VM whose memory could not be brought about."""
    return ProvisioningFailed(
        vm=vm,
        reason=error.reason,
        host_node=error.host_node,
        needed_bytes=error.needed_bytes,
        available_bytes=error.available_bytes,
        message=error.message,
        hint=error.hint,
    )


def layout_mismatch(vm: str, error: LayoutMismatchError) -> LayoutMismatch:
    """The error of memory that isn't what the spec says."""
    return LayoutMismatch(
        vm=vm, guest_node=error.guest_node, message=error.message, hint=error.hint
    )


def ambiguous(vm: str, error: AmbiguousError) -> Ambiguous:
    """The error of memory that could be several regions of the spec."""
    return told_ambiguous(vm, error.message, error.hint, error.candidates)


def told_ambiguous(
    vm: str, message: str, hint: str | None, candidates: Sequence[plan_errors.Candidate]
) -> Ambiguous:
    """The error of what could be any of the candidates."""
    told: Any = [told_candidate(candidate) for candidate in candidates]
    return Ambiguous(vm=vm, message=message, hint=hint, candidates=told)


def _outcome(region: Region) -> str | None:
    return str(region.bind.outcome) if region.bind is not None else None


def _achieved(region: Region) -> Policy | None:
    if region.bind is None or region.bind.achieved is None:
        return None
    achieved = region.bind.achieved
    return Policy(mode=achieved.mode, host_nodes=sorted(achieved.nodes))
