"""What the device does on an alarm, with real processes: as whom, for how long, how many at once, and to whom.

Owns the commands and their traces. Refuses to know the daemon: tests/kernel does.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from monitor.capture.rules import cgroup2_mount
from monitor.engine import lines
from monitor.engine.lines import Enforced
from monitor.judging import actions
from monitor.judging.actions import AT_ONCE, WAITING, Actions
from monitor.judging.freeze import NoCgroup, descendants, freeze, stop
from monitor.schema import Action
from monitor.watch import Watch
from tests.contract.conftest import eventually, open_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = Watch(name="app", kind="process", value="app")


def alarm(behavior: str = "few", watch: str = "app", **more: object) -> bytes:
    keys = {"time": "t", "event": "alarm", "watch": watch, "behavior": behavior, "metric": "m", "value": 1, **more}
    return msgspec.json.encode({key: value for key, value in keys.items() if value}) + b"\n"


class Acts:
    """Actions, and everything they said."""

    def __init__(self, settings: Action, tree: Callable[[], bytes] = bytes) -> None:
        self.told: list[Enforced] = []
        self.said: list[str] = []
        self.actions = Actions(settings, (APP,), tree, self._tell, self.said.append)

    def _tell(self, line: bytes) -> None:
        decoded = lines.decode(line)
        assert isinstance(decoded, Enforced)
        self.told.append(decoded)

    def errors(self) -> list[Any]:
        """Of the lines so far."""
        return [line.error for line in self.told]

    def wait(self, count: int) -> None:
        """Until so many lines were told."""
        eventually(lambda: len(self.told) >= count, f"{count} lines; there are {self.told}")


@pytest.fixture
def acts() -> Iterator[Callable[..., Acts]]:
    """Makes actions; none is left when the test has ended."""
    made: list[Acts] = []

    def make(settings: Action, tree: Callable[[], bytes] = bytes) -> Acts:
        made.append(Acts(settings, tree))
        return made[-1]

    yield make
    for one in made:
        one.actions.finish(5)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a command that is nobody can leave a trace."""
    return open_place(tmp_path)


def python(program: str, *arguments: object) -> tuple[str, ...]:
    """A command that runs with the machine's own interpreter, which anybody may."""
    return ("/usr/bin/python3", "-c", program, *map(str, arguments))


TELLS = """
import json, os, sys
out = sys.argv[1]
facts = {
    "stdin": sys.stdin.read(),
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "environment": dict(os.environ), "cwd": os.getcwd(), "session": os.getsid(0) == os.getpid(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "capabilities": [line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1],
}
open(out + ".new", "w").write(json.dumps(facts))
os.rename(out + ".new", out)
"""


def test_a_command_runs_as_nobody_with_the_alarm_and_nothing_of_ours(acts: Callable[..., Acts], place: Path) -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)  # noqa: FBT003 - its only parameter
    try:
        made = acts(Action(command=python(TELLS, place / "facts")))
        sent = alarm("Max TCP Ports", lineage=[{"process_id": "1-2", "pid": 1}])
        made.actions.alarm(b'{"event":"exec"}\n' + sent + sent.replace(b'"alarm"', b'"clear"'))
        made.wait(1)
    finally:
        os.close(kept)
    facts = json.loads((place / "facts").read_text())
    assert facts["stdin"].encode() == sent
    nobody = 65534
    assert (facts["uid"], facts["gid"], facts["groups"]) == ([nobody] * 3, [nobody] * 3, [nobody])
    assert int(facts["capabilities"], 16) == 0
    assert (facts["cwd"], facts["session"]) == ("/", True)
    assert facts["descriptors"] == [0, 1, 2, 3], "3: that which lists them"
    assert {name: value for name, value in facts["environment"].items() if name.startswith("KINWATCH_")} == {
        "KINWATCH_EVENT": "alarm",
        "KINWATCH_WATCH": "app",
        "KINWATCH_BEHAVIOR": "Max TCP Ports",
        "KINWATCH_METRIC": "m",
    }
    allowed = {"PATH", "LANG", "HOME", "USER", "LOGNAME", "LC_CTYPE"}
    assert {name for name in facts["environment"] if not name.startswith("KINWATCH_")} <= allowed
    assert made.told == [Enforced(time=made.told[0].time, watch="app", action="command", reason="Max TCP Ports")]
    assert made.actions.status()["commands"] == 1


def test_a_daemon_that_may_not_become_the_user_says_so_at_once(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from monitor.judging.actions import Actions\n"
        "from monitor.schema import Action\n"
        "settings = Action(command=('/bin/true',))\n"
        "made = Actions(settings, (), bytes, lambda line: os.write(1, line), lambda text: os.write(2, text.encode()))\n"
        f"made.alarm({alarm()!r})\n"
        "made.finish(20)\n"
    )
    bare = ("setpriv", "--bounding-set=-setuid,-setgid", sys.executable, "-c", program)
    done = subprocess.run(bare, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr == (
        "detect.action.command: to run it as nobody takes CAP_SETGID and CAP_SETUID;"
        " under systemd add them to the unit's CapabilityBoundingSet"
    )
    assert "takes CAP_SETGID and CAP_SETUID" in json.loads(done.stdout)["error"]


def test_a_daemon_that_sees_control_groups_read_only_says_so_at_once(tmp_path: Path) -> None:
    mount = cgroup2_mount()
    assert mount is not None
    program = (
        "import sys\n"
        "from monitor.judging.actions import Actions\n"
        "from monitor.schema import Action\n"
        "Actions(Action(freeze='cgroup'), (), bytes, bytes, sys.stderr.write)\n"
    )
    python = (sys.executable, "-c", program)
    script = f'mount --bind {mount} {mount} && mount -o remount,bind,ro {mount} && exec "$@"'
    hidden = ("unshare", "--mount", "sh", "-c", script, "sh", *python)
    for command, says in ((hidden, f"detect.action.freeze: {mount} is read-only here"), (python, "")):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(says) if says else not done.stderr


def test_words_of_a_command_are_no_shells(acts: Callable[..., Acts], place: Path) -> None:
    odd = "$(touch x); `id` * ' \" \\"
    made = acts(Action(command=python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", place / "out", odd)))
    made.actions.alarm(alarm())
    made.wait(1)
    assert (place / "out").read_text() == odd
    assert made.errors() == [msgspec.UNSET]


def test_a_command_that_does_not_read_a_long_alarm_is_not_waited_for(acts: Callable[..., Acts]) -> None:
    made = acts(Action(command=("/bin/true",)))
    made.actions.alarm(alarm(argv=["x" * 10] * 100_000))
    made.wait(1)
    assert made.errors() == [msgspec.UNSET]


HOLDS = """
import os, sys, time
child = os.fork()
if child == 0:
    while True: time.sleep(60)
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {child}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
if sys.argv[2] == "stay":
    while True: time.sleep(60)
"""


def _are_gone(pids: list[int]) -> bool:
    return not any(_is_alive(pid) for pid in pids)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_command_that_takes_too_long_is_killed_with_its_children(acts: Callable[..., Acts], place: Path) -> None:
    made = acts(Action(command=python(HOLDS, place / "pids", "stay"), timeout_s=2))
    made.actions.alarm(alarm())
    made.wait(1)
    assert made.errors() == ["killed after 2 s"]
    pids = [int(word) for word in (place / "pids").read_text().split()]
    eventually(lambda: _are_gone(pids), "both to be gone")
    assert made.said == ["detect.action.command: killed after 2 s; further failures are counted and stand in the log"]


def test_what_a_command_leaves_behind_ends_with_it(acts: Callable[..., Acts], place: Path) -> None:
    made = acts(Action(command=python(HOLDS, place / "pids", "go")))
    made.actions.alarm(alarm())
    made.wait(1)
    assert made.errors() == [msgspec.UNSET]
    pids = [int(word) for word in (place / "pids").read_text().split()]
    eventually(lambda: _are_gone(pids), "the child to be gone")


@pytest.mark.parametrize(
    ("command", "user", "why"),
    [
        (("/bin/sh", "-c", "exit 3"), "nobody", "exit 3"),
        (("/bin/sh", "-c", "kill -ABRT $$"), "nobody", f"signal {int(signal.SIGABRT)}"),
        (("/no/such/program",), "nobody", "it cannot be run as nobody: No such file or directory"),
        (("/etc/passwd",), "nobody", "it cannot be run as nobody: Permission denied"),
        (("/bin/true",), "no-such-user", "there is no user 'no-such-user'"),
    ],
)
def test_a_failure_is_said_once_and_counted(
    acts: Callable[..., Acts], command: tuple[str, ...], user: str, why: str
) -> None:
    made = acts(Action(command=command, user=user))
    for count in (1, 2):
        made.actions.alarm(alarm())
        made.wait(count)
    assert made.errors() == [why, why]
    assert len(made.said) == 1
    assert why in made.said[0]
    assert made.actions.status()["failed"] == 2


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("memfd_create", "the alarm cannot be handed to it: Too many open files"),
        ("pidfd_open", "killed, for it could not be waited for: Too many open files"),
    ],
)
def test_without_a_descriptor_no_command_runs_on_and_the_next_alarm_is_acted_on(
    acts: Callable[..., Acts], monkeypatch: pytest.MonkeyPatch, call: str, why: str
) -> None:
    made = acts(Action(command=python("import time; time.sleep(1000)"), timeout_s=600))

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        for count in range(1, AT_ONCE + 2):
            made.actions.alarm(alarm())
            made.wait(count)
    made.actions.change(Action(command=("/bin/true",)), (APP,))
    made.actions.alarm(alarm("next"))
    made.wait(AT_ONCE + 2)
    assert made.errors() == [why] * (AT_ONCE + 1) + [msgspec.UNSET]


def test_of_more_alarms_than_commands_at_once_the_rest_is_skipped_and_counted(
    acts: Callable[..., Acts], place: Path
) -> None:
    gate = place / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    made = acts(Action(command=("/bin/sh", "-c", f"read x < {gate}")))
    made.actions.alarm(alarm() * (AT_ONCE + 5))
    eventually(lambda: made.actions.status()["skipped"] == 5, "5 to be skipped")
    assert made.actions.status()["commands"] == AT_ONCE
    with gate.open("w") as opened:
        opened.write("x\n" * AT_ONCE)
        opened.flush()
        made.wait(AT_ONCE)
    assert [text for text in made.said if "skipped" in text] == made.said
    assert len(made.said) == 1
    made.actions.change(Action(command=("/bin/true",)), (APP,))
    made.actions.alarm(alarm("next"))
    made.wait(AT_ONCE + 1)
    assert (made.told[-1].reason, made.told[-1].error) == ("next", msgspec.UNSET)


def test_a_flood_of_alarms_waits_in_a_bounded_queue(acts: Callable[..., Acts], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(*_: object) -> bool:
        begun.set()
        return go.wait(60)

    monkeypatch.setattr(actions, "freeze", slow)
    made = acts(Action(freeze="cgroup"))
    made.actions.alarm(alarm())
    assert begun.wait(60)
    made.actions.alarm(alarm() * (WAITING + 7))
    assert made.actions.status()["skipped"] == 7
    go.set()
    made.wait(WAITING + 1)


def test_nothing_configured_is_nothing_done(acts: Callable[..., Acts]) -> None:
    made = acts(Action())
    made.actions.alarm(alarm())
    assert "actions" not in {thread.name for thread in threading.enumerate()}
    assert set(made.actions.status().values()) == {0}


def test_the_end_waits_for_what_runs_and_then_ends_it(acts: Callable[..., Acts], place: Path) -> None:
    quick = acts(Action(command=("/bin/sh", "-c", f"sleep 0.3; echo done > {place}/done")))
    quick.actions.alarm(alarm())
    quick.actions.finish(30)
    assert (place / "done").read_text() == "done\n"
    assert quick.errors() == [msgspec.UNSET]
    slow = acts(Action(command=python(HOLDS, place / "pids", "stay")))
    slow.actions.alarm(alarm())
    eventually((place / "pids").exists, "the command to run")
    slow.actions.finish(0.1)
    assert slow.errors() == ["killed, for kinwatch ends"]
    assert _are_gone([int((place / "pids").read_text().split()[0])])
    slow.actions.alarm(alarm())
    assert slow.actions.status()["commands"] == 1


def test_what_waits_when_the_time_is_over_is_skipped_and_nothing_runs_on(acts: Callable[..., Acts]) -> None:
    asked, answer = threading.Event(), threading.Event()

    def tree() -> bytes:
        asked.set()
        answer.wait()
        return b""

    made = acts(Action(freeze="stop", command=python("import time; time.sleep(1000)"), timeout_s=600), tree)
    for _ in range(3):
        made.actions.alarm(alarm())
    eventually(asked.is_set, "the first to be acted on")
    made.actions.finish(0.1)
    answer.set()
    made.wait(1)
    assert made.errors() == ["killed, for kinwatch ends"]
    assert made.actions.status() == {"commands": 1, "failed": 1, "skipped": 2, "stopped": 0, "frozen": 0}


# -------- freeze --------


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(60)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_id(pid: int) -> str:
    return f"{pid}-{_stat(pid)[19]}"


def test_a_process_is_stopped_once_and_only_if_it_is_the_one() -> None:
    with sleeper() as process:
        eventually(lambda: _stat(process.pid)[0] == "S", "it to sleep")
        ours = process_id(process.pid)
        assert not stop(f"{process.pid}-1", ()), "another process had that pid"
        assert not stop(ours, {process.pid}), "it is spared"
        assert _stat(process.pid)[0] == "S"
        assert stop(ours, ())
        eventually(lambda: _stat(process.pid)[0] == "T", "it to stop")
        assert not stop(ours, ()), "it is stopped"
    assert not stop(ours, ()), "it has ended"


def row(process: str, *, root: bool = False, of: str = "", watch: str = "app") -> bytes:
    membership = {"watch": watch, "root": True} if root else {"watch": watch, "depth": 1, "root_process_id": of}
    return msgspec.json.encode({"pid": 1, "process_id": process, "comm": "c", "watches": [membership]}) + b"\n"


def test_descendants_are_those_of_the_watch_and_of_the_root() -> None:
    tree = row("1-1", root=True) + row("2-1", of="1-1") + row("3-1", of="9-1") + row("4-1", of="1-1", watch="other")
    assert descendants(tree, "app") == ["2-1", "3-1"]
    assert descendants(tree, "app", "1-1") == ["2-1"]
    assert descendants(b"", "app") == []


def test_stop_stops_the_descendants_of_the_alarms_root_and_nobody_else(acts: Callable[..., Acts]) -> None:
    with sleeper() as root, sleeper() as child, sleeper() as late, sleeper() as other:
        names = [process_id(process.pid) for process in (root, child, late, other)]
        me = row(process_id(os.getpid()), of=names[0])
        first = row(names[0], root=True) + row(names[1], of=names[0]) + row(names[3], of="9-9") + me
        trees = iter([first, first + row(names[2], of=names[0])])  # one was born while others were stopped
        last: list[bytes] = []

        def tree() -> bytes:
            last[:] = [next(trees, *last)]
            return last[0]

        made = acts(Action(freeze="stop"), tree)
        made.actions.alarm(alarm(lineage=[{"process_id": names[0]}, {"process_id": names[1]}]))
        made.wait(2)
        for process in (child, late):
            eventually(lambda pid=process.pid: _stat(pid)[0] == "T", "it to stop")  # type: ignore[misc]
        made.actions.alarm(alarm("device", watch=""))
        made.actions.finish(30)
        assert [(line.process_id, line.action, line.reason, line.watch) for line in made.told] == [
            (names[1], "stop", "few", "app"),
            (names[2], "stop", "few", "app"),
        ]
        assert "T" not in {_stat(root.pid)[0], _stat(other.pid)[0]}
        assert made.actions.status()["stopped"] == 2


@pytest.mark.parametrize(("named", "stopped"), [(1, {"mine"}), (2, {"mine", "theirs"})])
def test_an_alarm_about_several_processes_stops_the_descendants_of_every_root(
    acts: Callable[..., Acts], named: int, stopped: set[str]
) -> None:
    with sleeper() as mine, sleeper() as theirs:
        pids = {"mine": mine.pid, "theirs": theirs.pid}
        names = {who: process_id(pid) for who, pid in pids.items()}
        tree = (
            row("1-1", root=True)
            + row("2-2", root=True)
            + row(names["mine"], of="1-1")
            + row(names["theirs"], of="2-2")
        )
        made = acts(Action(freeze="stop"), lambda: tree)
        about = [names["mine"], names["theirs"]][:named]
        made.actions.alarm(alarm(process_ids=about, lineage=[{"process_id": "1-1"}, {"process_id": names["mine"]}]))
        made.actions.finish(30)
        assert {line.process_id for line in made.told} == {names[who] for who in stopped}
        for who, pid in pids.items():
            state = "T" if who in stopped else "S"
            eventually(lambda pid=pid, state=state: _stat(pid)[0] == state, f"{who} to be in {state}")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("watch", "why"),
    [
        (APP, "it is watched by process and has no cgroup of its own"),
        (Watch(name="app", kind="cgroup", value="/"), "kinwatch itself is in /"),
    ],
)
def test_a_watch_without_a_cgroup_of_its_own_is_not_frozen(acts: Callable[..., Acts], watch: Watch, why: str) -> None:
    with pytest.raises(NoCgroup, match=why):
        freeze(watch)
    made = acts(Action(freeze="cgroup"))
    made.actions.change(Action(freeze="cgroup"), (watch,))
    for count in (1, 2):
        made.actions.alarm(alarm())
        made.wait(count)
    assert made.errors() == [why, why]
    assert made.said == [f"detect.action.freeze: watch app cannot be frozen: {why}"]
