"""What BCC compiles here: its structs are tried before anything is believed, both its buffers tell all, losses show."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest

from monitor.capture import bccsource
from monitor.capture.bcc import BccCapture
from monitor.capture.poll import LOWER_BOUNDS
from monitor.engine import Engine, lines
from monitor.engine.lines import Event, Exec, Exit, Fork, Lost, Root
from monitor.errors import CaptureUnavailable
from monitor.schema import Capture as Settings
from monitor.watch import Watch
from tests.contract.conftest import eventually
from tests.kernel.held import held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Programs

LONG = os.environ.get("KINWATCH_LONG") == "1"
STORM = 20_000 if LONG else 2_000
PAGE_BYTES = 4096
FELT = (
    *("task_struct.start_boottime", "task_struct.group_leader", "task_struct.comm", "task_struct.real_parent"),
    *("task_struct.tgid", "task_struct.fs", "signal_struct.live", "cred.uid", "mm_struct.exe_file"),
    *("mm_struct.arg_start", "dentry.d_parent", "qstr.name", "inode.i_ino", "super_block.s_dev"),
    *("linux_binprm.filename", "vfsmount.mnt_root", "fs_struct.pwd"),
)
"""Fields whose misreading is tried."""

T = TypeVar("T", bound=Event)


class Here:
    """A capture in this process, and its lines."""

    def __init__(self, watches: list[Watch], settings: Settings, *, ring: bool = True) -> None:
        self._engine = Engine(settings.max_processes)
        self.capture = BccCapture(self._engine, watches, settings, ring=ring)
        self.told: list[lines.Line] = []
        self._closed = False
        self.capture.start()

    def look(self) -> None:
        """Take what has come."""
        self.capture.drain()
        self.told += [lines.decode(line) for line in self._engine.take().lines.splitlines()]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Take what comes until the condition holds."""

        def holds() -> bool:
            self.look()
            return condition()

        eventually(holds, f"{what}; there are {self.told[-10:]}")

    def of(self, kind: type[T], pid: int | None = None) -> list[T]:
        """The lines of a kind, about a process."""
        return [line for line in self.told if isinstance(line, kind) and pid in {None, getattr(line, "pid", None)}]

    def close(self) -> None:
        """The hooks go."""
        if not self._closed:
            self._closed = True
            self.capture.close(keep=False)
            self._engine.close()


@pytest.fixture
def here() -> Iterator[Callable[..., Here]]:
    """Opens captures; their hooks are gone when the test has ended."""
    opened: list[Here] = []

    def make(*names: str | Watch, ring: bool = True, ring_bytes: int = 1 << 22, max_processes: int = 4096) -> Here:
        settings = Settings(ring_bytes=ring_bytes, max_processes=max_processes)
        watches = [_called(name) if isinstance(name, str) else name for name in names]
        opened.append(Here(watches, settings, ring=ring))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("field", FELT if LONG else FELT[::4])
def test_structs_of_another_kernel_are_refused(field: str) -> None:
    true = bccsource.source()
    if not true.offsets:
        pytest.skip("the compiler takes all fields from headers here: no single one can be moved")
    flag = f"-DKW_{field.replace('.', '__')}="
    wrong = [f"{flag}{int(word.removeprefix(flag)) + 16}" if word.startswith(flag) else word for word in true.flags]
    assert len(set(wrong) - set(true.flags)) == 1
    source = msgspec.structs.replace(true, flags=tuple(wrong))
    watch = Watch(name="nobody", kind="process", value="nobody")
    with Engine(64) as engine, pytest.raises(CaptureUnavailable) as refused:
        BccCapture(engine, [watch], Settings(max_processes=64), source=source)
    said = str(refused.value)
    assert "is not of this kernel" in said
    assert os.uname().release in said
    assert "apt-get install linux-headers-" in said


def test_what_is_remembered_wrongly_is_asked_of_the_headers_again(
    here: Callable[..., Here], programs: Programs, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = bccsource.source()
    moved = [f"{word}0" if word.startswith("-DKW_task_struct__comm=") else word for word in true.flags]
    stale = msgspec.structs.replace(true, flags=tuple(moved), remembered=True)
    monkeypatch.setattr(bccsource, "source", lambda _, *, anew=False: true if anew else stale)
    watching = here(name)
    app = programs.start("family", name)
    watching.until(lambda: bool(watching.of(Root, app.pid)), "the root")
    app.release()


@pytest.mark.parametrize("ring", [True, False], ids=["ring buffer", "perf buffers"])
def test_a_storm_on_all_processors_is_told_whole_and_in_order(
    here: Callable[..., Here], programs: Programs, name: str, *, ring: bool
) -> None:
    watching = here(name, ring=ring)
    apps = [programs.start("fork_exec", name, str(STORM // 10), "/bin/true") for _ in range(2)]
    for app in apps:
        app.fact("children")
        app.release()
    watching.until(lambda: len(watching.of(Exit)) == len(apps) * (STORM // 10 + 1), "all exits")
    pids = {fact["pid"] for app in apps for fact in app.facts("child")}
    order = {pid: [type(line) for line in watching.told if getattr(line, "pid", None) == pid] for pid in pids}
    assert set(map(tuple, order.values())) == {(Fork, Exec, Exit)}
    assert {line.pid for line in watching.of(Root)} == {app.pid for app in apps}
    assert not watching.of(Lost)
    snapshot = watching.capture.snapshot(None, 0)
    (counted,) = snapshot.watches
    assert (counted.spawned, counted.execs, counted.exits) == (2 * (STORM // 10),) * 3
    assert (counted.alive, counted.roots) == (0, 0)
    assert snapshot.lower_bounds == frozenset(), "exact"


@pytest.mark.parametrize("ring", [True, False], ids=["ring buffer", "perf buffers"])
def test_what_was_lost_is_counted_and_who_lives_is_known_again(
    here: Callable[..., Here], programs: Programs, name: str, *, ring: bool
) -> None:
    stormy = f"{name}s"
    watching = here(name, stormy, ring=ring, ring_bytes=PAGE_BYTES)
    storm = programs.start("short_lived", stormy, str(STORM))
    storm.fact("children")
    family = programs.start("family", name, "5", "1")
    pids = {family.fact("child", number)["pid"] for number in range(1, 11)}
    watching.until(lambda: bool(watching.of(Lost)), "a loss")
    watching.until(lambda: _alive(watching) == 10, "the five children and the five grandchildren")
    lost = sum(line.count for line in watching.of(Lost))
    told = [line for line in watching.told if not isinstance(line, Lost)]
    if ring:  # of several buffers one may keep the end of a child whose beginning another had no room for
        records = 1 + 2 * STORM + 1 + 10
        assert lost >= records - len(told), "told, or told to be lost; who was found again is told as well"
    assert pids <= {line.pid for line in watching.of(Fork)}, "found again by the kernel's table"
    assert watching.capture.snapshot(None, 0).lower_bounds == LOWER_BOUNDS
    storm.release()
    family.release()
    watching.until(lambda: _alive(watching) == 0, "all to have ended")


def test_more_processes_than_the_table_holds_are_counted(
    here: Callable[..., Here], programs: Programs, name: str
) -> None:
    watching = here(name, max_processes=64)
    app = programs.start("family", name, "100")
    app.fact("child", 100)
    watching.until(lambda: any(line.stage == "table_full" for line in watching.of(Lost)), "a full table")
    app.release()
    watching.until(lambda: bool(watching.of(Exit, app.pid)), "the end of the root")
    assert watching.capture.snapshot(None, 0).lower_bounds == LOWER_BOUNDS


def test_image_that_matches_nothing_makes_nobody_kin(here: Callable[..., Here], programs: Programs, name: str) -> None:
    watching = here(name)
    stranger = programs.start("family", f"{name}z", "1")
    child = stranger.fact("child")["pid"]
    app = programs.start("family", name, "1")
    watching.until(lambda: bool(watching.of(Fork)), "the child of the root")
    followed = {process.pid for process in watching.capture.followed()}
    assert followed == {app.pid, app.fact("child")["pid"]}
    assert not watching.of(Fork, child)
    stranger.release()
    app.release()


def test_look_alike_by_the_first_letters_is_followed_until_it_is_known_to_be_none(
    here: Callable[..., Here], programs: Programs, name: str
) -> None:
    long_name = f"{name}-longer-than-a-comm"
    watching = here(long_name)
    like = programs.start("family", f"{name}-longer-than-another", "1")
    like.fact("child")
    watching.look()
    app = programs.start("family", long_name, "1")
    child = app.fact("child")["pid"]
    watching.until(lambda: bool(watching.of(Fork, child)), "the child of the root")
    assert {getattr(line, "pid", None) for line in watching.told} == {app.pid, child}
    assert {process.pid for process in watching.capture.followed()} == {app.pid, child}
    like.release()
    app.release()


@pytest.mark.parametrize("kind", ["exe", "cmdline", "link"])
def test_every_kind_of_watch_finds_its_root_at_its_exec(
    here: Callable[..., Here], programs: Programs, name: str, kind: str
) -> None:
    path = programs.path("family", name)
    if kind == "link":  # the file is the same, nothing in its name is
        path = programs.directory / f"other{name}"
        path.symlink_to(programs.directory / name)
    value = f"{path} 1$" if kind == "cmdline" else str(path)
    watching = here(Watch(name="watched", kind="cmdline" if kind == "cmdline" else "exe", value=value))
    like, app = programs.start("family", f"{name}z", "2"), programs.run(programs.directory / name, "1")
    if kind == "cmdline":
        like = programs.run(path, "2")
    children = {app.fact("child")["pid"]}
    like.fact("child", 2)
    watching.until(lambda: {line.pid for line in watching.of(Fork)} == children, "the child of the root")
    app.release()
    like.release()
    watching.until(lambda: len(watching.of(Exit)) == 2, "the two to have ended")
    assert {line.pid for line in watching.of(Root)} == {app.pid}


def test_watches_come_and_go_and_no_child_is_missed(here: Callable[..., Here], programs: Programs, name: str) -> None:
    other = f"{name}o"
    watching = here(name)
    app, second = programs.start("orphan", name), programs.start("orphan", other)
    grown = second.fact("root")["child"]
    app.fact("root")
    watching.capture.apply([_called(name), _called(other)])
    watching.until(lambda: bool(watching.of(Root, second.pid)), "the other root")
    assert watching.of(Root, second.pid)[0].cause == "running"
    second.go()
    born = second.fact("child")["pid"]
    watching.until(lambda: bool(watching.of(Fork, born)), "the child of the child that was adopted")
    assert watching.of(Fork, born)[0].parent_pid == grown
    watching.capture.apply([_called(other)])
    app.go()
    app.fact("child")
    app.release()
    second.release()
    watching.until(lambda: bool(watching.of(Exit, born)), "its end")
    assert not [line for line in watching.told if getattr(line, "parent_pid", None) == app.fact("root")["child"]]
    assert [held.watch.name for held in watching.capture.watches] == [other]


def test_nothing_is_kept_of_who_has_ended(here: Callable[..., Here], programs: Programs, name: str) -> None:
    watching = here(name, Watch(name="by-line", kind="cmdline", value=f"{name} never"))
    app = programs.start("fork_exec", name, "50", "/bin/true")
    app.fact("children")
    strangers = set()
    for _ in range(50):
        with subprocess.Popen(["/bin/true"]) as stranger:  # each of them is asked about
            strangers.add(stranger.pid)
    watching.until(lambda: len(watching.of(Exit)) == 50, "the children to have ended")
    app.release()
    watching.until(lambda: bool(watching.of(Exit, app.pid)), "the root to have ended")
    ours = {app.pid, *(fact["pid"] for fact in app.facts("child")), *strangers}
    watching.until(lambda: ours.isdisjoint(watching.capture.kept()), "nobody who has ended to be kept")


def test_hooks_are_gone_when_the_capture_is_closed(here: Callable[..., Here], name: str) -> None:
    watching = here(name)
    before = _programs()
    assert {"on_fork", "on_exec", "on_exit"} <= before
    watching.close()
    eventually(lambda: not _programs() & before, "the hooks to be gone")


def _called(name: str) -> Watch:
    return Watch(name=name, kind="process", value=name)


def _alive(watching: Here) -> int:
    return sum(counted.alive for counted in watching.capture.snapshot(None, 0).watches)


def _programs() -> set[str]:
    return {program.get("name", "") for program in held("self", "prog", kind="raw_tracepoint")}
