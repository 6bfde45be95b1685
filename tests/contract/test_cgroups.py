"""Cgroups make roots, by exec and by being moved; they never end kinship."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from monitor.capture.rules import cgroup2_mount
from monitor.engine.lines import Exit, Fork, Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.conftest import Programs, Watcher

WATCH = "members"


@pytest.fixture
def cgroup(name: str) -> Iterator[Path]:
    """A new cgroup below our own; whoever is left in it comes back to ours when the test has ended."""
    mount = cgroup2_mount()
    assert mount is not None, "these tests need a cgroup2 hierarchy"
    with open("/proc/self/cgroup", encoding="utf-8") as file:  # noqa: PTH123
        home = next(line[3:].strip() for line in file if line.startswith("0::"))
    directory = mount / home.lstrip("/") / f"{name}.service"
    directory.mkdir()
    yield directory
    for pid in (directory / "cgroup.procs").read_text().split():
        (directory.parent / "cgroup.procs").write_text(pid)
    directory.rmdir()


@pytest.fixture
def watches(cgroup: Path) -> str:
    """Configuration that watches that cgroup."""
    mount = cgroup2_mount()
    assert mount is not None
    path = cgroup.relative_to(mount)
    return f'[[watch]]\nname = "{WATCH}"\ncgroup = "/{path}"\n'


def test_process_moved_into_a_watched_cgroup_becomes_a_root(
    watch: Callable[..., Watcher], programs: Programs, name: str, cgroup: Path, watches: str
) -> None:
    app = programs.start("family", name)
    app.fact("root")
    watcher = watch(watches=watches)
    (cgroup / "cgroup.procs").write_text(str(app.pid))
    root = watcher.wait_for(Root, pid=app.pid, watch=WATCH)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert root.cause == "moved"


def test_process_running_in_a_watched_cgroup_is_a_root_with_its_later_children(
    watch: Callable[..., Watcher], programs: Programs, name: str, cgroup: Path, watches: str
) -> None:
    app = programs.start("orphan", name)
    child = app.fact("root")["child"]
    (cgroup / "cgroup.procs").write_text(str(app.pid))
    watcher = watch(watches=watches)
    app.go()
    grandchild = app.fact("child")["pid"]
    watcher.wait_for(Fork, pid=grandchild)
    app.release()
    watcher.wait_for(Exit, pid=child)
    watcher.stop()
    assert watcher.one(Root, watch=WATCH, pid=app.pid).cause == "running"
    assert watcher.one(Fork, watch=WATCH, pid=grandchild).depth == 2, "though born in another cgroup"


def test_child_born_in_another_cgroup_stays_kin(
    watch: Callable[..., Watcher], programs: Programs, name: str, cgroup: Path
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("into_cgroup", name, str(cgroup))
    child = app.fact("child")["pid"]
    assert (cgroup / "cgroup.procs").read_text().split() == [str(child)]
    watcher.wait_for(Fork, pid=child)
    app.release()
    watcher.wait_for(Exit, pid=child)
    watcher.stop()
    fork = watcher.one(Fork, pid=child)
    assert (fork.parent_pid, fork.depth, fork.uid) == (app.pid, 1, os.getuid())


def test_member_of_a_cgroup_is_a_root_once(
    watch: Callable[..., Watcher], programs: Programs, name: str, cgroup: Path, watches: str
) -> None:
    app = programs.start("family", name)
    app.fact("root")
    (cgroup / "cgroup.procs").write_text(str(app.pid))
    watcher = watch(watches=watches)
    (cgroup.parent / "cgroup.procs").write_text(str(app.pid))
    (cgroup / "cgroup.procs").write_text(str(app.pid))
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert len(watcher.of(Root, watch=WATCH)) == 1, "kin it stays, wherever it goes"
