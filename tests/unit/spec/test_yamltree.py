"""YAML as text: places, budgets, and nothing that a hostile file can do but be refused."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gmemd.spec import yamltree
from gmemd.spec.loading import parse_spec
from gmemd.spec.problems import SpecError, printable
from gmemd.spec.yamltree import DEEPEST_NESTING, MOST_NODES, read_document

EXAMPLE = (Path(__file__).parents[3] / "config" / "vms.d" / "regions.yaml").read_text()


def messages(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [str(problem) for problem in read_document(data, "f").problems]


def test_scalars_stay_text() -> None:
    document = read_document(b"a: no\nb: 010\nc: 1.0\nd: ~\ne: 2026-11-21\nf: 'q'\n", "f")
    assert document.tree == {
        "a": "no",
        "b": "010",
        "c": "1.0",
        "d": "~",
        "e": "2026-11-21",
        "f": "q",
    }


def test_places_of_keys_and_values() -> None:
    document = read_document("ä: x\nb:\n  - c: long\n    d: [1, 22]\n".encode(), "f")
    key = document.place_of(("b", 0, "d"), on_key=True)
    value = document.place_of(("b", 0, "d", 1))
    assert (key.line, key.column, key.width) == (4, 5, 1)
    assert (value.line, value.column, value.width) == (4, 12, 2)
    assert document.place_of(("b", 0, "missing")) == document.place_of(("b", 0))


def test_lines_of_other_systems_count_as_lines() -> None:
    assert messages("a: 1\r\nb: 2\r\na: 3\r\n") == ["f:3:1: a: is given twice (first on line 1)"]


def test_a_byte_order_mark_is_no_character() -> None:
    assert read_document(b"\xef\xbb\xbfa: 1\n", "f").tree == {"a": "1"}


def test_the_value_of_a_repeated_key_is_left_out_whole() -> None:
    document = read_document(b"a: 1\na: {b: {c: 1, c: 2}, d: [1, {e: 2}]}\nf: 3\n", "f")
    assert document.tree == {"a": "1", "f": "3"}
    assert len(document.problems) == 1


def test_utf16_is_told() -> None:
    assert messages("a: 1\n".encode("utf-16")) == ["f:1:1: is not UTF-8 (byte 0xff)"]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_depth_has_a_budget(opening: str) -> None:
    (message,) = messages(opening * 5000)
    assert f"nests deeper than {DEEPEST_NESTING} levels" in message or "key must be" in message


def test_nodes_have_a_budget() -> None:
    (message,) = messages("a: [" + "x, " * MOST_NODES + "]\n")
    assert message.endswith(f"holds more than {MOST_NODES} keys and values")


def test_a_billion_laughs_are_not_laughed() -> None:
    bomb = "a: &a [" + ",".join("x" * 9) + "]\n"
    bomb += "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert messages(bomb) == ["f:1:4: the anchor &a is refused"]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    document = read_document(data, "f")
    for problem in document.problems:
        assert problem.message
        assert str(problem).isprintable()


@given(st.text(max_size=200))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    try:
        parse_spec(text.encode(errors="replace"), file="f.yaml", stem="f")
    except SpecError as error:
        assert error.problems  # noqa: PT017  either is fine


@given(st.data())
def test_any_damage_to_a_spec_is_told_or_harmless(data: st.DataObject) -> None:
    """Characters of a good spec replaced, lines swapped or dropped: never another exception."""
    lines = EXAMPLE.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["drop", "repeat", "indent", "replace"]))
        if kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "repeat":
            lines.insert(at, lines[at])
        elif kind == "indent":
            lines[at] = "  " + lines[at]
        elif lines[at]:
            column = data.draw(st.integers(0, len(lines[at]) - 1))
            char = data.draw(st.sampled_from(list("{}[]:,-^0x \"'&*!|>\n")))
            lines[at] = lines[at][:column] + char + lines[at][column + 1 :]
    try:
        spec = parse_spec("\n".join(lines).encode(), file="regions.yaml", stem="regions")
    except SpecError as error:
        assert all(problem.line >= 1 for problem in error.problems)  # noqa: PT017  either is fine
    else:
        assert spec.vm == "regions"


def test_printable_escapes_and_shortens() -> None:
    assert printable("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert len(printable("x" * 1000)) == 61
    assert printable("x" * 1000, longest=None) == "x" * 1000


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with and without libyaml."""
    monkeypatch.setattr(yamltree, "LOADER", getattr(yaml, request.param))


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    "text",
    [
        f"%YAML {'1' * 5000}.1\n--- a\n",
        f"%YAML 1.{'1' * 5000}\n--- a\n",
        'a: "\\UFFFFFFFF"\n',
        'a: "\\U00110000"\n',
        "[" * 5000 + "`",
        "a: '",
    ],
)
def test_what_yaml_stumbles_on_is_told(text: str) -> None:
    (message,) = messages(text)
    assert "is not YAML" in message or "nests deeper" in message
    assert message.isprintable()


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    ("escape", "code"),
    [("\\0", "0000"), ("\\e[31m", "001B"), ("\\x7f", "007F"), ("\\ufeff", "FEFF")],
)
def test_an_escape_is_no_way_to_what_is_no_text(escape: str, code: str) -> None:
    (message,) = messages(f'a: ["x", "b{escape}"]\n')
    assert message.startswith(f"f:1:10: a[1]: spells the control character U+{code}")


@pytest.mark.usefixtures("_loader")
def test_no_loader_reads_a_spec_otherwise() -> None:
    document = read_document(EXAMPLE.encode(), "f")
    assert document.problems == []
    assert isinstance(document.tree, dict)
    assert document.tree["vm"] == "regions"
    last = document.tree["guest_nodes"]
    assert isinstance(last, list)
    place = document.place_of(("guest_nodes", len(last) - 1, "id"))
    assert document.lines[place.line - 1][place.column - 1 :].startswith(str(len(last) - 1))


def test_a_byte_order_mark_amid_the_text_is_told() -> None:
    assert messages("a: \ufeffb\n") == ["f:1:4: holds the control character U+FEFF"]
