"""The Debian package in a clean Debian: installed, watching, upgraded under watch, removed, purged.

Owns a root that lives for this file. Refuses to know how the package is made: it calls the recipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.packaging.debs import package
from tests.packaging.trees import Tree, copy_of, tree
from tests.packaging.watching import ONCE, Daemon, run_application, told

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.packages

MACHINE = os.uname().machine
NAME = f"kwdeb{os.getpid() % 1_000_000}"
CONFIG = "/etc/kinwatch/config.toml"
LOG = "/var/log/kinwatch/events.jsonl"


@pytest.fixture(scope="module")
def packages() -> list[Path]:
    """The package, and the same as its next revision."""
    return [package(revision=number) for number in (1, 2)]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A Debian that has what the package depends on, and never saw it; the kernel's hooks are gone when it goes."""
    clean = tree("bookworm", MACHINE, installed=True)
    root = copy_of(clean, tmp_path_factory.mktemp("root") / "debian")
    yield root
    root.run("/opt/kinwatch/bin/kinwatch", "unload", kernel=True)
    subprocess.run(["rm", "-rf", "--one-file-system", root.path], check=True)


def _files(root: Tree) -> set[str]:
    """Every path in the root, but for what dpkg and the log of packages keep for themselves."""
    own = ("/var/lib/dpkg", "/var/log/dpkg.log", "/var/log/apt", "/var/cache", "/proc", "/sys", "/dev", "/tmp")  # noqa: S108
    found = set()
    for folder, folders, files in os.walk(root.path):
        here = "/" + os.path.relpath(folder, root.path).removeprefix(".")
        folders[:] = [name for name in folders if not f"{here}/{name}".replace("//", "/").startswith(own)]
        found |= {f"{here}/{name}".replace("//", "/") for name in (*folders, *files)}
    return {path for path in found if not path.startswith(own)}


def _dpkg(root: Tree, *words: str | Path, shares: tuple[Path, ...] = ()) -> None:
    done = root.run("dpkg", *words, shares=shares)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lintian_finds_no_error(packages: list[Path]) -> None:
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(packages[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_installed_watches_is_upgraded_under_watch_and_leaves_nothing(
    debian: Tree, packages: list[Path], tmp_path: Path
) -> None:
    before = _files(debian)
    assert "/opt/kinwatch" not in before
    shares = tuple(one.parent for one in packages)
    _dpkg(debian, "--install", packages[0], shares=shares)
    before |= {f"{share}" for share in shares} | {str(parent) for share in shares for parent in share.parents}
    assert debian.run("getent", "passwd", "kinwatch").returncode == 0
    assert "Raise an alarm when it is not so" in debian.run("zcat", "/usr/share/man/man8/kinwatch.8.gz").stdout
    assert debian.run("kinwatch", "--version").stdout.startswith("kinwatch ")

    config = Path(f"{debian.path}{CONFIG}")
    config.write_text(config.read_text() + f'\n[[watch]]\nname = "{NAME}"\nprocess = "{NAME}"\n')
    Path(f"{debian.path}{LOG}").parent.mkdir(parents=True)
    words = debian.words("/opt/kinwatch/bin/kinwatch", "run", kernel=True)
    first = Daemon(words, tmp_path / "first")
    try:
        assert "capture=core" in first.ready, first.ready
        run_application(debian, NAME)
        assert told(debian, LOG, NAME, 5) == ONCE

        _dpkg(debian, "--install", "--force-confold", packages[1], shares=shares)
        assert f'name = "{NAME}"' in config.read_text(), "what the administrator wrote stays"
        first.end(signal.SIGUSR2)  # as systemctl restart does: RestartKillSignal in the unit
        run_application(debian, NAME)
        second = Daemon(words, tmp_path / "second")
    except BaseException:
        first.process.kill()
        raise
    try:
        assert "taken over" in second.ready, second.ready
        assert told(debian, LOG, NAME, 10) == [*ONCE, *ONCE]
        second.end(signal.SIGTERM)
    finally:
        second.process.kill()

    _dpkg(debian, "--purge", "kinwatch")
    assert debian.run("getent", "passwd", "kinwatch").returncode != 0
    after = {
        path for path in _files(debian) - before if not path.endswith("/__pycache__") and not path.endswith(".pyc")
    }
    # adduser, which the package asks for a user, keeps copies of what it changed, and a lock.
    assert after <= {"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/run/adduser"}


def test_the_unit_of_the_package_hands_over_at_a_restart_as_the_test_above_did(
    packages: list[Path], tmp_path: Path
) -> None:
    subprocess.run(["dpkg-deb", "--extract", packages[0], tmp_path], check=True)
    unit = (tmp_path / "lib/systemd/system/kinwatch.service").read_text()
    assert "\nExecStart=/opt/kinwatch/bin/kinwatch run\n" in unit
    assert "\nRestartKillSignal=SIGUSR2\n" in unit
