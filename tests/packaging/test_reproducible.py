"""Whoever builds a commit gets the same bytes, wherever he does.

Owns a second copy of the sources. Refuses to know how anything is made: it calls the recipe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Of a commit it is the commit's time; what is not committed has none.
WHEN = {"SOURCE_DATE_EPOCH": "1780000000"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they are now in another directory, with nothing that was made of them."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    folder = tmp_path_factory.mktemp("elsewhere") / "with a longer name"
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # Older or newer files make no difference either.
    os.utime(folder / "monitor" / "cli.py", (1, 1))
    return folder


def _made(checkout: Path, dist: Path, *flags: str, recipe: str = "wheel.py") -> dict[str, str]:
    command = [sys.executable, str(checkout / "build" / recipe), "--dist", str(dist), *flags]
    done = subprocess.run(command, env=os.environ | WHEN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir()}


def test_two_builds_of_the_wheel_in_two_places_are_the_same_bytes(elsewhere: Path, tmp_path: Path) -> None:
    here, there = _made(ROOT, tmp_path / "here"), _made(elsewhere, tmp_path / "there")
    assert len(here) == 1
    assert here == there


def test_two_builds_of_the_source_distribution_are_the_same_bytes(elsewhere: Path, tmp_path: Path) -> None:
    here = _made(ROOT, tmp_path / "here", "--sdist")
    assert len(here) == 1
    assert here == _made(elsewhere, tmp_path / "there", "--sdist")


@pytest.mark.packages
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_two_builds_of_the_debian_package_in_two_places_are_the_same_bytes(
    elsewhere: Path, tmp_path: Path, machine: str
) -> None:
    # Everything is compiled anew there; the lists of Debian's packages, of 100 MB, need not be fetched again.
    lists = Path(".cache", "portable", f"apt-{machine}")
    here = _made(ROOT, tmp_path / "here", "--machine", machine, recipe="deb.py")
    shutil.copytree(ROOT / lists, elsewhere / lists)
    there = _made(elsewhere, tmp_path / "there", "--machine", machine, recipe="deb.py")
    assert len(here) == 1
    assert here == there
