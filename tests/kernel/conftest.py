"""What the kernel tests run with: a daemon that is stopped, killed and started again, cgroups, a storm of forks.

Owns the daemons, cgroups and programs of a test and their end: no pin, cgroup or process stays. Refuses to judge.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from monitor.capture.core import PINS, unpin
from monitor.capture.rules import cgroup2_mount
from monitor.launch import LOCK
from tests.compiling import compiled as build
from tests.contract.conftest import (
    DEADLINE_S,
    KINWATCH,
    Programs,
    Watcher,
    compiled,
    eventually,
    name,
    programs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.engine.lines import Line

__all__ = ["compiled", "name", "programs"]

HERE = Path(__file__).resolve().parent
LOCK_S = 120.0
"""How long another daemon of this machine may keep the pins before a test gives up."""
_serial = itertools.count()


def kinwatch(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - subprocess.run's
    """Run a kinwatch command to its end."""
    command = [str(KINWATCH), *map(str, arguments)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": DEADLINE_S} | more
    done: subprocess.CompletedProcess[str] = subprocess.run(command, check=False, **options)
    return done


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a refused command said: one line for people, never a traceback."""
    assert done.stderr.startswith("kinwatch: "), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def pinned() -> bool:
    """Whether a daemon's programs and maps are pinned."""
    return Path(PINS).exists()


def lock_is_held() -> bool:
    """Whether a daemon holds the lock of the pins (/proc/locks: looking does not disturb it)."""
    try:
        inode = LOCK.stat().st_ino
    except FileNotFoundError:
        return False
    rows = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any("FLOCK" in row and row.split()[-3].endswith(f":{inode}") for row in rows)


class Daemon(Watcher):
    """One life of a daemon that watches what the configuration says. Its log goes on in that of the last life."""

    def __init__(self, directory: Path, config: Path, arguments: tuple[str, ...], *, fresh: bool) -> None:
        self.capture = "core"
        self._directory = directory
        self._log = self.log = directory / "events.jsonl"
        self._reports = directory / "reports.jsonl"
        self.socket = directory / "control.sock"
        self._decoded: list[Line] = []
        self._read_bytes = 0
        self._replayed = None
        command = [str(KINWATCH), "run", "-c", str(config), "--capture", "core", "--format", "json"]
        command += ["--log", str(self._log), "--report-to", str(self._reports), "--interval-s", "3600"]
        command += ["--fresh"] * fresh
        self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._hear()
        self.ready_wall_ns = time.time_ns()

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return self._process.pid

    @property
    def ready_line(self) -> str:
        """The line that said that every hook is live."""
        return next(line for line in self._said if line.startswith("kinwatch: watching ("))

    @property
    def origin(self) -> str:
        """Whether the programs are new, taken over, or swapped."""
        return str(self.ask("status")["origin"])

    def counters(self, watch: str) -> dict[str, Any]:
        """The counters of a watch, as `status` tells them."""
        return next(row for row in self.ask("status")["watches"] if row["name"] == watch)

    def watched(self) -> list[str]:
        """Names of the watches, in order."""
        return sorted(row["name"] for row in self.ask("status")["watches"])

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def reload(self) -> None:
        """SIGHUP."""
        self.send(signal.SIGHUP)

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        return self._process.wait(DEADLINE_S)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def wait_said(self, text: str) -> None:
        """Return once stderr has that text."""
        eventually(lambda: text in self.said, f"{text!r} on stderr; it says {self.said!r}")


class Daemons:
    """The lives of a test's daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.toml"
        self._lives: list[Daemon] = []
        self.configure("")

    def configure(self, text: str, keep: str = "crash") -> None:
        """Write the configuration: `text` after the [daemon] table."""
        daemon = (
            f'[daemon]\nsocket = "{self.directory}/control.sock"\nstate_dir = "{self.directory}"\nkeep = "{keep}"\n'
        )
        self.config.write_text(daemon + text, encoding="utf-8")

    def start(self, *arguments: str, fresh: bool = False) -> Daemon:
        """Begin a life; ready when this returns. Only one daemon holds the pins of a machine: others are waited for."""
        deadline = time.monotonic() + LOCK_S
        while lock_is_held():
            assert time.monotonic() < deadline, f"another daemon has held {LOCK} for {LOCK_S:g} s"
            time.sleep(0.05)
        life = Daemon(self.directory, self.config, arguments, fresh=fresh)
        self._lives.append(life)
        return life

    def close(self) -> None:
        """End all, and what they left in the kernel."""
        for life in self._lives:
            with contextlib.suppress(ProcessLookupError):
                life.send(signal.SIGCONT)
            life.close()
        kinwatch("unload")


@pytest.fixture
def pins(request: pytest.FixtureRequest) -> Iterator[str]:
    """A pin directory of the file's own, empty before and after."""
    path = f"{PINS}_{request.path.stem}"
    unpin(path)
    try:
        yield path
    finally:
        unpin(path)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Starts daemons; none is left, and no pin, when the test has ended."""
    directory = tmp_path / "daemon"
    directory.mkdir()
    lives = Daemons(directory)
    yield lives
    lives.close()


@pytest.fixture(scope="session")
def kernel_programs(compiled: Path) -> Path:
    """The directory of compiled programs, with those of this directory added."""
    for source in sorted(HERE.glob("*.c")):
        build(source, compiled / source.stem, "-static")
    return compiled


@pytest.fixture
def built(kernel_programs: Path, programs: Programs) -> Programs:  # noqa: ARG001 - compiled first
    """`programs`, those of this directory among them."""
    return programs


class Cgroup:
    """A directory of the cgroup2 hierarchy."""

    def __init__(self, path: Path, mount: Path) -> None:
        self.path = path
        self.name = f"/{path.relative_to(mount)}"
        """As in /proc/PID/cgroup."""

    def make(self) -> None:
        """Make it."""
        self.path.mkdir()

    def enter(self, pid: int) -> None:
        """Move a process in."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        """Who is in it."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        """Remove it; whoever is in it goes back to the root first."""
        if not self.path.exists():
            return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                (self.path.parent / "cgroup.procs").write_text(str(pid))
        eventually(lambda: _is_removed(self.path), f"{self.path} to be removable")


def _is_removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # a dying process still counts as a member
        return False
    return True


@pytest.fixture
def cgroup() -> Iterator[Callable[[str], Cgroup]]:
    """Makes cgroups by path below the mount; they are gone when the test has ended."""
    mount = cgroup2_mount()
    if mount is None and re.search(r"^\S+ \S+ cgroup ", Path("/proc/self/mounts").read_text(), re.MULTILINE):
        pytest.skip("cgroup v1 alone: no cgroup2 hierarchy is mounted")
    assert mount is not None, "no hierarchy of cgroups is mounted"
    made: list[Cgroup] = []

    def make(path: str) -> Cgroup:
        for parent in reversed(Path(path).parents):
            if not (mount / parent).exists():
                made.append(Cgroup(mount / parent, mount))
                made[-1].make()
        made.append(Cgroup(mount / path, mount))
        made[-1].make()
        return made[-1]

    yield make
    for one in reversed(made):
        one.remove()


@pytest.fixture
def cgroup_name() -> str:
    """A cgroup name nobody else has."""
    return f"kwtest{os.getpid()}x{next(_serial)}"
