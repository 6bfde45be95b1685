"""What the poller makes of /proc, against real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from monitor.capture.poll import LOWER_BOUNDS, PollCapture
from monitor.capture.procfs import read_cgroup, read_credentials, read_image, read_stat
from monitor.capture.rules import cgroup2_mount
from monitor.detect.snapshot import NETWORK
from monitor.engine import Engine, lines
from monitor.errors import ConfigInvalid
from monitor.expect import Expect
from monitor.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.watch import WatchKind


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that read stdin until it ends; all have ended when the test has."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*command: str | Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        running.append(process)
        # Popen returns when the exec has closed its pipe; the kernel gives the process its name a moment later.
        while Path(f"/proc/{process.pid}/comm").read_text().strip() != Path(command[0]).name[:15]:
            time.sleep(0.001)
        return process

    yield run
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(256) as made:
        yield made


def _watch(kind: WatchKind, value: str, name: str = "myapp", limit: int | None = None) -> Watch:
    return Watch(name=name, kind=kind, value=value, expect=Expect(child_processes=limit))


def _lines(engine: Engine) -> list[lines.Line]:
    return [lines.decode(line) for line in engine.take().lines.splitlines()]


def _told(engine: Engine) -> list[tuple[str, int]]:
    return [(type(line).__name__, line.pid) for line in _lines(engine) if isinstance(line, lines.OfProcess)]


def _copy_of_cat(directory: Path, name: str) -> Path:
    path = directory / name
    shutil.copy(os.path.realpath("/bin/cat"), path)
    return path


def test_look_at_a_process_agrees_with_psutil() -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    process = psutil.Process()
    assert stat.comm.decode() == process.name()[:15]
    assert stat.ppid == os.getppid()
    assert stat.session == os.getsid(0)
    assert stat.gone is False
    ticks = os.sysconf("SC_CLK_TCK")
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert stat.process.start_ns * ticks % 1_000_000_000 == 0, "whole ticks"
    assert abs(stat.process.start_ns / 1e9 + boot_s - process.create_time()) < 1
    image = read_image(stat)
    assert image is not None
    assert image.exe == os.fsencode(process.exe())
    assert image.argv == tuple(os.fsencode(part) for part in process.cmdline())
    assert image.cwd == os.fsencode(Path.cwd())
    assert (image.inode, image.deleted, image.memfd) == (Path(process.exe()).stat().st_ino, False, False)
    assert image.credentials == (os.getuid(), os.getgid())
    assert read_cgroup(os.getpid()).startswith("/")


def test_look_at_nobody_is_none() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert read_stat(process.pid) is None
    assert read_credentials(process.pid) is None
    assert read_cgroup(process.pid) == ""
    assert read_stat(2) is None, "a kernel thread"


def test_zombie_is_gone() -> None:
    process = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    stat = read_stat(process.pid)
    process.wait()
    assert stat is not None
    assert stat.gone is True
    assert read_image(stat) is None


def test_comm_with_parentheses_and_spaces_is_read_whole(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    odd = "a) S 1 (b"
    process = start(_copy_of_cat(tmp_path, odd))
    stat = read_stat(process.pid)
    assert stat is not None
    assert (stat.comm.decode(), stat.ppid) == (odd, os.getpid())


def test_process_is_known_by_its_executables_name_whatever_it_calls_itself(
    start: Callable[..., subprocess.Popen[bytes]], engine: Engine, tmp_path: Path
) -> None:
    name = f"kwp{os.getpid()}-with-a-long-name"
    process = start(_copy_of_cat(tmp_path, name))
    PollCapture(engine, [_watch("process", name)]).start()
    assert _told(engine) == [("Root", process.pid)]


def test_exec_is_seen_though_name_and_arguments_stay(
    start: Callable[..., subprocess.Popen[bytes]], engine: Engine, tmp_path: Path
) -> None:
    name = f"kwe{os.getpid()}"
    script = tmp_path / name
    script.write_text(f'#!/bin/sh\nread line\nexec "{script}"\n')
    script.chmod(0o755)
    process = start(script)
    capture = PollCapture(engine, [_watch("process", name)], interval_s=0.01)
    capture.start()
    (root,) = _lines(engine)
    assert isinstance(root, lines.Root)
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert capture.poll() is True
    (image,) = _lines(engine)
    assert isinstance(image, lines.Exec)
    assert (image.pid, image.argv, image.script, image.depth) == (process.pid, root.argv, str(script), 0)


def test_parents_come_before_their_children_whatever_their_numbers(engine: Engine) -> None:
    code = "import os,sys\nfor _ in range(4):\n  if os.fork(): break\nsys.stdin.read()"
    name = f"kwd{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE) as process:
        tree = psutil.Process(process.pid)
        while len(tree.children(recursive=True)) < 4:
            time.sleep(0.001)
        PollCapture(engine, [_watch("cmdline", f"{name}$")]).start()
        told = _lines(engine)
        pids = [process.pid, *(child.pid for child in tree.children(recursive=True))]
    assert [line.pid for line in told if isinstance(line, lines.OfProcess)] == pids
    assert [type(line) for line in told] == [lines.Root] + [lines.Adopt] * 4
    assert [line.depth for line in told if isinstance(line, lines.Adopt)] == [1, 2, 3, 4]


def test_pid_is_watched_once(start: Callable[..., subprocess.Popen[bytes]], engine: Engine) -> None:
    process = start("/bin/cat")
    capture = PollCapture(engine, [_watch("pid", str(process.pid))])
    capture.start()
    stat = read_stat(process.pid)
    assert stat is not None
    image = read_image(stat)
    assert image is not None
    assert capture._rules.match(stat, image) == 0, "a successor with that number would be somebody else"
    assert _told(engine) == [("Root", process.pid)]


def test_watched_cgroup_is_known_by_path_and_by_unit(
    start: Callable[..., subprocess.Popen[bytes]], engine: Engine
) -> None:
    mount = cgroup2_mount()
    assert mount is not None, "this test needs a cgroup2 hierarchy"
    process = start("/bin/cat")
    home = read_cgroup(process.pid)
    unit = f"kwp{os.getpid()}.service"
    cgroup = mount / home.lstrip("/") / unit
    capture = PollCapture(
        engine, [_watch("cgroup", f"{home.rstrip('/')}/{unit}", "bypath"), _watch("unit", unit, "byunit")]
    )
    cgroup.mkdir()
    try:
        capture.start()
        assert _lines(engine) == []
        (cgroup / "cgroup.procs").write_text(str(process.pid))
        capture.drain()
    finally:
        (cgroup.parent / "cgroup.procs").write_text(str(process.pid))
        cgroup.rmdir()
    told = [(line.watch, line.pid, line.cause) for line in _lines(engine) if isinstance(line, lines.Root)]
    assert told == [("bypath", process.pid, "moved"), ("byunit", process.pid, "moved")]
    capture.drain()
    assert _lines(engine) == [], "kin it stays"


def test_replaced_executable_is_the_watched_one_from_then_on(
    start: Callable[..., subprocess.Popen[bytes]], engine: Engine, tmp_path: Path
) -> None:
    path = _copy_of_cat(tmp_path, "app")
    capture = PollCapture(engine, [_watch("exe", str(path))])
    capture.start()
    _copy_of_cat(tmp_path, "new").replace(path)
    process = start(path)
    capture.drain()
    assert _told(engine) == [("Root", process.pid)]


def test_watches_change_while_it_runs(
    start: Callable[..., subprocess.Popen[bytes]], engine: Engine, tmp_path: Path
) -> None:
    names = [f"kw{letter}{os.getpid()}" for letter in "abc"]
    processes = [start(_copy_of_cat(tmp_path, name)) for name in names]
    first, second, third = (_watch("process", name, name) for name in names)
    capture = PollCapture(engine, [first, second])
    capture.start()
    slots = {held.watch.name: held.slot for held in capture.watches}
    assert {pid for _, pid in _told(engine)} == {processes[0].pid, processes[1].pid}
    capture.apply([third, second])
    (root,) = _lines(engine)
    assert isinstance(root, lines.Root)
    assert (root.pid, root.cause, root.watch) == (processes[2].pid, "running", names[2])
    after = {held.watch.name: held.slot for held in capture.watches}
    assert after[names[1]] == slots[names[1]], "who stays keeps the slot"
    assert [watch.root_starts for watch in capture.snapshot(None, 0).watches if watch.name == names[1]] == [1]
    for process in processes:
        process.kill()
        process.wait()
    capture.drain()
    assert sorted(_told(engine)) == sorted(("Exit", process.pid) for process in processes[1:])


def test_changed_limit_is_judged_at_once(start: Callable[..., subprocess.Popen[bytes]], engine: Engine) -> None:
    process = start("/bin/sh", "-c", "exec 3<&0; cat <&3 & cat <&3; wait")
    parent = psutil.Process(process.pid)
    while len(parent.children()) < 2:
        time.sleep(0.001)
    capture = PollCapture(engine, [_watch("pid", str(process.pid))])
    capture.start()
    engine.take()
    capture.apply([_watch("pid", str(process.pid), limit=1)])
    assert engine.take().alarms == 1
    for child in parent.children():
        child.kill()


def test_rules_are_judged_as_far_as_looks_tell(
    start: Callable[..., subprocess.Popen[bytes]], engine: Engine, tmp_path: Path
) -> None:
    """A shell is the root; its child executes what is not expected, is too deep, and runs as somebody."""
    shell = Path(shutil.copy("/bin/sh", tmp_path / "kwshell"))
    cat = os.path.realpath("/bin/cat")
    expect = Expect(executables=(), depth=0, uids=(os.getuid() + 1,), memfd=False)
    capture = PollCapture(engine, [Watch(name="one", kind="exe", value=str(shell), expect=expect)])
    capture.start()
    process = start(shell, "-c", "cat; :")
    for _ in range(1000):
        if any(child.exe() == cat for child in psutil.Process(process.pid).children()):
            break
        time.sleep(0.01)
    (child,) = psutil.Process(process.pid).children()
    capture.look()
    alarms = {line.behavior: line for line in _lines(engine) if isinstance(line, lines.Alarm)}
    assert set(alarms) == {"executables", "depth", "uids"}
    assert (alarms["executables"].value, alarms["executables"].exe) == ((cat,), cat)
    child.kill()
    process.wait()
    capture.look()
    assert {line.behavior for line in _lines(engine) if isinstance(line, lines.Clear)} == set(alarms)


def test_what_cannot_act_refuses_to_enforce(engine: Engine) -> None:
    watch = Watch(name="one", kind="process", value="nobody", enforce="kill")
    with pytest.raises(
        ConfigInvalid, match="watch one: enforce: capture poll cannot act on processes, and found 'kill'"
    ):
        PollCapture(engine, [watch])
    capture = PollCapture(engine, [])
    with pytest.raises(ConfigInvalid):
        capture.apply([watch])
    assert capture.watches == ()


def test_snapshot_says_what_it_cannot_know(engine: Engine) -> None:
    capture = PollCapture(engine, [_watch("process", f"kwn{os.getpid()}")])
    capture.start()
    snapshot = capture.snapshot(1, 0)
    assert snapshot.lower_bounds == LOWER_BOUNDS
    assert snapshot.unknown == NETWORK
    assert set(snapshot.watches[0].__struct_fields__) >= LOWER_BOUNDS, "fields that exist"
    assert "roots" not in LOWER_BOUNDS
    (watch,) = snapshot.watches
    assert (watch.roots, watch.alive, watch.window_peak) == (0, 0, 0)


def test_stop_ends_a_poll_that_waits(engine: Engine) -> None:
    capture = PollCapture(engine, [_watch("process", f"kws{os.getpid()}")], interval_s=3600)
    capture.start()
    results: list[bool] = []

    def poll() -> None:
        more = True
        while more:
            more = capture.poll()
            results.append(more)

    thread = threading.Thread(target=poll)
    thread.start()
    capture.interrupt()
    while not results:
        time.sleep(0.001)
    capture.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert results == [True, False]


def test_wall_clock_step_is_followed(start: Callable[..., subprocess.Popen[bytes]], engine: Engine) -> None:
    wall_ns = [1_000_000_000_000_000_000]
    name = f"kwc{os.getpid()}"
    capture = PollCapture(
        engine, [_watch("cmdline", f"{name}$")], boot_ns=lambda: 5_000_000_000, wall_ns=lambda: wall_ns[0]
    )
    capture.start()
    wall_ns[0] += 86_400_000_000_000
    start(sys.executable, "-c", "import sys; sys.stdin.read()", name)
    while not capture.look():
        time.sleep(0.001)
    (root,) = _lines(engine)
    assert root.time == "2001-09-10T01:46:40.000000000Z"


def test_fork_storm_breaks_nothing(start: Callable[..., subprocess.Popen[bytes]], engine: Engine) -> None:
    storm = start("/bin/sh", "-c", "while :; do /bin/true; done")
    capture = PollCapture(engine, [_watch("pid", str(storm.pid))])
    capture.start()
    deadline = time.monotonic() + 60
    while (watch := capture.snapshot(None, 0).watches[0]).exits < 50:
        assert time.monotonic() < deadline, watch
        capture.look()
    assert engine.losses()["bad_record"] == 0
    assert watch.spawned + watch.adopted == watch.exits + watch.alive
    for line in engine.take().lines.splitlines():
        lines.decode(line)
