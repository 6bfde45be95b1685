"""What the contract suite runs with: real programs, a real kinwatch, and the table of what a capture cannot know.

Owns the processes of a test and their end. Refuses to judge: facts stand in the tests.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from monitor.engine import lines
from tests.compiling import compiled as build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.engine.lines import Line

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
KINWATCH = Path(sys.executable).with_name("kinwatch")
DEADLINE_S = 60.0 * float(os.environ.get("KINWATCH_PATIENCE", "1"))
"""Nothing here takes a tenth of it; whoever meets it has hung. An emulated machine needs more patience."""

CAPTURES = ("core", "bcc", "netlink", "poll", "replay")

UNKNOWN = {
    ("poll", "wait status"): "/proc has none of a process that was collected",
    ("poll", "forker"): "/proc shows the parent now, which CLONE_PARENT and re-parenting change",
    ("poll", "forker under CLONE_PARENT"): "/proc shows the parent now",
    ("poll", "child given to the root's parent"): "its parent is a stranger",
    ("poll", "short-lived process"): "what begins and ends between two looks leaves nothing to see",
    ("poll", "process cut off from its kin"): "its parent and its session leader are strangers when it is first seen",
    ("poll", "running before the watch"): "what the first look finds may be younger than the watch",
    ("netlink", "forker under CLONE_PARENT"): "a fork event names the real parent, which is the forker's own parent",
    ("netlink", "child given to the root's parent"): "a fork event names the real parent, which is a stranger",
}
"""(capture, fact) -> why that capture cannot know it. A test then asserts that the capture says so."""

T = TypeVar("T", bound="lines.Event")
_serial = itertools.count()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as the condition holds; fail the test with what was awaited when it never does."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {DEADLINE_S:g} s for {what}")
        time.sleep(0.005)


class Program:
    """A running test program: its facts come as they are told, `release` lets it end."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=path.parent
        )
        self.pid = self._process.pid
        self._facts: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._facts.append(json.loads(line))

    def facts(self, name: str) -> list[dict[str, Any]]:
        """All facts of that name told so far."""
        return [fact for fact in list(self._facts) if fact["fact"] == name]

    def fact(self, name: str, count: int = 1) -> dict[str, Any]:
        """The `count`th fact of that name, once it is told."""
        eventually(
            lambda: len(self.facts(name)) >= count or (not self._reader.is_alive() and not self.facts(name)),
            f"fact {name!r} number {count}",
        )
        told = self.facts(name)
        assert len(told) >= count, f"no fact {name!r}, but {self._facts}"
        return told[count - 1]

    def go(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"x")
        self._process.stdin.flush()

    def release(self) -> int:
        """Let it and all its descendants end; the root's wait status once they have."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)  # stdout ends with the last descendant
        assert not self._reader.is_alive(), "a descendant does not end"
        return self._process.returncode

    def close(self) -> None:
        """End it whatever state it is in: those that hold see their stdin end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        for fact in self.facts("child") + self.facts("image"):
            if self._reader.is_alive():  # somebody still holds stdout
                _kill_if_ours(fact["pid"], self._process.args)
        self._reader.join(5)
        self._process.stdout.close()


def _kill_if_ours(pid: int, command: object) -> None:
    path = command[0] if isinstance(command, list) else command
    try:
        if Path(f"/proc/{pid}/exe").readlink() == path:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return


class Programs:
    """The compiled programs, started under the names that a test wants."""

    def __init__(self, compiled: Path, directory: Path) -> None:
        self._compiled = compiled
        self.directory = directory
        self._running: list[Program] = []

    def path(self, program: str, name: str) -> Path:
        """A copy of a program called `name`."""
        path = self.directory / name
        if not path.exists():
            shutil.copy(self._compiled / program, path)
        return path

    def start(self, program: str, name: str, *arguments: str) -> Program:
        """Run a program under a name."""
        return self.run(self.path(program, name), *arguments)

    def run(self, path: Path, *arguments: str) -> Program:
        """Run a file."""
        running = Program(path, *arguments)
        self._running.append(running)
        return running

    def close(self) -> None:
        """End them all."""
        for program in self._running:
            program.close()


class Spoken:
    """A running kinwatch, as far as it speaks on stderr."""

    _process: subprocess.Popen[bytes]
    _said: list[str]
    _stderr: threading.Thread

    def _hear(self) -> None:
        """Keep what it says, and return when it watches."""
        self._said = []
        self._stderr = threading.Thread(target=self._listen, daemon=True)
        self._stderr.start()
        try:
            eventually(lambda: self._is_watching() or self._process.poll() is not None, "kinwatch to watch")
            assert self._is_watching(), f"kinwatch ended with {self._process.poll()}: {self.said}"
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line.decode())

    def _is_watching(self) -> bool:
        return any(line.startswith("kinwatch: watching (") for line in self._said)

    @property
    def said(self) -> str:
        """All of stderr so far."""
        return "".join(self._said)


class Watcher(Spoken):
    """A running `kinwatch run`, its lines and its reports."""

    def __init__(self, capture: str, directory: Path, *arguments: str, watches: str = "") -> None:
        self.capture = capture
        self._directory = directory
        self._log = directory / "events.jsonl"
        self._reports = directory / "reports.jsonl"
        self._record = directory / "run.rec"
        self.socket = directory / "control.sock"
        config = directory / "config.toml"
        config.write_text(f'[daemon]\nsocket = "{self.socket}"\nstate_dir = "{directory}"\n{watches}')
        live = "core" if capture == "replay" else capture
        command = [str(KINWATCH), "run", "-c", str(config), "--capture", live, "--log", str(self._log)]
        command += ["--format", "json", "--report-to", str(self._reports), "--interval-s", "3600", "--fresh"]
        if capture == "replay":
            command += ["--record", str(self._record)]
        self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._decoded: list[Line] = []
        self._read_bytes = 0
        self._replayed: list[Line] | None = None
        self._hear()

    def unknown(self, fact: str) -> bool:
        """Whether the table declares that this capture cannot know the fact."""
        known = {fact for _, fact in UNKNOWN}
        assert fact in known, f"{fact!r} is in no row of the table"
        return (self.capture, fact) in UNKNOWN

    def lines(self) -> list[Line]:
        """Every line so far, strictly decoded; after stop() of a replay: those of the replayed record file."""
        if self._replayed is not None:
            return self._replayed
        with self._log.open("rb") as log:
            log.seek(self._read_bytes)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._decoded += [lines.decode(line) for line in whole.splitlines()]
        self._read_bytes += len(whole)
        return list(self._decoded)

    def of(self, kind: type[T], **keys: object) -> list[T]:
        """The lines of a kind whose keys have these values."""
        return [
            line
            for line in self.lines()
            if isinstance(line, kind) and all(getattr(line, key) == value for key, value in keys.items())
        ]

    def one(self, kind: type[T], **keys: object) -> T:
        """The line of a kind with these values, of which there is exactly one."""
        found = self.of(kind, **keys)
        assert len(found) == 1, f"{len(found)} {kind.__name__} lines with {keys} in {self.lines()}"
        return found[0]

    def wait_for(self, kind: type[T], **keys: object) -> T:
        """The first line of a kind with these values, once it is there."""
        eventually(lambda: bool(self.of(kind, **keys)), f"a {kind.__name__} line with {keys}; there are {self.lines()}")
        return self.of(kind, **keys)[0]

    def told(self, pid: int) -> list[str]:
        """The kinds of the lines about a process, in order."""
        return [type(line).__name__.lower() for line in self.lines() if getattr(line, "pid", None) == pid]

    def ask(self, verb: str) -> dict[str, Any]:
        """What `kinwatch VERB --json` answers."""
        command = [str(KINWATCH), verb, "--json", "--socket", str(self.socket)]
        answer = subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE_S)
        assert answer.returncode == 0, answer.stderr.decode()
        decoded = json.loads(answer.stdout)
        assert isinstance(decoded, dict)
        return decoded

    def stop(self) -> None:
        """SIGTERM: drains, writes the last report, ends with 0. A replay then must tell the very same lines."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(DEADLINE_S)
        assert code == 0, f"kinwatch ended with {code}: {self.said}"
        if self.capture == "replay":
            command = [str(KINWATCH), "replay", str(self._record)]
            replay = subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE_S)
            live = self._log.read_bytes()
            assert replay.stdout == live, f"the replay tells other lines; stderr: {replay.stderr.decode()}"
            alarmed = any(isinstance(line, lines.Alarm) for line in self.lines())
            assert replay.returncode == int(alarmed), replay.stderr.decode()
            self._replayed = [lines.decode(line) for line in replay.stdout.splitlines()]

    def reports(self) -> list[dict[str, Any]]:
        """Every report so far."""
        return [json.loads(line) for line in self._reports.read_bytes().splitlines()]

    def metrics(self) -> dict[str, Any]:
        """The custom metrics of the last report, by name."""
        told: dict[str, list[dict[str, Any]]] = self.reports()[-1]["custom_metrics"]
        return {name: next(iter(value.values())) for name, (value,) in told.items()}

    def close(self) -> None:
        """End it whatever state it is in."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._stderr.join(10)
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of all programs, compiled; every warning is an error."""
    directory = tmp_path_factory.mktemp("programs")
    for source in sorted(PROGRAMS.glob("*.c")):
        build(source, directory / source.stem)
    for script in PROGRAMS.glob("*.sh"):
        shutil.copy(script, directory / script.stem)
    return directory


@pytest.fixture
def programs(compiled: Path, tmp_path: Path) -> Iterator[Programs]:
    """Starts programs; all have ended when the test has."""
    directory = tmp_path / "bin"
    directory.mkdir()
    running = Programs(compiled, directory)
    yield running
    running.close()


def open_place(folder: Path) -> Path:
    """A directory in which anybody may write, below directories that anybody may pass."""
    for above in (folder, *folder.parents[:2]):
        above.chmod(above.stat().st_mode | 0o011)
    path = folder / "place"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def name() -> str:
    """A process name nobody else has, short enough for comm."""
    return f"kw{os.getpid()}x{next(_serial)}"


@pytest.fixture(params=CAPTURES)
def capture(request: pytest.FixtureRequest) -> str:
    """Each capture in turn."""
    return str(request.param)


@pytest.fixture
def watch(capture: str, tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    """Starts kinwatch with further arguments (`watches`: more configuration).

    When the test has ended so has kinwatch, and no pin is left.
    """
    running: list[Watcher] = []

    def start(*arguments: str, watches: str = "") -> Watcher:
        watcher = Watcher(capture, tmp_path, *arguments, watches=watches)
        running.append(watcher)
        return watcher

    yield start
    for watcher in running:
        watcher.close()
    if capture in {"core", "replay"}:
        unload = subprocess.run([KINWATCH, "unload"], check=False, capture_output=True, timeout=DEADLINE_S)
        assert unload.returncode == 0, unload.stderr.decode()
