"""The Debian package in a clean Debian: installed, watching, upgraded under watch, removed, purged.

Owns a root that lives for this file. Refuses to know how the package is made: it calls the recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.packaging.trees import Tree, copy_of, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
MACHINE = os.uname().machine
DEADLINE_S = 120
NAME = f"kwdeb{os.getpid() % 1_000_000}"
CONFIG = "/etc/kinwatch/config.toml"
LOG = "/var/log/kinwatch/events.jsonl"


def _built(folder: Path, revision: int) -> Path:
    command = [sys.executable, str(ROOT / "build" / "deb.py"), "--revision", str(revision), "--dist", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The package, and the same as its next revision."""
    return [_built(tmp_path_factory.mktemp(f"revision{number}"), number) for number in (1, 2)]


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


class _Daemon:
    """`kinwatch run` as the unit starts it, in the root."""

    def __init__(self, root: Tree, said: Path) -> None:
        words = root.words("/opt/kinwatch/bin/kinwatch", "run", kernel=True)
        self._said = said
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(words, stderr=stderr, stdout=subprocess.DEVNULL)
        _until(lambda: "kinwatch: watching (" in said.read_text() or self.process.poll() is not None)
        self.ready = said.read_text()
        assert self.process.poll() is None, self.ready

    def end(self, number: signal.Signals) -> None:
        """Send a signal; it must end well."""
        self.process.send_signal(number)
        assert self.process.wait(DEADLINE_S) == 0, self._said.read_text()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lines(root: Tree) -> list[dict[str, Any]]:
    text = Path(f"{root.path}{LOG}").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line.get("watch") == NAME]


def _application(root: Tree) -> None:
    """Run the application once, with one child that lives for a moment."""
    program = Path(f"{root.path}/usr/bin/{NAME}")
    program.write_bytes(Path(f"{root.path}/bin/sh").read_bytes())
    program.chmod(0o755)
    done = root.run(f"/usr/bin/{NAME}", "-c", "/bin/true; exit 7")
    assert done.returncode == 7, done.stderr


def test_two_builds_of_the_package_are_the_same_bytes(packages: list[Path], tmp_path: Path) -> None:
    again = _built(tmp_path, 1)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (packages[0], again)}
    assert again.name == packages[0].name
    assert len(digests) == 1


def test_lintian_finds_no_error(packages: list[Path]) -> None:
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(packages[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_installed_watches_is_upgraded_under_watch_and_leaves_nothing(
    debian: Tree, packages: list[Path], tmp_path: Path
) -> None:
    before = _files(debian)
    assert "/opt/kinwatch" not in before
    shares = tuple(package.parent for package in packages)
    _dpkg(debian, "--install", packages[0], shares=shares)
    before |= {f"{share}" for share in shares} | {str(parent) for share in shares for parent in share.parents}
    assert debian.run("getent", "passwd", "kinwatch").returncode == 0
    assert "Raise an alarm when it is not so" in debian.run("zcat", "/usr/share/man/man8/kinwatch.8.gz").stdout
    assert debian.run("kinwatch", "--version").stdout.startswith("kinwatch ")

    config = Path(f"{debian.path}{CONFIG}")
    config.write_text(config.read_text() + f'\n[[watch]]\nname = "{NAME}"\nprocess = "{NAME}"\n')
    Path(f"{debian.path}{LOG}").parent.mkdir(parents=True)
    first = _Daemon(debian, tmp_path / "first")
    try:
        assert "capture=core" in first.ready, first.ready
        _application(debian)
        _until(lambda: len(_lines(debian)) == 5)
        assert [line["event"] for line in _lines(debian)] == ["root", "fork", "exec", "exit", "exit"]

        _dpkg(debian, "--install", "--force-confold", packages[1], shares=shares)
        assert f'name = "{NAME}"' in config.read_text(), "what the administrator wrote stays"
        first.end(signal.SIGUSR2)  # as systemctl restart does: RestartKillSignal in the unit
        _application(debian)
        second = _Daemon(debian, tmp_path / "second")
    except BaseException:
        first.process.kill()
        raise
    try:
        assert "taken over" in second.ready, second.ready
        _until(lambda: len(_lines(debian)) == 10)
        assert [line["event"] for line in _lines(debian)[5:]] == ["root", "fork", "exec", "exit", "exit"]
        second.end(signal.SIGTERM)
    finally:
        second.process.kill()

    _dpkg(debian, "--purge", "kinwatch")
    assert debian.run("getent", "passwd", "kinwatch").returncode != 0
    Path(f"{debian.path}/usr/bin/{NAME}").unlink()
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
