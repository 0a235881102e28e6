"""Every broken spec beside this file gives exactly the text beside it."""

from pathlib import Path

import pytest

from gmemd.spec.loading import parse_spec
from gmemd.spec.problems import SpecError

BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))


def explain(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(path.read_bytes(), file=path.name, stem=path.stem)
    return "".join(
        f"{problem}\n" + (f"  hint: {problem.hint}\n" if problem.hint else "")
        for problem in caught.value.problems
    )


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_exact_message(path: Path) -> None:
    assert explain(path) == path.with_suffix(".txt").read_text()


def test_there_are_many() -> None:
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_problems_point_into_the_file(path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(path.read_bytes(), file=path.name, stem=path.stem)
    lines = path.read_bytes().decode(errors="replace").splitlines()
    for problem in caught.value.problems:
        assert problem.line >= 1
        assert problem.column >= 1
        if problem.line <= len(lines):
            assert problem.source == lines[problem.line - 1]


def test_one_problem_has_its_hint_and_several_have_theirs_inline() -> None:
    one = Path(__file__).parent / "broken" / "si-size.yaml"
    with pytest.raises(SpecError) as caught:
        parse_spec(one.read_bytes(), file=one.name, stem=one.stem)
    assert caught.value.hint == caught.value.problems[0].hint
    assert caught.value.exit_code == 2
    with pytest.raises(SpecError) as caught:
        parse_spec(b"version: 2\nsource: creat\n", file="x.yaml", stem="x")
    assert caught.value.hint is None
    assert "\n  hint: did you mean create?" in caught.value.message
