import pytest

from gmemd.kernel.mempolicy import MAX_NODES, RELATIVE_NODES, STATIC_NODES, MemPolicy


def test_a_policy_prints_as_it_is_spoken_of() -> None:
    assert str(MemPolicy("default")) == "default"
    assert str(MemPolicy("bind", frozenset({10, 2}))) == "bind {2,10}"
    assert str(MemPolicy("bind", frozenset({0}), STATIC_NODES)) == "bind=static {0}"
    assert str(MemPolicy("interleave", frozenset({1}), RELATIVE_NODES)) == "interleave=relative {1}"


def test_a_mode_without_a_word_is_a_number() -> None:
    assert MemPolicy("mode-999").mode == "mode-999"


@pytest.mark.parametrize("mode", ["", "BIND", "mode-", "mode-x", "mode--1"])
def test_other_words_are_no_mode(mode: str) -> None:
    with pytest.raises(ValueError, match=r"mode"):
        MemPolicy(mode)


@pytest.mark.parametrize("node", [-1, MAX_NODES])
def test_nodes_are_those_that_a_mask_can_hold(node: int) -> None:
    with pytest.raises(ValueError, match="node numbers are 0 to 1023"):
        MemPolicy("bind", frozenset({0, node}))
