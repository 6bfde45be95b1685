"""Watches by membership: who is in the cgroup, who is moved in, and a cgroup that goes and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Adopt, Exit, Fork, Root
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Cgroup, Daemon, Daemons


def _watch(kind: str, value: str) -> str:
    return f'[[watch]]\nname = "group"\n{kind} = "{value}"\n'


def _is_told(daemon: Daemon, cgroup: Cgroup, pid: int, cause: str) -> None:
    root = daemon.wait_for(Root, pid=pid)
    assert (root.watch, root.cause) == ("group", cause)
    assert f"0::{cgroup.name}" in Path(f"/proc/{pid}/cgroup").read_text()


def test_members_at_start_are_roots_and_their_children_descendants(
    daemons: Daemons, programs: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    app = programs.start("family", name)
    app.fact("root")
    group.enter(app.pid)
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    _is_told(daemon, group, app.pid, "running")
    assert daemon.counters("group")["roots"] == 1
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()


def test_child_of_a_member_is_a_descendant_wherever_it_goes(
    daemons: Daemons, built: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group, outside = cgroup(cgroup_name), cgroup(f"{cgroup_name}other")
    app = built.start("storm", name)
    app.fact("begun")
    group.enter(app.pid)
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    _is_told(daemon, group, app.pid, "running")
    forked = daemon.wait_for(Fork, parent_pid=app.pid)
    assert (forked.watch, forked.depth) == ("group", 1)
    outside.enter(app.pid)
    before = daemon.counters("group")["spawned"]
    eventually(lambda: daemon.counters("group")["spawned"] > before + 10, "the children of a root that was moved out")
    assert daemon.counters("group")["roots"] == 1, "once a root, always a root"
    app.go()
    app.fact("paused")
    assert daemon.counters("group")["alive"] == 0
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()


def test_process_that_is_moved_in_becomes_a_root(
    daemons: Daemons, programs: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    daemon.wait_said("watch group matches nothing yet")
    app, stranger = programs.start("family", name), programs.start("family", name)
    app.fact("root")
    stranger.fact("root")
    group.enter(app.pid)
    _is_told(daemon, group, app.pid, "moved")
    root = daemon.one(Root, pid=app.pid)
    assert root.exe == str(programs.path("family", name))
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    assert {line.pid for line in daemon.of(Root)} == {app.pid}
    daemon.stop()


def test_process_that_executes_in_the_cgroup_becomes_a_root(
    daemons: Daemons, programs: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    below = cgroup(f"{cgroup_name}/below")
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    exe = programs.path("family", name)
    script = f'echo $$ > "{below.path}/cgroup.procs" && exec "{exe}" 1'
    app = programs.run(Path("/bin/sh"), "-c", script)
    child = app.fact("child")["pid"]
    _is_told(daemon, below, app.pid, "moved")
    daemon.wait_for(Fork, pid=child)
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    assert len(daemon.of(Root)) == 1
    daemon.stop()


def test_child_that_is_cloned_into_the_cgroup_is_a_root_though_it_never_executes(
    daemons: Daemons, built: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    app = built.start("clone_into", name, str(group.path))
    member, child = app.fact("member")["pid"], app.fact("child")["pid"]
    assert set(group.pids()) == {member, child}
    assert daemon.counters("group")["roots"] == 1, "the hooks have counted it before it ran"
    daemon.wait_for(Fork, pid=child)
    assert {line.pid for line in daemon.of(Root)} == {member}
    app.release()
    daemon.wait_for(Exit, pid=member)
    daemon.stop()


def test_cgroup_that_is_removed_and_made_again_is_watched_again(
    daemons: Daemons, programs: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    seen = []
    for _ in range(3):
        app = programs.start("family", name)
        app.fact("root")
        group.enter(app.pid)
        _is_told(daemon, group, app.pid, "moved")
        app.release()
        daemon.wait_for(Exit, pid=app.pid)
        seen.append(app.pid)
        inode = group.path.stat().st_ino
        group.remove()
        group.make()
        assert group.path.stat().st_ino != inode
    assert [line.pid for line in daemon.of(Root)] == seen
    daemon.stop()


def test_cgroup_that_does_not_exist_yet_is_waited_for(
    daemons: Daemons, programs: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    group.remove()
    daemons.configure(_watch("cgroup", group.name))
    daemon = daemons.start()
    group.make()
    app = programs.start("family", name)
    app.fact("root")
    group.enter(app.pid)
    _is_told(daemon, group, app.pid, "moved")
    daemon.stop()


@pytest.mark.parametrize(("unit", "slices"), [("{}.service", "system.slice"), ("{}@one.service", "system.slice/{}")])
def test_unit_is_its_cgroup(  # noqa: PLR0913, PLR0917 - fixtures
    daemons: Daemons,
    programs: Programs,
    cgroup: Callable[[str], Cgroup],
    cgroup_name: str,
    name: str,
    unit: str,
    slices: str,
) -> None:
    service = unit.format(cgroup_name)
    above = slices.format(f"system-{cgroup_name}.slice")
    group = cgroup(f"{above}/{service}")
    app, later = programs.start("family", name, "1"), programs.start("family", name)
    child = app.fact("child")["pid"]
    group.enter(app.pid)
    daemons.configure(_watch("unit", service.removesuffix(".service")))
    daemon = daemons.start()
    _is_told(daemon, group, app.pid, "running")
    daemon.wait_for(Adopt, pid=child)
    later.fact("root")
    group.enter(later.pid)
    _is_told(daemon, group, later.pid, "moved")
    daemon.stop()


def test_watch_of_a_cgroup_that_is_removed_from_the_configuration_is_over(
    daemons: Daemons, programs: Programs, cgroup: Callable[[str], Cgroup], cgroup_name: str, name: str
) -> None:
    group = cgroup(cgroup_name)
    kept = f'[[watch]]\nname = "kept"\nprocess = "{name}k"\n'
    daemons.configure(kept + _watch("cgroup", group.name))
    daemon = daemons.start()
    daemons.configure(kept)
    daemon.reload()
    eventually(lambda: daemon.watched() == ["kept"], "the watch to go")
    group.remove()
    group.make()
    app = programs.start("family", name)
    app.fact("root")
    group.enter(app.pid)
    app.release()
    last = programs.start("family", f"{name}k")
    last.fact("root")
    daemon.wait_for(Root, pid=last.pid)
    assert {line.pid for line in daemon.of(Root)} == {last.pid}
    daemon.stop()
