import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.spec.nodeset import (
    format_nodeset,
    parse_nodeset,
    parse_nodeset_list,
    parse_vcpu_list,
    parse_vcpus,
)
from gmemd.spec.problems import FieldError, FieldErrors

NODES = st.frozensets(st.integers(0, 1023), min_size=1)


@given(NODES)
def test_what_is_formatted_is_parsed_back(nodes: frozenset[int]) -> None:
    assert parse_nodeset(format_nodeset(nodes)) == nodes


@given(NODES, NODES)
def test_exclusion_is_set_difference(included: frozenset[int], excluded: frozenset[int]) -> None:
    wanted, taken = included - excluded, included & excluded
    if not wanted:
        return
    pieces = [format_nodeset(included), *(f"^{node}" for node in taken)]
    assert parse_nodeset(",".join(pieces)) == wanted
    assert parse_nodeset(",".join(reversed(pieces))) == wanted


@given(st.lists(NODES, min_size=1, max_size=4))
def test_a_list_is_the_union_of_its_items(sets: list[frozenset[int]]) -> None:
    assert parse_nodeset_list(map(format_nodeset, sets)) == frozenset().union(*sets)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        nodes = parse_nodeset(text)
    except FieldError as error:
        assert error.message  # noqa: PT017  either is fine
    else:
        assert nodes
        assert max(nodes) <= 1023


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("0", {0}),
        ("0-3", {0, 1, 2, 3}),
        ("0-3,^1", {0, 2, 3}),
        ("^1,0-3", {0, 2, 3}),
        ("0-7,^2-5", {0, 1, 6, 7}),
        (" 0 - 2 , 5 ", {0, 1, 2, 5}),
        ("010", {10}),
        ("0,0-1", {0, 1}),
        ("1023", {1023}),
    ],
)
def test_readings(text: str, nodes: set[int]) -> None:
    assert parse_nodeset(text) == nodes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "0,,1",
        "-1",
        "0-",
        "0x1",
        "1.0",
        "\u0661",
        "0 1",
        "1024",
        "^0",
        "0,^0",
        "5-3",
        pytest.param("0," * 20000 + "0", id="long"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(FieldError):
        parse_nodeset(text)


def test_every_bad_item_of_a_list_is_told() -> None:
    with pytest.raises(FieldErrors) as caught:
        parse_nodeset_list(["0", "x", "1", "3-2"])
    assert [error.within for error in caught.value.errors] == [(1,), (3,)]


def test_an_empty_list_names_nothing() -> None:
    with pytest.raises(FieldError):
        parse_nodeset_list([])


def test_vcpus_are_sorted() -> None:
    assert parse_vcpus("16-17,0-1") == (0, 1, 16, 17)
    assert parse_vcpu_list(["3", "1"]) == (1, 3)


def test_no_nodes_is_no_text() -> None:
    assert format_nodeset(()) == ""


def test_what_is_refused_is_told_in_one_line() -> None:
    with pytest.raises(FieldError) as caught:
        parse_nodeset("8\n-3")
    assert caught.value.message == "the range 8\\n-3 runs backwards"
