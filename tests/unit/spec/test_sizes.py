import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmemd.spec.problems import FieldError
from gmemd.spec.sizes import LARGEST_SIZE, exact_size, format_size, parse_size


@given(st.integers(1, LARGEST_SIZE >> 10))
def test_exact_sizes_are_parsed_back(kibibytes: int) -> None:
    assert parse_size(exact_size(kibibytes << 10)) == kibibytes << 10


@given(st.integers(1024, LARGEST_SIZE))
def test_formatted_sizes_are_near(size: int) -> None:
    assert abs(float(parse_nearly(format_size(size))) - size) <= size * 0.05


def parse_nearly(text: str) -> float:
    scale = 1 << (10 * ("KMGTP".index(text[-3]) + 1))
    return float(text[:-3]) * scale


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        size = parse_size(text)
    except FieldError as error:
        assert error.message  # noqa: PT017  either is fine
    else:
        assert 0 < size <= LARGEST_SIZE


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4KiB", 4096),
        ("2Mi", 2 << 20),
        ("16GiB", 16 << 30),
        ("16 GiB", 16 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5TiB", 1 << 39),
        ("4PiB", 1 << 52),
    ],
)
def test_readings(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "16G",
            (
                "16G may mean 16GiB (17179869184 bytes) or 16GB (16000000000 bytes): "
                "write 16GiB or 15625000KiB"
            ),
        ),
        (
            "1mb",
            "1mb may mean 1MiB (1048576 bytes) or 1MB (1000000 bytes): write 1MiB",
        ),
        ("4096", "4096 may mean bytes or MiB: write 4KiB or 4GiB"),
        ("100", "100 may mean bytes or MiB: write 100MiB"),
        ("16GIB", "write 16GiB"),
        ("16 parsec", "'parsec' is not a unit: KiB, MiB, GiB, TiB and PiB are"),
        ("lots", None),
        ("1e3GiB", None),
    ],
)
def test_refused_with_the_readings(text: str, hint: str | None) -> None:
    with pytest.raises(FieldError) as caught:
        parse_size(text)
    assert caught.value.message == "must be a size with an IEC unit, like 512MiB or 16GiB"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "text", ["0KiB", "0.0000001KiB", "5PiB", "-1GiB", "\u0663GiB", "9" * 30 + "GiB"]
)
def test_refused(text: str) -> None:
    with pytest.raises(FieldError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (512 << 20, "512MiB"),
        (3 << 29, "1.5GiB"),
        (5 << 28, "1.25GiB"),
        (16 << 30, "16GiB"),
        (100 << 30, "100GiB"),
        (16 * 10**9, "14.9GiB"),
        ((1 << 30) - 1, "1GiB"),
        (-(3 << 29), "-1.5GiB"),
    ],
)
def test_formatted(size: int, text: str) -> None:
    assert format_size(size) == text
