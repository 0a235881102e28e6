"""The lab's image: built by mmdebstrap, cached under a key of its definition."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.lab.definition import GUEST_FILES, Definition
from tests.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEP_UNUSED_SECONDS = 7 * 24 * 3600
NEEDED_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}


def cache_directory() -> Path:
    """Where images are kept: outside any checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gmemd" / "lab"


@dataclass(frozen=True)
class Image:
    """A finished image: ``disk.img``, ``boot/vmlinuz-*``, ``modules/*`` and a static busybox."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    @property
    def busybox(self) -> Path:
        return self.directory / "busybox"

    def kernels(self) -> list[str]:
        """The releases of the kernels in the image, oldest first."""
        releases = [
            path.name.removeprefix("vmlinuz-") for path in self.directory.glob("boot/vmlinuz-*")
        ]
        return sorted(releases, key=release_key)

    def kernel(self, release: str) -> Path:
        return self.directory / "boot" / f"vmlinuz-{release}"

    def modules(self, release: str) -> Path:
        return self.directory / "modules" / release


def release_key(release: str) -> tuple[int, ...]:
    """Orders kernel releases: "6.12.43+deb13-amd64" comes before "7.3.4+deb13-amd64"."""
    numbers = release.split("-", maxsplit=1)[0].split("+", maxsplit=1)[0].split(".")
    return tuple(int(number) if number.isdigit() else 0 for number in numbers)


def ensure_image(definition: Definition | None = None, *, rebuild: bool = False) -> Image:
    """The image of the definition, built now if the cache has none. Raises LabError."""
    definition = definition or Definition()
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    image = Image(cache / definition.key())
    with _locked(cache / "build.lock", "another build of the lab's image"):
        if rebuild and image.directory.exists():
            shutil.rmtree(image.directory)
        if not image.directory.exists():
            _clean(cache, keep=image.directory)
            _build(definition, image.directory)
    os.utime(image.directory)
    return image


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    """A line about what the lab is doing, apart from the output of what runs in it."""
    print(f"lab: {message}", file=sys.stderr, flush=True)  # noqa: T201


def _clean(cache: Path, *, keep: Path) -> None:
    """Drops images that nobody used for a week, and what interrupted builds left."""
    oldest = time.time() - KEEP_UNUSED_SECONDS
    for path in cache.iterdir():
        left_over = path.name.startswith("building-")
        unused = path.is_dir() and path.stat().st_mtime < oldest
        if path.is_dir() and path != keep and (left_over or unused):
            shutil.rmtree(path)


def _build(definition: Definition, target: Path) -> None:
    as_root = os.geteuid() == 0
    needed = NEEDED_PROGRAMS if as_root else {**NEEDED_PROGRAMS, "newuidmap": "uidmap"}
    missing = [package for name, package in needed.items() if not shutil.which(name)]
    if missing:
        raise LabError(
            f"programs are missing to build the image: {', '.join(missing)}",
            hint=f"apt-get install {' '.join(missing)}",
        )
    started = time.monotonic()
    say(f"building the image (a few minutes, about 2 GB in {target.parent})")
    # Without root mmdebstrap works in a user namespace, whose root can't enter a private cache.
    with tempfile.TemporaryDirectory(
        prefix="building-", dir=target.parent if as_root else None
    ) as name:
        work = Path(name)
        work.chmod(0o755)
        results = work / "image"
        results.mkdir()
        results.chmod(0o755 if as_root else 0o777)
        wheels = work / "wheels"
        _download_wheels(definition, wheels)
        mode = "root" if as_root else "unshare"
        command = mmdebstrap_command(definition, wheels, results, mode=mode)
        staged = target.with_name(f"building-{target.name}")
        try:
            _run_logged(command, target.parent / "build.log")
            _copy_sparse(results, staged)
        finally:
            if not as_root:
                # Folders in there belong to the namespace's root, and only it may empty them.
                helper = ["mmdebstrap", "--unshare-helper", "rm", "-rf", str(results)]
                subprocess.run(helper, check=False)
        staged.rename(target)
    say(f"built the image in {time.monotonic() - started:.0f} s")


def _download_wheels(definition: Definition, wheels: Path) -> None:
    wheels.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(wheels), *definition.wheels]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError("the Python packages of the image can't be had", detail=result.stderr)
    foreign = [path.name for path in wheels.iterdir() if not path.name.endswith("-none-any.whl")]
    if foreign:
        raise LabError(f"not pure Python, so not for the image: {', '.join(foreign)}")


def mmdebstrap_command(
    definition: Definition, wheels: Path, results: Path, *, mode: str
) -> list[str]:
    """The command line that leaves disk, kernels and modules in ``results``."""
    hook = f'{GUEST_FILES}/customize.sh "$1" {definition.suite} {wheels} {results}'
    hook += f" {definition.disk_size} {' '.join(definition.backports)}"
    return [
        "mmdebstrap",
        f"--mode={mode}",
        "--variant=apt",
        "--format=null",
        "--aptopt=Acquire::Languages none",
        "--aptopt=Apt::Install-Recommends false",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in definition.unwanted_files),
        *(f"--dpkgopt=path-include={pattern}" for pattern in definition.wanted_files),
        f"--include={','.join(definition.packages)}",
        f'--setup-hook={GUEST_FILES}/sources.sh "$1"',
        f"--customize-hook={hook}",
        definition.suite,
        "-",
    ]


def _run_logged(command: list[str], log: Path) -> None:
    """Runs the build; shows its stages, keeps everything in the log."""
    # The packages' own initramfs is never booted; INITRD=No keeps it from being made.
    environment = {**os.environ, "INITRD": "No", "LC_ALL": "C.UTF-8"}
    with (
        log.open("w") as copy,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
    ):
        tail = _follow(process.stdout, copy)
    if process.returncode:
        raise LabError(
            f"mmdebstrap failed with exit code {process.returncode}",
            hint=f"the whole log is {log}",
            detail="".join(tail),
        )


def _follow(stream: IO[str] | None, copy: IO[str]) -> list[str]:
    tail: list[str] = []
    for line in stream or ():
        copy.write(line)
        tail = [*tail[-29:], line]
        if line.startswith("I: "):
            say(line.removeprefix("I: ").rstrip())
    return tail


def _copy_sparse(source: Path, target: Path) -> None:
    """Puts the results next to the other images; where they can't be moved, holes stay holes."""
    try:
        source.rename(target)
    except OSError:
        subprocess.run(["cp", "-r", "--sparse=always", str(source), str(target)], check=True)
