import os
from pathlib import Path

import pytest

from gmemd.spec import loading
from gmemd.spec.loading import KnownFiles, Loaded, load_directory, load_spec
from gmemd.spec.problems import SpecError

GOOD = """\
version: 1
vm: {vm}
source: create
guest_nodes:
  - {{id: 0, memory: {memory}, host_nodes: 0, policy: bind}}
"""


def write(directory: Path, name: str, text: str | None = None, memory: str = "1GiB") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(GOOD.format(vm=path.stem, memory=memory) if text is None else text)
    return path


def names(loaded: Loaded) -> list[str]:
    return [spec.vm for spec in loaded.specs]


def problems_of(error: pytest.ExceptionInfo[SpecError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def test_a_spec_knows_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml")
    spec = load_spec(path)
    assert spec.vm == "a"
    assert spec.path == str(path)


def test_both_endings_are_read_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml"):
        write(tmp_path, name)
    for name in (".c.yaml", "d.yaml~", "#e.yaml#", ".#f.yaml", "g.yaml.swp", "h.json", "README"):
        write(tmp_path, name, "junk: [")
    loaded = load_directory([tmp_path])
    assert names(loaded) == ["a", "b"]
    assert not loaded.problems
    assert loaded.n_files == 2


def test_a_bad_file_affects_no_other(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml")
    bad = write(tmp_path, "b.yaml", "version: 1\nvm: b\n  oops: [\n")
    write(tmp_path, "c.yaml")
    loaded = load_directory([tmp_path])
    assert names(loaded) == ["a", "c"]
    assert loaded.failed_files == (bad,)
    assert loaded.failed_vms == {"b"}
    assert loaded.names == {"a", "b", "c"}
    assert {problem.file for problem in loaded.problems} == {str(bad)}
    assert loaded.n_files == 3


def test_the_earlier_directory_wins(tmp_path: Path) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    first = write(etc, "a.yaml", memory="1GiB")
    second = write(run, "a.yml", memory="2GiB")
    write(run, "b.yaml")
    loaded = load_directory([etc, run])
    assert [(spec.vm, spec.size_bytes >> 30) for spec in loaded.specs] == [("a", 1), ("b", 1)]
    assert loaded.shadowed == ((second, first),)
    assert not loaded.problems


def test_a_bad_file_still_shadows(tmp_path: Path) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    write(etc, "a.yaml", "broken")
    write(run, "a.yaml")
    loaded = load_directory([etc, run])
    assert not loaded.specs
    assert loaded.failed_vms == {"a"}
    assert loaded.shadowed


def test_two_files_of_one_vm_in_a_directory(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml")
    twin = write(tmp_path, "a.yml")
    loaded = load_directory([tmp_path])
    assert names(loaded) == ["a"]
    assert [str(problem) for problem in loaded.problems] == [
        f"{twin}:2:5: vm: a.yaml in the same directory is VM a already"
    ]
    assert loaded.failed_files == (twin,)


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_directory([tmp_path / "gone"])
    assert problems_of(caught) == [f"{tmp_path}/gone: can't be read: No such file or directory"]


def test_a_missing_directory_below_run_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "VOLATILE", tmp_path)
    etc = tmp_path.parent / f"{tmp_path.name}-etc"
    write(etc, "a.yaml")
    assert names(load_directory([etc, tmp_path / "gmemd" / "vms.d"])) == ["a"]


def test_a_directory_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml")
    with pytest.raises(SpecError) as caught:
        load_directory([path])
    assert problems_of(caught) == [f"{path}: can't be read: Not a directory"]


def test_an_unreadable_directory_is_an_error(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(SpecError) as caught:
        load_directory([loop])
    assert problems_of(caught) == [f"{loop}: can't be read: Too many levels of symbolic links"]


def test_an_empty_directory_has_no_files(tmp_path: Path) -> None:
    loaded = load_directory([tmp_path])
    assert loaded.n_files == 0
    assert not loaded.names


def test_fifos_directories_and_dangling_links_hold_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to("nowhere")
    (tmp_path / "null.yaml").symlink_to("/dev/null")
    write(tmp_path, "a.yaml")
    loaded = load_directory([tmp_path])
    assert names(loaded) == ["a"]
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in loaded.problems] == [
        "fifo.yaml: is not a regular file",
        "folder.yaml: is not a regular file",
        "link.yaml: can't be read: No such file or directory",
        "null.yaml: is not a regular file",
    ]
    assert loaded.problems[2].hint == "it is a symbolic link to nowhere"


def test_a_link_to_a_spec_is_read(tmp_path: Path) -> None:
    write(tmp_path, "real.yaml", GOOD.format(vm="a", memory="1GiB"))
    (tmp_path / "vms.d").mkdir()
    (tmp_path / "vms.d" / "a.yaml").symlink_to(tmp_path / "real.yaml")
    assert names(load_directory([tmp_path / "vms.d"])) == ["a"]


def test_a_name_that_no_vm_can_have_is_a_problem_of_no_vm(tmp_path: Path) -> None:
    write(tmp_path, "a b.yaml", GOOD.format(vm="ab", memory="1GiB"))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")).write_text("x: y\n")
    loaded = load_directory([tmp_path])
    assert not loaded.failed_files
    assert loaded.n_files == 2
    for problem in loaded.problems:
        str(problem).encode()
        problem.file.encode()
    assert loaded.problems[0].hint == "rename the file to ab.yaml"


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "#" * (1 << 20) + "\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert problems_of(caught) == [f"{path}: is larger than 1MiB"]


def test_of_very_many_problems_the_first_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "guest_nodes:\n" + "  - {id: x}\n" * 200)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    told = problems_of(caught)
    assert len(told) == 101
    assert told[-1] == f"{path}: has 303 more problems"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a.yaml")
    assert problems_of(caught) == [f"{tmp_path}/a.yaml: can't be read: No such file or directory"]


def test_a_file_that_is_as_it_was_gives_the_same_spec(tmp_path: Path) -> None:
    known = KnownFiles()
    write(tmp_path, "a.yaml")
    write(tmp_path, "b.yaml")
    before = load_directory([tmp_path], known).specs
    write(tmp_path, "b.yaml", memory="2GiB")
    now = load_directory([tmp_path], known).specs
    assert now[0] is before[0]
    assert now[1].size_bytes == 2 * before[1].size_bytes
    write(tmp_path, "b.yaml", "vm: b\n")
    assert load_directory([tmp_path], known).failed_vms == {"b"}
    write(tmp_path, "b.yaml", memory="2GiB")
    assert load_directory([tmp_path], known).specs == now


def test_more_guest_nodes_than_any_vm_has(tmp_path: Path) -> None:
    def nodes(number: int) -> str:
        listed = "".join(f"  - {{id: {n}, memory: 4MiB, host_nodes: 0}}\n" for n in range(number))
        return f"version: 1\nvm: a\nsource: create\nguest_nodes:\n{listed}"

    assert len(load_spec(write(tmp_path, "a.yaml", nodes(256))).guest_nodes) == 256
    path = write(tmp_path, "a.yaml", nodes(257))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    (problem,) = caught.value.problems
    assert problem.message == "must have at most 256 guest nodes"
    assert (problem.line, problem.key) == (5, "guest_nodes")


def test_a_vcpu_of_many_guest_nodes_is_told_of_some(tmp_path: Path) -> None:
    singles = "".join(f"  - {{id: {n}, vcpus: {n}, memory: 4MiB}}\n" for n in range(20))
    last = "  - {id: 20, vcpus: 0-30, memory: 4MiB}\n"
    text = f"version: 1\nvm: a\nsource: register\nguest_nodes:\n{singles}{last}"
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, "a.yaml", text))
    assert [problem.message for problem in caught.value.problems] == [
        f"has vCPU {owner} of guest_nodes[{owner}] again" for owner in range(8)
    ]
