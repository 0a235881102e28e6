from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gmemd.host.model import Feature
from gmemd.host.reading import read_host
from gmemd.host.verdict import MEANINGS, judge

HOSTS = Path(__file__).parents[2] / "fixtures/hosts"


@pytest.mark.parametrize(
    ("name", "able", "said"),
    [
        ("two-sockets", True, "gmemd can place guest_memfd by inode policy here"),
        ("before-inode-policy", True, "gmemd can place guest_memfd by proxy-allocation here"),
        ("no-kvm", True, "gmemd can place memfd by inode policy here, no guest_memfd"),
    ],
)
def test_the_best_strategy_that_works(name: str, *, able: bool, said: str) -> None:
    verdict = judge(read_host(HOSTS / name))
    assert verdict.able is able
    assert verdict.text.startswith(said)


def test_a_host_where_nothing_works() -> None:
    host = read_host(HOSTS / "no-kvm")
    lacking = {name: Feature(name, supported=False) for name in host.features}
    verdict = judge(replace(host, features=lacking))
    assert not verdict.able
    assert verdict.text.startswith("gmemd can place nothing here")


def test_guest_memfd_that_cannot_be_mapped() -> None:
    host = read_host(HOSTS / "two-sockets")
    mmap = Feature("guest_memfd_mmap", supported=False)
    verdict = judge(replace(host, features={**host.features, "guest_memfd_mmap": mmap}))
    assert verdict.text.endswith("guest_memfd can't be mapped")


def test_every_feature_has_a_meaning() -> None:
    assert read_host(HOSTS / "two-sockets").features.keys() == MEANINGS.keys()
