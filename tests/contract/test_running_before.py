"""What was running before the watch began is taken in, and said to have been."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from monitor.engine.lines import Adopt, Exit, Fork, Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs, Watcher


def test_children_started_before_the_monitor_are_adopted(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    app = programs.start("grown_tree", name)
    child, grandchild, orphan = (app.fact(fact) for fact in ("child", "grandchild", "orphan"))
    app.fact("ended")
    watcher = watch("--watch", name)
    (status,) = watcher.ask("status")["watches"]
    assert (status["roots"], status["alive"], status["adopted"]) == (1, 3, 3)
    app.release()
    for fact in (child, grandchild, orphan):
        watcher.wait_for(Exit, pid=fact["pid"])
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    root = watcher.one(Root)
    assert (root.pid, root.cause) == (app.pid, "running")
    for fact, depth in ((child, 1), (grandchild, 2)):
        adopted = watcher.one(Adopt, pid=fact["pid"])
        assert (adopted.ppid, adopted.depth, adopted.inferred) == (fact["parent"], depth, UNSET)
        assert adopted.exe == str(programs.path("grown_tree", name))
    assert watcher.one(Adopt, pid=orphan["pid"]).inferred is True, "by its session: its maker has gone"
    assert watcher.of(Fork) == []
    assert watcher.metrics()[f"num_child_procs_{name}"] == 3


def test_child_of_an_adopted_child_is_kin(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    app = programs.start("orphan", name)
    child = app.fact("root")["child"]
    watcher = watch("--watch", name)
    app.go()
    grandchild = app.fact("child")["pid"]
    watcher.wait_for(Fork, pid=grandchild)
    app.release()
    watcher.wait_for(Exit, pid=child)
    watcher.stop()
    fork = watcher.one(Fork, pid=grandchild)
    assert fork.parent_process_id == watcher.one(Adopt, pid=child).process_id
    assert fork.root_process_id == watcher.one(Root, pid=app.pid).process_id
    assert fork.depth == 2


def test_executable_deleted_before_the_monitor_is_known_as_deleted(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    path = programs.path("family", name)
    app = programs.run(path)
    app.fact("root")
    path.unlink()
    watcher = watch("--watch", name)
    watcher.wait_for(Root, pid=app.pid)  # only while it lives does /proc tell its path
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    root = watcher.one(Root, pid=app.pid)
    assert (root.exe, root.deleted) == (str(path), True)


def test_running_process_is_watched_by_its_pid(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    app, other = programs.start("orphan", name), programs.start("family", name)
    child = app.fact("root")["child"]
    other.fact("root")
    watcher = watch("--pid", str(app.pid))
    app.go()
    watcher.wait_for(Fork, pid=app.fact("child")["pid"])
    app.release()
    other.release()
    watcher.wait_for(Exit, pid=child)
    watcher.stop()
    assert [root.pid for root in watcher.of(Root)] == [app.pid]
    assert watcher.told(other.pid) == []
