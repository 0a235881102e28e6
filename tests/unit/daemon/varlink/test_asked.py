"""What a call of Audit may ask for, and what can't be had together."""

from __future__ import annotations

import os
from typing import Any

import pytest
from asyncvarlink.serviceerrors import InvalidParameter

from gmemd.audit.asked import Asked
from gmemd.daemon.varlink.asked import asked_for

NOTHING = dict.fromkeys(("where", "full", "sample_pages", "margin", "confidence", "jobs"))


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, Asked()),
        ({"where": True}, Asked(where=True)),
        ({"full": True, "jobs": 1}, Asked(full=True)),
        ({"sample_pages": 300}, Asked(sample_pages=300)),
        ({"margin": 0.01}, Asked(sample_pages=9600, margin=0.01)),
        (
            {"margin": 0.25, "confidence": 0.99},
            Asked(sample_pages=256, margin=0.25, confidence=0.99),
        ),
        ({"full": True, "jobs": 5000}, Asked(full=True, jobs=len(os.sched_getaffinity(0)))),
    ],
)
def test_what_is_asked(given: dict[str, Any], asked: Asked) -> None:
    assert asked_for(**(NOTHING | given)) == asked


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"sample_pages": 300, "full": True}, "sample_pages"),
        ({"margin": 0.01, "where": True}, "margin"),
        ({"margin": 0.01, "sample_pages": 300}, "margin"),
        ({"sample_pages": 1}, "sample_pages"),
        ({"sample_pages": 1 << 30}, "sample_pages"),
        ({"margin": 0.0}, "margin"),
        ({"margin": 0.001, "confidence": 0.9999}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"confidence": 1.0}, "confidence"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_what_cannot_be_had(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        asked_for(**(NOTHING | given))
    assert refused.value.parameters == {"parameter": wrong}
