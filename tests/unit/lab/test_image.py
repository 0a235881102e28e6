import os
import time
from pathlib import Path

import pytest

from tests.lab import image
from tests.lab.definition import Definition
from tests.lab.errors import LabError
from tests.lab.image import Image, ensure_image, mmdebstrap_command, release_key


def test_kernels_are_ordered_by_release(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for release in ("7.3.4+deb13-amd64", "6.12.117+deb13-amd64", "6.9.1-amd64"):
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
    assert Image(tmp_path).kernels() == [
        "6.9.1-amd64",
        "6.12.117+deb13-amd64",
        "7.3.4+deb13-amd64",
    ]


def test_a_release_is_ordered_by_its_numbers() -> None:
    assert release_key("6.12.117+deb13-amd64") == (6, 12, 117)
    assert release_key("7.3~rc1-amd64") < release_key("7.3.4-amd64")


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert image.cache_directory() == tmp_path / "gmemd" / "lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert image.cache_directory() == Path("/home/someone/.cache/gmemd/lab")


def test_a_cached_image_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    cached = image.cache_directory() / Definition().key()
    cached.mkdir(parents=True)
    assert ensure_image() == Image(cached)


def test_missing_programs_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError) as caught:
        ensure_image()
    assert caught.value.hint == "apt-get install mmdebstrap e2fsprogs qemu-system-x86"


def test_old_and_unfinished_images_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    cache = image.cache_directory()
    for name in ("old", "recent", "building-xyz"):
        (cache / name).mkdir(parents=True)
    long_ago = time.time() - image.KEEP_UNUSED_SECONDS - 1
    os.utime(cache / "old", (long_ago, long_ago))
    with pytest.raises(LabError):
        ensure_image()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["recent"]


def test_the_build_takes_its_mirror_from_mmdebstrap() -> None:
    command = mmdebstrap_command(Definition(), Path("/w"), Path("/r"), mode="unshare")
    assert command[:2] == ["mmdebstrap", "--mode=unshare"]
    # suite and target only: a mirror would be a third
    assert command[-2:] == ["trixie", "-"]
    assert not any("://" in word for word in command)
