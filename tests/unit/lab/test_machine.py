import itertools
from dataclasses import replace
from pathlib import Path

from tests.lab.machine import VARIANTS, Boot, qemu_command

BOOT = Boot(
    kernel=Path("/image/vmlinuz"),
    initramfs=Path("/machine/initramfs"),
    disk=Path("/image/disk.img"),
    checkout=Path("/src/gmemd"),
    share=Path("/machine/share"),
    console_log=Path("/machine/console.log"),
    stdout_fd=5,
    stderr_fd=6,
)


def options(command: list[str], name: str) -> list[str]:
    return [value for option, value in itertools.pairwise(command) if option == f"-{name}"]


def test_four_nodes_two_of_them_without_cpus() -> None:
    command = qemu_command(VARIANTS["default"], BOOT, node_mebibytes=1024)
    assert [value for value in options(command, "numa") if value.startswith("node")] == [
        "node,nodeid=0,memdev=m0,cpus=0-1",
        "node,nodeid=1,memdev=m1,cpus=2-3",
        "node,nodeid=2,memdev=m2",
        "node,nodeid=3,memdev=m3",
    ]
    assert options(command, "m") == ["4096M"]


def test_distances_are_whole_and_symmetric() -> None:
    for variant in VARIANTS.values():
        command = qemu_command(variant, BOOT, node_mebibytes=1024)
        distances = {}
        for value in options(command, "numa"):
            if value.startswith("dist"):
                fields = dict(field.split("=") for field in value.split(",")[1:])
                distances[fields["src"], fields["dst"]] = int(fields["val"])
        n_nodes = 5 if variant.movable_node else 4
        assert len(distances) == n_nodes**2
        for (source, target), distance in distances.items():
            assert distances[target, source] == distance
            assert (distance == 10) == (source == target)


def test_the_movable_node_is_plugged_in() -> None:
    command = qemu_command(VARIANTS["movable"], BOOT, node_mebibytes=512)
    assert options(command, "m") == ["2048M,slots=1,maxmem=2560M"]
    assert "pc-dimm,id=dimm,memdev=m4,node=4" in options(command, "device")
    assert "memhp_default_state=online_movable" in options(command, "append")[0]


def test_nothing_that_runs_inside_is_kept_on_the_disk() -> None:
    command = qemu_command(VARIANTS["default"], BOOT, node_mebibytes=1024)
    assert all("snapshot=on" in value for value in options(command, "drive"))
    checkout = next(value for value in options(command, "virtfs") if "tag=checkout" in value)
    assert checkout.endswith(",readonly=on")


def test_output_has_channels_of_its_own() -> None:
    command = qemu_command(VARIANTS["default"], BOOT, node_mebibytes=1024)
    assert "socket,id=out,fd=5" in options(command, "chardev")
    assert "socket,id=err,fd=6" in options(command, "chardev")
    assert "stdio" not in " ".join(command)


def test_a_shell_has_the_terminal() -> None:
    boot = replace(BOOT, stdout_fd=None, stderr_fd=None)
    command = qemu_command(VARIANTS["default"], boot, node_mebibytes=1024)
    assert "stdio,id=tty,signal=off" in options(command, "chardev")


def test_commas_in_paths_are_no_options() -> None:
    boot = replace(BOOT, share=Path("/tmp/a,b"))  # noqa: S108 - never opened
    command = qemu_command(VARIANTS["default"], boot, node_mebibytes=1024)
    assert any("path=/tmp/a,,b," in value for value in options(command, "virtfs"))
