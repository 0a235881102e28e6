"""Hostile text of every kind: some thousands here, a million by `python -m tests.fuzz`."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import kinds, running, trees
from tests.fuzz.checking import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

N_SPECS, N_TEXTS = 3000, 300

OF_TEXT = [kind for kind in kinds.KINDS if kind.name not in kinds.OF_SEVERAL_FILES]
BYTES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@pytest.fixture(autouse=True, scope="module")
def _tidy() -> Iterator[None]:
    yield
    trees.remove()


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_what_is_nearly_right_is_read_or_refused(kind: running.Kind) -> None:
    n = N_SPECS if kind.name == kinds.SPEC else N_TEXTS
    tally = running.run(kind, range(n), seed=1)
    assert [f"{one.what}: {one.data!r}" for one in tally.found] == []
    assert tally.n == n
    assert tally.n_accepted > 0


@pytest.mark.parametrize("kind", OF_TEXT, ids=lambda kind: kind.name)
@settings(max_examples=40)
@given(data=BYTES)
def test_any_bytes_are_read_or_refused(kind: running.Kind, data: bytes) -> None:
    kind.check(data)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 64), more=BYTES, at=st.integers(0, 1 << 12))
def test_any_bytes_in_what_is_nearly_a_spec(seed: int, more: bytes, at: int) -> None:
    data = kinds.BY_NAME[kinds.SPEC].make(Random(seed))
    kinds.BY_NAME[kinds.SPEC].check(data[:at] + more + data[at:])


def test_the_same_seed_makes_the_same_input() -> None:
    kind = kinds.BY_NAME[kinds.SPEC]
    assert running.input_of(7, kind, 3) == running.input_of(7, kind, 3)
    assert len({running.input_of(7, kind, number) for number in range(50)}) > 45


def fails(what: Exception) -> running.Kind:
    def check(data: bytes) -> bool:
        if data == b"3":
            raise what
        return True

    return running.Kind("made-up", lambda rng: str(rng.randrange(5)).encode(), check)


@pytest.mark.parametrize("what", [Finding("it is wrong"), KeyError("it is wrong")])
def test_what_must_not_be_is_found(what: Exception) -> None:
    tally = running.run(fails(what), range(1000), seed=1)
    assert len(tally.found) == running.MOST_FINDINGS
    assert all(one.data == b"3" and "it is wrong" in one.what for one in tally.found)


def test_a_hang_is_found() -> None:
    def check(data: bytes) -> bool:
        return sum(range(20_000_000)) > len(data)

    kind = running.Kind("made-up", lambda rng: rng.randbytes(3), check)
    (found,) = running.run(kind, range(1), seed=1).found
    assert "ms of CPU time" in found.what


def test_growth_is_found() -> None:
    kept: list[object] = []

    def check(data: bytes) -> bool:
        kept.extend([data] for _ in range(5))
        return True

    kind = running.Kind("made-up", lambda rng: rng.randbytes(3), check)
    (found,) = running.run(kind, range(1000), seed=1).found
    assert "objects grew" in found.what
