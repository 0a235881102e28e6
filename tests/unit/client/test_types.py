"""The client's types and errors are the interface's, which the daemon's own text is held to."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_type_hints

import pytest

from gmemd.client import errors, memory, requests, types
from gmemd.daemon.varlink import interface, where
from gmemd.daemon.varlink.api import GmemdInterface

TYPED = {
    name: value for name, value in vars(types).items() if getattr(value, "__total__", None) is True
}
NAMED_OTHERWISE = {"Listed": "ListResult", "Planned": "PlanResult", "Reloaded": "ReloadResult"}
ERRORS = {error.__name__: error for error in GmemdInterface.errors}
VARLINKS_OWN = {"InterfaceNotFound", "InvalidParameter", "MethodNotFound", "PermissionDenied"}


def spelled(hints: dict[str, Any]) -> dict[str, str]:
    """Annotations as text, without the modules that they are from."""
    names = {name: getattr(hint, "__name__", "") for name, hint in hints.items()}
    texts = {
        name: names[name] if isinstance(hint, type) and "[" not in str(hint) else str(hint)
        for name, hint in hints.items()
    }
    return {name: re.sub(r"\bgmemd[\w.]*\.", "", text) for name, text in texts.items()}


@pytest.mark.parametrize("name", TYPED)
def test_types_have_the_interfaces_fields(name: str) -> None:
    module = where if hasattr(where, name) else interface
    theirs = getattr(module, NAMED_OTHERWISE.get(name, name))
    assert spelled(get_type_hints(TYPED[name])) == spelled(get_type_hints(theirs))


@pytest.mark.parametrize(
    ("ours", "theirs", "more", "less"),
    [
        (memory.Extent, interface.Extent, set(), set()),
        (memory.MemoryRegion, interface.LayoutRegion, {"fd"}, {"fd_index"}),
        (memory.Offered, interface.OfferedRegion, {"fd"}, {"fd_index"}),
        (memory.PlacedRegion, interface.PlacedRegion, set(), set()),
    ],
)
def test_regions_have_the_interfaces_fields(
    ours: type, theirs: type, more: set[str], less: set[str]
) -> None:
    fields = {field.name for field in dataclasses.fields(ours)}
    assert fields - more == {field.name for field in dataclasses.fields(theirs)} - less
    assert more <= fields


def test_results_have_the_interfaces_fields() -> None:
    placed = {field.name for field in dataclasses.fields(memory.Placed)}
    assert placed == set(interface.PlacedResult.__annotations__)
    assert set(requests.Change._fields) == set(interface.WatchResult.__annotations__)


def test_every_exception_is_one_of_the_daemons_errors() -> None:
    assert set(errors._ERRORS) == set(ERRORS) | VARLINKS_OWN


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_an_exception_with_its_fields(name: str) -> None:
    parameters = {"message": "why", "hint": "do this"}
    parameters |= dict.fromkeys(ERRORS[name].Parameters.__annotations__, "x") | {"message": "why"}
    parameters |= {"timeout_ms": 5, "progress_ratio": 0.5, "problems": [], "candidates": []}
    error = errors.error_of("Acquire", f"io.gmemd.{name}", parameters)
    declared = set(inspect.get_annotations(type(error)))
    assert declared == set(ERRORS[name].Parameters.__annotations__) - {"message", "hint"}
    assert type(error) is not errors.CallError
    assert (error.error, error.parameters) == (name, parameters)
    assert all(getattr(error, field) == parameters[field] for field in declared)
    bare = errors.error_of("Acquire", f"io.gmemd.{name}", {})
    assert all(getattr(bare, field) is None for field in declared)
