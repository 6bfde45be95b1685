"""Who is a root: by executable, by pid, by several watches at once; and that kinship beats matching."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Adopt, Exec, Exit, Fork, Root
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemon, Daemons


def _roots(daemon: Daemon) -> set[int]:
    return {line.pid for line in daemon.of(Root)}


def _ends(programs: Programs, path: Path) -> int:
    """Run a program to its end; its pid."""
    app = programs.run(path)
    app.fact("root")
    app.release()
    return app.pid


def test_links_to_the_executable_count_and_look_alikes_do_not(
    daemons: Daemons, programs: Programs, name: str, tmp_path: Path
) -> None:
    exe = programs.path("family", name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    hard, soft, look_alike, same_name = (
        programs.directory / "hard",
        programs.directory / "soft",
        programs.directory / "copy",
        elsewhere / name,
    )
    hard.hardlink_to(exe)
    soft.symlink_to(exe)
    shutil.copy(exe, look_alike)
    shutil.copy(exe, same_name)
    daemon = daemons.start("--exe", str(exe))
    strangers = {_ends(programs, path) for path in (look_alike, same_name)}
    by_hard, by_soft, by_name = (_ends(programs, path) for path in (hard, soft, exe))
    daemon.wait_for(Exit, pid=by_name)
    assert _roots(daemon) == {by_hard, by_soft, by_name}
    assert not strangers & {getattr(line, "pid", 0) for line in daemon.lines()}
    assert daemon.one(Root, pid=by_hard).exe == str(hard)
    assert daemon.one(Root, pid=by_soft).exe == str(exe)
    daemon.stop()


def test_watch_by_a_symbolic_link_is_a_watch_of_its_target(daemons: Daemons, programs: Programs, name: str) -> None:
    exe = programs.path("family", f"{name}-1.0")
    link = programs.directory / name
    link.symlink_to(exe)
    daemon = daemons.start("--exe", str(link))
    pids = {_ends(programs, link), _ends(programs, exe)}
    eventually(lambda: len(daemon.of(Exit)) == 2, "both ends")
    assert _roots(daemon) == pids
    daemon.stop()


def test_link_that_is_pointed_elsewhere_is_followed(daemons: Daemons, programs: Programs, name: str) -> None:
    old, new = programs.path("family", f"{name}-1.0"), programs.path("family", f"{name}-2.0")
    link, fresh = programs.directory / name, programs.directory / "fresh"
    link.symlink_to(old)
    daemon = daemons.start("--exe", str(link))
    fresh.symlink_to(new)
    fresh.rename(link)
    daemon.reload()
    eventually(
        lambda: _ends(programs, link) > 0 and daemon.counters(name)["root_starts"] > 0,
        "the new target to be matched",
    )
    assert {line.exe for line in daemon.of(Root)} == {str(new)}
    daemon.stop()


def test_file_put_in_place_of_the_executable_is_matched_at_once(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    exe = programs.path("family", name)
    daemon = daemons.start("--exe", str(exe))
    old = programs.run(exe)
    old.fact("root")
    update = programs.path("family", "update")
    inode = update.stat().st_ino
    update.rename(exe)
    assert exe.stat().st_ino == inode
    new = programs.run(exe)
    new.fact("root")
    daemon.wait_for(Root, pid=new.pid)
    assert _roots(daemon) == {old.pid, new.pid}
    old.release()
    new.release()
    daemon.wait_for(Exit, pid=new.pid)
    daemon.stop()


def test_executable_that_does_not_exist_yet_is_waited_for(daemons: Daemons, programs: Programs, name: str) -> None:
    exe = programs.directory / name
    daemon = daemons.start("--exe", str(exe))
    daemon.wait_said("matches nothing yet")
    pid = _ends(programs, programs.path("family", name))
    assert daemon.wait_for(Root, pid=pid).exe == str(exe)
    daemon.stop()


def test_executable_that_runs_already_is_found_though_its_file_was_replaced(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    exe = programs.path("family", name)
    app = programs.run(exe, "1")
    child = app.fact("child")["pid"]
    programs.path("family", "update").rename(exe)
    daemon = daemons.start("--exe", str(exe))
    assert daemon.wait_for(Root, pid=app.pid).cause == "running"
    assert daemon.wait_for(Adopt, pid=child).deleted is True
    daemon.stop()


def test_watch_by_pid_is_of_that_process_and_its_kin(daemons: Daemons, programs: Programs, name: str) -> None:
    app, stranger = programs.start("family", name, "2", "1"), programs.start("family", name, "1")
    pids = {app.fact("child", number)["pid"] for number in range(1, 5)}
    stranger.fact("child")
    daemon = daemons.start("--pid", str(app.pid))
    root = daemon.wait_for(Root, pid=app.pid)
    assert (root.watch, root.cause, root.ppid) == (name, "running", os.getpid())
    eventually(lambda: {line.pid for line in daemon.of(Adopt)} == pids, "its descendants to be adopted")
    counted = daemon.counters(name)
    assert (counted["roots"], counted["alive"], counted["adopted"], counted["spawned"]) == (1, 4, 4, 0)
    stranger.release()
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    assert {line.pid for line in daemon.of(Exit)} == {app.pid, *pids}
    daemon.stop()


def test_process_of_two_watches_is_told_and_counted_for_each(daemons: Daemons, programs: Programs, name: str) -> None:
    outer, inner = f"{name}a", f"{name}b"
    daemon = daemons.start("--watch", outer, "--watch", inner)
    app = programs.start("fork_exec", outer, "1", str(programs.path("family", inner)), "1")
    middle = app.fact("root")["pid"]
    app.fact("child", 2)
    (child,) = (fact["pid"] for fact in app.facts("child") if fact.get("parent") == middle)
    eventually(lambda: len(daemon.of(Fork, pid=child)) == 2, "the grandchild, for each watch")
    assert daemon.one(Fork, pid=middle).watch == outer
    assert daemon.one(Exec, pid=middle).watch == outer, "a descendant of one watch"
    root = daemon.one(Root, pid=middle)
    assert (root.watch, root.cause) == (inner, "exec"), "a root of the other"
    forks = {line.watch: line for line in daemon.of(Fork, pid=child)}
    assert set(forks) == {outer, inner}
    assert {line.parent_pid for line in forks.values()} == {middle}
    app.release()
    eventually(lambda: len(daemon.of(Exit, pid=middle)) == 2, "its end, for each watch")
    daemon.wait_for(Exit, pid=app.pid)
    for pid in (middle, child):
        assert {line.watch for line in daemon.of(Exit, pid=pid)} == {outer, inner}
    of_outer, of_inner = daemon.counters(outer), daemon.counters(inner)
    names = ("root_starts", "root_exits", "spawned", "exits", "execs", "alive")
    assert [of_outer[key] for key in names] == [1, 1, 2, 2, 1, 0]
    assert [of_inner[key] for key in names] == [1, 1, 1, 1, 0, 0]
    daemon.stop()


@pytest.mark.parametrize("by", ["--watch", "--exe"])
def test_kinship_beats_matching(daemons: Daemons, programs: Programs, name: str, by: str) -> None:
    exe = programs.path("fork_exec", name)
    daemon = daemons.start(by, name if by == "--watch" else str(exe))
    app = programs.run(exe, "1", str(exe))
    pid = app.fact("child")["pid"]
    image = daemon.wait_for(Exec, pid=pid)
    assert (image.exe, image.depth) == (str(exe), 1)
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    assert _roots(daemon) == {app.pid}
    counted = daemon.counters(name)
    assert (counted["root_starts"], counted["execs"]) == (1, counted["spawned"])
    daemon.stop()
