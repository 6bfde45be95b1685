"""Who is kin of whom: facts of fork, whatever happens to parents afterwards."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Adopt, Exec, Exit, Fork, Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs, Watcher


def test_child_and_grandchild_descend_from_the_root(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("family", name, "1", "1")
    child, grandchild = app.fact("child", 1), app.fact("child", 2)
    watcher.wait_for(Fork, pid=grandchild["pid"])
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    root = watcher.one(Root, pid=app.pid)
    assert (root.watch, root.cause, root.ppid) == (name, "exec", os.getpid())
    for fact in (child, grandchild):
        fork = watcher.one(Fork, pid=fact["pid"])
        assert fork.parent_pid == fact["parent"]
        assert fork.depth == fact["depth"]
        assert fork.root_process_id == root.process_id
        assert fork.watch == name
    assert watcher.one(Fork, pid=grandchild["pid"]).parent_process_id == watcher.one(Fork, pid=child["pid"]).process_id


def test_stranger_is_in_no_line(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    stranger = programs.start("family", f"{name}z", "1")
    stranger.fact("child")
    app = programs.start("family", name)
    watcher.wait_for(Root, pid=app.pid)
    app.release()
    stranger.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert {getattr(line, "pid", None) for line in watcher.lines()} == {app.pid}


def test_double_forked_grandchild_stays_kin(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("double_fork", name)
    grandchild, image = app.fact("grandchild"), app.fact("image")
    assert image["ppid"] != grandchild["middle"]
    if watcher.unknown("process cut off from its kin"):
        _is_marked_as_lower_bound(watcher)
        return
    watcher.wait_for(Exec, pid=image["pid"])
    app.release()
    watcher.wait_for(Exit, pid=image["pid"])
    watcher.stop()
    fork = watcher.one(Fork, pid=grandchild["pid"])
    assert (fork.parent_pid, fork.depth) == (grandchild["middle"], 2)
    assert watcher.one(Exec, pid=image["pid"]).ppid == image["ppid"]
    assert watcher.one(Exit, pid=image["pid"]).exit_code == 6


def test_daemon_in_a_session_of_its_own_stays_kin(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("daemonise", name)
    daemon = app.fact("daemon")
    assert daemon["sid"] == daemon["middle"]
    if watcher.unknown("process cut off from its kin"):
        _is_marked_as_lower_bound(watcher)
        return
    watcher.wait_for(Fork, pid=daemon["pid"])
    app.release()
    watcher.wait_for(Exit, pid=daemon["pid"])
    watcher.stop()
    fork = watcher.one(Fork, pid=daemon["pid"])
    assert (fork.parent_pid, fork.depth) == (daemon["middle"], 2)


def test_orphan_stays_kin_and_so_do_its_children(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("orphan", name)
    watcher.wait_for(Fork, pid=app.fact("root")["child"])
    app.go()
    orphan, child = app.fact("orphan"), app.fact("child")
    watcher.wait_for(Exit, pid=app.pid)
    watcher.wait_for(Fork, pid=child["pid"])
    app.release()
    watcher.wait_for(Exit, pid=orphan["pid"])
    watcher.stop()
    root = watcher.one(Root, pid=app.pid)
    fork = watcher.one(Fork, pid=child["pid"])
    assert (fork.parent_pid, fork.depth, fork.root_process_id) == (orphan["pid"], 2, root.process_id)
    assert watcher.told(orphan["pid"]) == ["fork", "exit"]


def test_grandchild_taken_in_by_a_subreaper_was_forked_by_the_dead_middle(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("subreaper", name)
    middle, grandchild = app.fact("middle"), app.fact("grandchild")
    assert grandchild["ppid"] == app.pid
    watcher.wait_for(Fork, pid=grandchild["pid"])
    app.release()
    watcher.wait_for(Exit, pid=grandchild["pid"])
    watcher.stop()
    fork = watcher.one(Fork, pid=grandchild["pid"])
    if watcher.unknown("forker"):
        assert fork.parent_pid in {app.pid, middle["pid"]}, "kin all the same"
    else:
        assert (fork.parent_pid, fork.depth) == (middle["pid"], 2)


def test_clone_parent_child_of_a_child_belongs_to_the_cloner(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("clone_parent", name, "child")
    sibling = app.fact("sibling")
    assert sibling["ppid"] == app.pid
    watcher.wait_for(Fork, pid=sibling["pid"])
    app.release()
    watcher.wait_for(Exit, pid=sibling["pid"])
    watcher.stop()
    fork = watcher.one(Fork, pid=sibling["pid"])
    if watcher.unknown("forker under CLONE_PARENT"):
        assert fork.parent_pid == app.pid, "the parent that /proc shows"
    else:
        assert (fork.parent_pid, fork.depth) == (sibling["cloner"], 2)


def test_clone_parent_child_of_the_root_belongs_to_the_root(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("clone_parent", name, "root")
    sibling = app.fact("sibling")
    assert sibling["ppid"] == os.getpid(), "the kernel made it ours"
    try:
        if watcher.unknown("child given to the root's parent"):
            _is_marked_as_lower_bound(watcher)
            return
        watcher.wait_for(Fork, pid=sibling["pid"])
    finally:
        app.release()
        os.waitpid(sibling["pid"], 0)
    watcher.wait_for(Exit, pid=sibling["pid"])
    watcher.stop()
    fork = watcher.one(Fork, pid=sibling["pid"])
    assert (fork.parent_pid, fork.depth) == (app.pid, 1)


def test_process_without_exit_signal_is_kin(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("clone_nosig", name)
    child = app.fact("child")
    watcher.wait_for(Fork, pid=child["pid"])
    app.release()
    watcher.wait_for(Exit, pid=child["pid"])
    watcher.stop()
    assert watcher.told(child["pid"]) == ["fork", "exit"]
    assert watcher.one(Fork, pid=child["pid"]).parent_pid == app.pid


def test_depth_counts_every_generation(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    levels = 40
    watcher = watch("--watch", name)
    app = programs.start("deep", name, str(levels))
    watcher.wait_for(Fork, pid=app.fact("bottom")["pid"])
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    told = {fact["pid"]: (fact["depth"], fact["parent"]) for fact in app.facts("level")}
    assert len(told) == levels
    assert {fork.pid: (fork.depth, fork.parent_pid) for fork in watcher.of(Fork)} == told


def test_pids_are_those_of_the_outermost_namespace(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("pidns", name)
    inner, inmost = app.fact("inner"), app.fact("inmost")
    assert (inner["inner_pid"], inmost["inner_pid"]) == (1, 2)
    watcher.wait_for(Fork, pid=inmost["pid"])
    app.release()
    watcher.wait_for(Exit, pid=inmost["pid"])
    watcher.stop()
    assert watcher.one(Fork, pid=inner["pid"]).parent_pid == app.pid
    assert watcher.one(Fork, pid=inmost["pid"]).parent_pid == inner["pid"]


def test_pid_reuse_is_two_processes(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("pid_reuse", name)
    pid = app.fact("first")["pid"]
    first = watcher.wait_for(Fork, pid=pid)
    app.go()
    assert app.fact("second")["pid"] == pid
    second_id = f"{pid}-{_start_ticks(pid)}"
    watcher.wait_for(Fork, process_id=second_id)
    app.release()
    watcher.wait_for(Exit, process_id=second_id)
    watcher.stop()
    assert first.process_id != second_id
    assert watcher.told(pid) == ["fork", "exit", "fork", "exit"]
    statuses = [exit_.exit_code for exit_ in watcher.of(Exit, pid=pid)]
    if not watcher.unknown("wait status"):
        assert statuses == [11, 12]
    metrics = watcher.metrics()
    assert metrics[f"num_child_procs_{name}"] == 2


def test_two_instances_are_two_roots_with_children_of_their_own(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    apps = [programs.start("family", name, "1") for _ in range(2)]
    children = [app.fact("child")["pid"] for app in apps]
    for child in children:
        watcher.wait_for(Fork, pid=child)
    (status,) = watcher.ask("status")["watches"]
    assert (status["roots"], status["alive"]) == (2, 2)
    for app in apps:
        app.release()
        watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    for app, child in zip(apps, children, strict=True):
        assert watcher.one(Fork, pid=child).root_process_id == watcher.one(Root, pid=app.pid).process_id


def test_app_started_again_is_a_new_root(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    first = programs.start("family", name, "1")
    watcher.wait_for(Fork, pid=first.fact("child")["pid"])
    first.release()
    watcher.wait_for(Exit, pid=first.pid)
    second = programs.start("family", name, "1")
    child = second.fact("child")["pid"]
    watcher.wait_for(Fork, pid=child)
    second.release()
    watcher.wait_for(Exit, pid=second.pid)
    watcher.stop()
    assert [root.pid for root in watcher.of(Root)] == [first.pid, second.pid]
    assert watcher.one(Fork, pid=child).root_process_id == watcher.of(Root)[1].process_id


def test_root_that_renames_itself_stays_root(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("rename_comm", name)
    child = app.fact("child")
    fork = watcher.wait_for(Fork, pid=child["pid"])
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert (fork.parent_pid, fork.comm, fork.watch) == (app.pid, child["comm"], name)
    assert len(watcher.of(Root)) == 1


def test_root_that_runs_another_program_stays_root(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    other = programs.path("root_exec", f"{name}o")
    watcher = watch("--watch", name)
    app = programs.start("root_exec", name, str(other))
    watcher.wait_for(Root, pid=app.pid)
    app.go()
    child = app.fact("child")["pid"]
    watcher.wait_for(Fork, pid=child)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert watcher.one(Fork, pid=child).depth == 1
    image = watcher.one(Exec, pid=app.pid)
    assert (image.exe, image.depth) == (str(other), 0)
    assert watcher.metrics()[f"child_execs_{name}"] == 0, "a root's images are not its children's"


def test_kinship_beats_matching(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("vfork_exec", name)
    image = app.fact("image")["pid"]
    watcher.wait_for(Exec, pid=image)
    app.release()
    watcher.wait_for(Exit, pid=image)
    watcher.stop()
    assert [root.pid for root in watcher.of(Root)] == [app.pid]
    assert watcher.one(Exec, pid=image).depth == 1


def test_process_may_be_descendant_of_one_watch_and_root_of_another(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    inner = f"{name}i"
    path = programs.path("family", inner)
    watcher = watch("--watch", name, "--watch", inner)
    app = programs.start("fork_exec", name, "1", str(path), "1")
    app.fact("child", 2)  # two processes tell of one each, in any order; who has a parent to name is the grandchild
    pids = {"parent" in fact: fact["pid"] for fact in app.facts("child")}
    child, grandchild = pids[False], pids[True]
    watcher.wait_for(Fork, pid=grandchild, watch=inner)
    app.release()
    watcher.wait_for(Exit, pid=grandchild, watch=inner)
    watcher.stop()
    assert watcher.one(Fork, pid=child).watch == name
    assert watcher.one(Exec, pid=child, watch=name).depth == 1
    assert watcher.one(Root, pid=child, watch=inner).cause == "exec"
    outer_fork, inner_fork = (watcher.one(Fork, pid=grandchild, watch=label) for label in (name, inner))
    assert (outer_fork.depth, inner_fork.depth) == (2, 1)
    assert inner_fork.root_process_id == watcher.one(Root, watch=inner).process_id
    assert outer_fork.root_process_id == watcher.one(Root, watch=name).process_id


@pytest.mark.parametrize(("kind", "counts"), [("link", True), ("symlink", True), ("copy", False)])
def test_executable_is_known_by_its_inode(
    watch: Callable[..., Watcher], programs: Programs, name: str, kind: str, *, counts: bool
) -> None:
    watched = programs.path("family", name)
    other = programs.directory / f"{name}o"
    if kind == "link":
        other.hardlink_to(watched)
    elif kind == "symlink":
        other.symlink_to(watched)
    else:
        other.write_bytes(watched.read_bytes())
        other.chmod(0o755)
    watcher = watch("--exe", str(watched))
    app = programs.run(other)
    reference = programs.run(watched)
    watcher.wait_for(Root, pid=reference.pid)
    if counts:
        watcher.wait_for(Root, pid=app.pid)
    app.release()
    reference.release()
    watcher.wait_for(Exit, pid=reference.pid)
    watcher.stop()
    assert bool(watcher.of(Root, pid=app.pid)) is counts


def test_nothing_is_adopted_that_was_started_under_watch(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("family", name, "3", "2")
    for number in range(1, 10):
        watcher.wait_for(Fork, pid=app.fact("child", number)["pid"])
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert watcher.of(Adopt) == []


def _start_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
        return int(stat.read().rpartition(b")")[2].split()[19])


def _is_marked_as_lower_bound(watcher: Watcher) -> None:
    """The capture may miss processes: it says so where it gives their number."""
    assert {"alive", "spawned", "exits"} <= set(watcher.ask("status")["lower_bounds"])
