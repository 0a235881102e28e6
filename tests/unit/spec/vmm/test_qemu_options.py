from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.spec.vmm.qemu_options import (
    Option,
    merge_groups,
    read_group,
    read_options,
    read_size,
)
from gmemd.spec.vmm.values import NotUnderstood

KEYS = st.from_regex("[a-z][a-z0-9-]{0,9}", fullmatch=True)


@given(st.lists(st.tuples(KEYS, st.text(max_size=30)), min_size=1, max_size=6))
def test_quoted_values_come_back(items: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in items)
    group = read_group(text, "first")
    assert {key: list(values) for key, values in group.values.items()} == {
        key: [value for other, value in items if other == key] for key, _ in items
    }


@given(
    st.dictionaries(
        KEYS, st.one_of(st.integers(0, 1 << 64), st.text(max_size=9)), min_size=1, max_size=5
    )
)
def test_both_syntaxes_say_the_same(values: dict[str, int | str]) -> None:
    plain = ",".join(f"{key}={str(value).replace(',', ',,')}" for key, value in values.items())
    assert read_group(json.dumps(values), "x") == read_group(plain, "x")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("ram", {"first": ["ram"]}),
        ("ram,share", {"first": ["ram"], "share": ["on"]}),
        ("a,,b=c,d=e", {"first": ["a,b=c"], "d": ["e"]}),
        ("a=b,,,c=d", {"a": ["b,"], "c": ["d"]}),
        ("a=b,", {"a": ["b"]}),
        ("a=", {"a": [""]}),
        ("a=b=c", {"a": ["b=c"]}),
        ("a=1,a=2", {"a": ["1", "2"]}),
        ("a.0=1,a.1=2", {"a": ["1", "2"]}),
        ("a=x\ny", {"a": ["x\ny"]}),
        (
            '{"a":[0,1],"b":true,"c":null,"d":{"e":"f"}}',
            {"a": ["0", "1"], "b": ["on"], "d.e": ["f"]},
        ),
    ],
)
def test_groups(text: str, values: dict[str, list[str]]) -> None:
    assert read_group(text, "first").values == values


@pytest.mark.parametrize("text", ["{", "{]", "{a:1}", '{"a":' * 100_000])
def test_no_json(text: str) -> None:
    with pytest.raises(NotUnderstood):
        read_group(text, "first")


def test_the_last_value_counts() -> None:
    group = merge_groups([read_group("4G,slots=2", "size"), read_group("8G", "size")])
    assert (group.get("size"), group.get("slots"), group.get("maxmem")) == ("8G", "2", "")
    assert "maxmem" not in group


def test_options() -> None:
    words = ["kvm", "-S", "--m", "1G", "disk", "-append", "-m 2G", "-vnc", ":0", "-", "-snapshot"]
    assert list(read_options(words)) == [
        Option("S", ""),
        Option("m", "1G"),
        Option("", "disk"),
        Option("append", "-m 2G"),
        Option("vnc", ":0"),
        Option("", "-"),
        Option("snapshot", ""),
    ]
    assert list(read_options([])) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096b", 4096),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("512M", 512 << 20),
        ("1.5G", 3 << 29),
        ("1.G", 1 << 30),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
        ("0x1000", 4096),
        ("0X64M", 100 << 20),
        ("0x1b", 0x1B),
        ("0.1k", 102),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "100MB",
        "1e2M",
        ".1G",
        "0.5",
        "1.5B",
        "0x",
        "0x1.5G",
        "1 G",
        "8E",
        "٣G",
        "1_0",
    ],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(NotUnderstood):
        read_size(text)


@given(st.text(max_size=12))
def test_any_size_is_read_or_refused(text: str) -> None:
    try:
        assert 0 <= read_size(text, unit=1 << 20) < 1 << 63
    except NotUnderstood as error:
        assert str(error)  # noqa: PT017  either is fine
