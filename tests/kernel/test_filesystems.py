"""An expected executable on file systems whose files have more than one device number: overlayfs and btrfs.

Owns the mounts of a test and their end. What the kernel says of an image has to be what user space finds by its path.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.rules import identities
from monitor.engine.lines import Exec
from monitor.expect import Expect, executables
from tests.kernel.test_rules import TRUE, alarms, judged, run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["shell"]

IMAGE_BYTES = 128 << 20
"""Of a btrfs, which wants 109 MiB; the file is sparse."""


def _command(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def mounted(*words: str | Path, at: Path) -> Iterator[Path]:
    """A mount, which ends with the block."""
    at.mkdir(exist_ok=True)
    _command("mount", *words, at)
    try:
        yield at
    finally:
        _command("umount", "--lazy", at)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A container's kind of root: `lower/program` is seen below it until somebody writes to it."""
    with mounted("-t", "tmpfs", "layers", at=tmp_path / "layers") as layers:
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        shutil.copy(TRUE, layers / "lower" / "program")
        options = ",".join(f"{name}dir={layers / name}" for name in ("lower", "upper", "work"))
        with mounted("-t", "overlay", "-o", options, "overlay", at=tmp_path / "merged") as merged:
            yield merged


@pytest.fixture
def subvolume(tmp_path: Path) -> Iterator[Path]:
    """A directory with a device number of its own, which is not that of its file system."""
    subprocess.run(["modprobe", "--quiet", "btrfs"], check=False)
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no btrfs")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    _command("mkfs.btrfs", "--quiet", image)
    with mounted("-o", "loop", image, at=tmp_path / "btrfs") as root:
        _command("btrfs", "subvolume", "create", root / "volume")
        yield root / "volume"


def test_on_an_overlay_a_file_is_expected_until_it_is_written_to(overlay: Path, shell: Path) -> None:
    program = overlay / "program"
    expect = Expect(executables=executables([str(program)]))
    assert alarms(judged(expect, shell, lambda: run(shell, f"{program}; {program}"))) == []

    def act() -> None:
        run(shell, str(program))
        with program.open("ab") as file:  # copied up: another file of another layer, under the same number
            file.write(b"more")
        run(shell, str(program))

    assert alarms(judged(expect, shell, act)) == [("executables", (str(program),))]


def test_on_an_overlay_the_layer_s_own_file_is_another_one(overlay: Path, shell: Path, tmp_path: Path) -> None:
    below = tmp_path / "layers" / "lower" / "program"
    told = judged(Expect(executables=executables([str(overlay / "program")])), shell, lambda: run(shell, str(below)))
    assert alarms(told) == [("executables", (str(below),))]


def test_in_a_btrfs_subvolume_a_file_is_known_by_its_file_system_s_device(subvolume: Path, shell: Path) -> None:
    program = Path(shutil.copy(TRUE, subvolume / "program"))
    (identity,) = identities([str(program)])
    assert identity.device != identity.stat_device
    assert identity.stat_device == program.stat().st_dev
    told = judged(Expect(executables=executables([str(program)])), shell, lambda: run(shell, str(program)))
    assert alarms(told) == []
    assert any(isinstance(line, Exec) and line.exe == str(program) for line in told)


def test_a_snapshot_of_an_expected_file_is_expected_until_it_is_written_to(subvolume: Path, shell: Path) -> None:
    """Number, size and time of change are the same, and so is what it holds."""
    program = Path(shutil.copy(TRUE, subvolume / "program"))
    copy = subvolume.parent / "snapshot" / "program"
    _command("btrfs", "subvolume", "snapshot", subvolume, copy.parent)
    assert copy.stat().st_ino == program.stat().st_ino
    expect = Expect(executables=executables([str(program)]))
    assert alarms(judged(expect, shell, lambda: run(shell, str(copy)))) == []
    with copy.open("ab") as file:
        file.write(b"more")
    assert alarms(judged(expect, shell, lambda: run(shell, str(copy)))) == [("executables", (str(copy),))]
