"""What a recorded host says beyond its files: the features that were probed there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.host.errors import HostError
from gmemd.host.model import Feature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RECORD = "gmemd-host.json"
RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """The part of a recorded host that isn't a file of its kernel. ``page_size`` in bytes."""

    page_size: int
    features: Mapping[str, Feature]


def features_to_json(features: Mapping[str, Feature]) -> list[dict[str, object]]:
    """Features in their order, as `gmemd host --json` and a record have them."""
    return [
        {
            "name": feature.name,
            "supported": feature.supported,
            "detail": feature.detail,
            "remedy": feature.remedy,
        }
        for feature in features.values()
    ]


def write_record(directory: Path, record: Record) -> None:
    """Write the record's file into a tree. Raises OSError."""
    value = {
        "version": RECORD_VERSION,
        "page_size": record.page_size,
        "features": features_to_json(record.features),
    }
    (directory / RECORD).write_text(json.dumps(value, indent=2) + "\n")


def read_record(directory: Path) -> Record:
    """Return the record of a tree. Raises HostError where it is missing or damaged."""
    path = directory / RECORD
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise HostError(
            f"{path}: {error.strerror}",
            hint="a tree that `gmemd host --record DIR` wrote is expected here",
        ) from error
    except ValueError as error:
        raise HostError(f"{path}: no JSON: {error}") from error
    try:
        if value["version"] != RECORD_VERSION:
            raise HostError(f"{path}: version {value['version']!r}, this gmemd reads 1")
        features = {item["name"]: _feature(item) for item in value["features"]}
        return Record(int(value["page_size"]), features)
    except (KeyError, TypeError, ValueError) as error:
        raise HostError(
            f"{path}: damaged: {type(error).__name__}: {error}", hint="record the host again"
        ) from error


def _feature(item: Mapping[str, object]) -> Feature:
    supported = item["supported"]
    if supported is not None and not isinstance(supported, bool):
        raise TypeError(f"supported is {supported!r}")
    return Feature(str(item["name"]), supported, str(item["detail"]), str(item["remedy"]))
