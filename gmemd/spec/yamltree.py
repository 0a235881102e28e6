"""YAML as text: mappings, lists and words with the place of each, and nothing converted.

Read from PyYAML's events with a stack of its own, so that neither depth nor size of a hostile
file costs more than its budget; anchors, aliases and tags are refused. The events are libyaml's
where PyYAML has it, as its packages do: its own scanner takes ten times as long, and for brackets
within brackets a time that grows with their square.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import yaml

from gmemd.spec.problems import Fault, KeyPath, Problem, printable, spell_path

LARGEST_FILE = 1 << 20
"""Bytes of the largest file that is read."""

DEEPEST_NESTING = 16
MOST_NODES = 20_000

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str"

LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""What events come from."""

_UNREADABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file: line and column from 1, and how many characters are meant."""

    line: int
    column: int
    width: int = 1


@dataclass(slots=True)
class Document:
    """One YAML file's content, the places of its keys and values, and what is wrong with it.

    ``tree`` is None where the file can't be read as YAML at all. ``bad`` are the key paths
    that a problem of this stage is about.
    """

    file: str
    lines: list[str] = field(default_factory=list)
    tree: Tree | None = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    bad: set[KeyPath] = field(default_factory=set)

    def place_of(self, path: KeyPath, *, on_key: bool = False) -> Place:
        """Where the value (or the key) of that path is; of what surrounds it, if it is missing."""
        while path:
            place = self.keys.get(path) if on_key else self.values.get(path)
            if place is not None:
                return place
            path, on_key = path[:-1], False
        return self.values.get((), Place(1, 1))

    def value_at(self, path: KeyPath) -> str | None:
        """The value of that path as people saw it, or None where there is none."""
        node: Any = self.tree
        for step in path:
            try:
                node = node[step]
            except (KeyError, IndexError, TypeError):
                return None
        if isinstance(node, dict):
            return "a mapping" if node else "an empty mapping"
        if isinstance(node, list):
            return "a list" if node else "an empty list"
        return printable(node) if node else "nothing"

    def report(self, fault: Fault) -> None:
        """Add a fault of this document to its problems."""
        place = self.place_of(fault.path, on_key=fault.on_key)
        value = None if fault.on_key else self.value_at(fault.path)
        self._add(place, fault.path, fault.message, value=value, hint=fault.hint)

    def report_at(self, place: Place, path: KeyPath, message: str, hint: str | None = None) -> None:
        """Add a problem at a place that isn't the path's own."""
        self._add(place, path, message, hint=hint)

    def _add(
        self,
        place: Place,
        path: KeyPath,
        message: str,
        *,
        value: str | None = None,
        hint: str | None = None,
    ) -> None:
        has_line = 0 < place.line <= len(self.lines)
        self.problems.append(
            Problem(
                file=self.file.encode(errors="backslashreplace").decode(),
                line=place.line,
                column=place.column,
                key=spell_path(path),
                value=value,
                message=message,
                hint=hint,
                source=self.lines[place.line - 1] if has_line else "",
                width=place.width,
            )
        )


def read_document(data: bytes, file: str) -> Document:
    """Read one file's bytes; what can't be read is in the result's problems."""
    document = Document(file)
    if len(data) > LARGEST_FILE:
        document.report_at(
            Place(0, 0), (), f"is larger than {LARGEST_FILE >> 20}MiB", "is this the right file?"
        )
        return document
    text = _decode(document, data)
    if text is None:
        return document
    document.lines = text.splitlines()
    try:
        _Builder(document).build(text)
    except _Unreadable as error:
        document.tree = None
        document.report_at(error.place, error.path, error.message, error.hint)
    except yaml.MarkedYAMLError as error:
        document.tree = None
        document.report_at(_error_place(error), (), *_explain(error, text))
    except (yaml.YAMLError, ValueError, OverflowError):
        # PyYAML's own scanner doesn't expect numbers of any size in directives and escapes.
        document.tree = None
        document.report_at(Place(0, 0), (), "is not YAML: can't be read", _SAVE_AS)
    return document


class _Unreadable(Exception):  # noqa: N818 (never leaves this module)
    def __init__(
        self, place: Place, message: str, hint: str | None = None, path: KeyPath = ()
    ) -> None:
        super().__init__(message)
        self.place = place
        self.path = path
        self.message = message
        self.hint = hint


@dataclass(slots=True)
class _Open:
    """A mapping or list that is being read."""

    path: KeyPath
    node: dict[str, Tree] | list[Tree]
    key: str | None = None
    skipped: bool = False


class _Builder:
    """Builds one document's tree from its events."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._stack: list[_Open] = []
        self._n_nodes = 0
        self._n_documents = 0

    def build(self, text: str) -> None:
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                self._n_documents += 1
                if self._n_documents > 1:
                    raise _Unreadable(
                        _place(event),
                        "holds a second document",
                        "a file is one document: remove this ---",
                    )
            elif isinstance(event, yaml.NodeEvent):
                self._take(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._stack.pop()

    def _take(self, event: yaml.NodeEvent) -> None:
        """Read the start of a node: a key, or a value with all that is in it."""
        place = _place(event)
        self._check(event, place)
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.node, dict) and top.key is None:
            self._take_key(top, event, place)
            return
        path = self._path_of_next(top)
        node: Tree
        if isinstance(event, yaml.ScalarEvent):
            node = event.value
        else:
            node = {} if isinstance(event, yaml.MappingStartEvent) else []
        skipped = top is not None and (top.skipped or top.key == _TWICE)
        if not skipped:
            self._attach(top, path, node, place)
            if isinstance(node, str) and (odd := _UNREADABLE.search(node)):
                self._refuse_escape(path, ord(odd[0]))
        elif top is not None:
            top.key = None
        if not isinstance(node, str):
            if len(self._stack) == DEEPEST_NESTING:
                raise _Unreadable(place, f"nests deeper than {DEEPEST_NESTING} levels")
            self._stack.append(_Open(path, node, skipped=skipped))

    def _attach(self, top: _Open | None, path: KeyPath, node: Tree, place: Place) -> None:
        self._document.values[path] = place
        if top is None:
            self._document.tree = node
        elif isinstance(top.node, list):
            top.node.append(node)
        elif top.key is not None:
            top.node[top.key] = node
            top.key = None

    def _refuse_escape(self, path: KeyPath, code: int) -> None:
        """Report a value that no name, path or number can be: it spells what isn't text."""
        self._document.report(Fault(path, f"spells the control character U+{code:04X}", _LEAVE_OUT))
        self._document.bad.add(path)

    def _take_key(self, top: _Open, event: yaml.NodeEvent, place: Place) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Unreadable(place, "a key must be a word, not a mapping or a list", path=top.path)
        key = event.value
        if key in top.node and not top.skipped:
            first = self._document.keys[*top.path, key]
            self._document.report_at(
                place, (*top.path, key), f"is given twice (first on line {first.line})"
            )
            top.key = _TWICE
            return
        top.key = key
        if not top.skipped:
            self._document.keys[*top.path, key] = place

    def _path_of_next(self, top: _Open | None) -> KeyPath:
        if top is None:
            return ()
        if isinstance(top.node, list):
            return (*top.path, len(top.node))
        return (*top.path, top.key or "")

    def _check(self, event: yaml.NodeEvent, place: Place) -> None:
        """Refuse what a spec never needs: anchors, aliases, tags, and too much of anything."""
        self._n_nodes += 1
        if self._n_nodes > MOST_NODES:
            raise _Unreadable(place, f"holds more than {MOST_NODES} keys and values")
        if isinstance(event, yaml.AliasEvent):
            raise _Unreadable(
                place, f"the alias *{printable(str(event.anchor))} is refused", _SPELL_OUT
            )
        if event.anchor is not None:
            raise _Unreadable(
                place, f"the anchor &{printable(event.anchor)} is refused", _SPELL_OUT
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Unreadable(
                place,
                f"the tag {printable(tag.replace(_YAML_TAG, '!!'))} is refused",
                "values are read as text: remove it",
            )


_YAML_TAG = "tag:yaml.org,2002:"
_TWICE = "\0twice"
_LEAVE_OUT = "remove the escape"
_SPELL_OUT = "anchors and aliases are not read: write the value out in each place"


def _place(event: yaml.Event) -> Place:
    # Every event that the parser makes has its marks.
    start, end = cast("tuple[yaml.Mark, yaml.Mark]", (event.start_mark, event.end_mark))
    width = 1
    if isinstance(event, yaml.ScalarEvent) and end.line == start.line:
        width = max(1, end.column - start.column)
    return Place(start.line + 1, start.column + 1, width)


def _decode(document: Document, data: bytes) -> str | None:
    """Decode UTF-8 and refuse what isn't text; the problem's place is the offending character."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        document.lines = data.decode("utf-8", "replace").splitlines()
        document.report_at(
            _end_of(before), (), f"is not UTF-8 (byte 0x{data[error.start]:02x})", _SAVE_AS
        )
        return None
    unreadable = _UNREADABLE.search(text)
    if unreadable is None:
        return text
    document.lines = text.splitlines()
    document.report_at(
        _end_of(text[: unreadable.start()]),
        (),
        f"holds the control character U+{ord(unreadable[0]):04X}",
        _SAVE_AS,
    )
    return None


_SAVE_AS = "save the file as plain UTF-8 text"


def _end_of(text: str) -> Place:
    lines = f"{text}|".splitlines()
    return Place(len(lines), len(lines[-1]))


def _error_place(error: yaml.MarkedYAMLError) -> Place:
    mark = error.problem_mark or error.context_mark
    return Place(1, 1) if mark is None else Place(mark.line + 1, mark.column + 1)


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[str, str | None]:
    """PyYAML's words for a syntax error, and what to do about the usual ones."""
    problem = error.problem or "can't be read"
    message = f"is not YAML: {printable(problem, longest=None)}"
    if error.context and error.context_mark is not None:
        context = printable(error.context, longest=None)
        message += f" ({context} from line {error.context_mark.line + 1})"
    return message, _syntax_hint(problem, text[_index_of(error) :])


def _index_of(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return 0 if mark is None else mark.index


def _syntax_hint(problem: str, rest: str) -> str | None:
    """What to do about a problem, by its words and by what is there in the text."""
    if rest.startswith("\t"):
        return "indent with spaces, never with tabs"
    if not rest.strip() and "expected" in problem:
        return "a bracket or quote that is opened there is never closed"
    return next((hint for words, hint in _SYNTAX_HINTS if words in problem), None)


_ALIGN = "is this line indented like the others of its list or mapping?"
_SYNTAX_HINTS = (
    ("mapping values are not allowed", "is a space missing after a colon, or a line indented?"),
    ("expected <block end>", _ALIGN),
    ("did not find expected key", _ALIGN),
    ("did not find expected '-'", _ALIGN),
    ("could not find expected ':'", "a key is followed by a colon and a space"),
)
