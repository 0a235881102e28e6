"""Validate a YAML document against a model: every fault found, each with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gmemd.spec.problems import MOST_PROBLEMS, Fault, FieldError, FieldErrors, KeyPath
from gmemd.spec.scalars import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

    from gmemd.spec.yamltree import Document, Tree

_M = TypeVar("_M", bound=BaseModel)


def validate(document: Document, model: type[_M]) -> _M | None:
    """Read the document as that model, without its bad parts; None if it is no mapping.

    Faults are added to the document's problems and their paths to its ``bad`` ones. Every field
    of the model must have a default.
    """
    if document.tree is None:
        if not document.problems:
            document.report(Fault((), "is empty", on_key=True))
        return None
    if not isinstance(document.tree, dict):
        empty = document.tree == ""
        document.report(Fault((), "is empty" if empty else "must be a mapping", on_key=empty))
        return None
    _report(document, _unknown_keys(document, model))
    _report(document, _empty_values(document.tree))
    while True:
        try:
            return model.model_validate(_without(document.tree, document.bad))
        except ValidationError as error:
            # Each pass takes the bad parts away, so the next one sees fewer.
            for details in error.errors(include_url=False):
                _report(document, _faults(details))
                document.bad.add(details["loc"])


def _report(document: Document, faults: Iterator[Fault]) -> None:
    """Report the faults of what isn't known to be bad."""
    for fault in faults:
        if not any(fault.path[:length] in document.bad for length in range(1, len(fault.path) + 1)):
            document.report(fault)
            document.bad.add(fault.path)


def _empty_values(tree: dict[str, Tree]) -> Iterator[Fault]:
    """Find keys and list items without a value."""
    stack: list[tuple[KeyPath, Tree]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        if node == "":
            yield Fault(path, "has no value", "give it one, or remove the line", on_key=True)
        elif isinstance(node, dict):
            stack.extend(((*path, key), value) for key, value in reversed(node.items()))
        elif isinstance(node, list):
            stack.extend(((*path, index), value) for index, value in reversed([*enumerate(node)]))


def _faults(details: ErrorDetails) -> Iterator[Fault]:
    """Say a pydantic error in the words of this format."""
    path: KeyPath = details["loc"]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, FieldErrors):
        for error in cause.errors:
            yield Fault((*path, *error.within), error.message, error.hint)
    elif isinstance(cause, FieldError):
        yield Fault((*path, *cause.within), cause.message, cause.hint)
    elif details["type"] == "model_type":
        yield Fault(path, "must be a mapping")
    elif details["type"] == "tuple_type":
        yield Fault(path, "must be a list")
    else:
        yield Fault(path, details["msg"])


def _unknown_keys(document: Document, model: type[BaseModel]) -> Iterator[Fault]:
    """Find keys that no part of the model has."""
    n_unknown = 0
    for path in document.keys:
        part = _model_at(model, path[:-1])
        if part is None:
            continue
        accepted = [info.alias or name for name, info in part.model_fields.items()]
        if path[-1] in accepted:
            continue
        n_unknown += 1
        # They come in the file's order, so that no later one is among the first that are shown.
        meant = nearest(str(path[-1]), accepted) if n_unknown <= MOST_PROBLEMS else None
        hint = f"did you mean {meant}?" if meant else f"known here: {', '.join(accepted)}"
        yield Fault(path, "is not a known key", hint, on_key=True)
        if meant and (*path[:-1], meant) not in document.keys:
            document.bad.add((*path[:-1], meant))


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """Return the model of the part at that path; None where it has none of its own."""
    part: type[BaseModel] | None = model
    is_list = False
    for step in path:
        if part is None or is_list != isinstance(step, int):
            return None
        if is_list:
            is_list = False
            continue
        fields = {info.alias or name: info for name, info in part.model_fields.items()}
        annotation = fields[str(step)].annotation if step in fields else None
        part = _nested_model(annotation)
        is_list = part is not None and _holds_tuple(annotation)
    return None if is_list else part


def _nested_model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 (any annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_nested_model, get_args(annotation))), None)


def _holds_tuple(annotation: Any) -> bool:  # noqa: ANN401 (any annotation)
    return get_origin(annotation) is tuple or any(map(_holds_tuple, get_args(annotation)))


def _without(tree: dict[str, Tree], bad: set[KeyPath]) -> dict[str, Tree]:
    """Copy the tree without the bad parts: keys are left out, list items emptied."""

    def copy(node: Tree, path: KeyPath) -> Tree:
        if isinstance(node, dict):
            return {
                key: copy(value, (*path, key))
                for key, value in node.items()
                if (*path, key) not in bad
            }
        if isinstance(node, list):
            return [
                {} if (*path, index) in bad else copy(value, (*path, index))
                for index, value in enumerate(node)
            ]
        return node

    copied = copy(tree, ())
    return copied if isinstance(copied, dict) else {}
