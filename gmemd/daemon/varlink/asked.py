"""What a call of Audit asks for."""

from __future__ import annotations

import os

from asyncvarlink.serviceerrors import InvalidParameter

from gmemd.audit.asked import Asked
from gmemd.audit.model import CONFIDENCE
from gmemd.spec.scalars import (
    LEAST_CONFIDENCE,
    LEAST_MARGIN,
    LEAST_SAMPLE_PAGES,
    MOST_CONFIDENCE,
    MOST_MARGIN,
    MOST_SAMPLE_PAGES,
)


def asked_for(
    *,
    where: bool | None,
    full: bool | None,
    sample_pages: int | None,
    margin: float | None,
    confidence: float | None,
    jobs: int | None,
) -> Asked:
    """Check what was asked; raises InvalidParameter for what can't be had, or not together.

    More threads than there are CPUs are of no use, and aren't started.
    """
    every_page = bool(where or full)
    wanted = {"sample_pages": sample_pages, "margin": margin}
    for name, value in wanted.items():
        if value is not None and every_page:
            raise InvalidParameter(parameter=name)
    if sample_pages is not None and margin is not None:
        raise InvalidParameter(parameter="margin")
    sure = CONFIDENCE if confidence is None else confidence
    _within("confidence", sure, LEAST_CONFIDENCE, MOST_CONFIDENCE)
    jobs = 1 if jobs is None else jobs
    _within("jobs", jobs, 1, None)
    if sample_pages is not None:
        _within("sample_pages", sample_pages, LEAST_SAMPLE_PAGES, MOST_SAMPLE_PAGES)
    if margin is not None:
        _within("margin", margin, LEAST_MARGIN, MOST_MARGIN)
        asked = Asked.within(margin, sure, LEAST_SAMPLE_PAGES)
        _within("margin", asked.sample_pages or 0, 1, MOST_SAMPLE_PAGES)
        return asked
    return Asked(
        where=bool(where),
        full=bool(full),
        sample_pages=sample_pages,
        confidence=sure,
        jobs=min(jobs, len(os.sched_getaffinity(0))),
    )


def _within(name: str, value: float, least: float, most: float | None) -> None:
    if not (least <= value and (most is None or value <= most)):
        raise InvalidParameter(parameter=name)
