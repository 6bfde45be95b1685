"""A process is its threads: it begins with the first, keeps its id whatever they do, ends with the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.engine.lines import Exec, Exit, Fork, Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs, Watcher


def test_end_of_a_thread_is_not_the_end_of_its_process(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("thread_exit", name)
    pid = app.fact("goes_on")["pid"]
    watcher.wait_for(Fork, pid=pid)
    assert [process["pid"] for process in watcher.ask("tree")["tree"]] == [app.pid, pid]
    app.release()
    watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    assert watcher.told(pid) == ["fork", "exit"]
    assert watcher.told(app.fact("thread")["tid"]) == [], "a thread is nobody"


def test_many_threads_are_one_process(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("many_threads", name, "2000")
    app.fact("threads")
    watcher.wait_for(Root, pid=app.pid)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert [type(line).__name__ for line in watcher.lines()] == ["Root", "Exit"]


def test_zombie_leader_lives_to_its_last_thread(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("zombie_leader", name)
    pid = app.fact("leader_gone")["pid"]
    watcher.wait_for(Fork, pid=pid)
    (status,) = watcher.ask("status")["watches"]
    assert status["alive"] == 1
    assert watcher.told(pid) == ["fork"]
    app.release()
    exit_ = watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    assert watcher.told(pid) == ["fork", "exit"]
    if not watcher.unknown("wait status"):
        assert exit_.exit_code == app.fact("ended")["status"] >> 8 == 3


def test_exec_from_a_thread_keeps_the_process_id(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("thread_exec", name)
    before, after, child = app.fact("before"), app.fact("after"), app.fact("child")
    assert before["tid"] != before["pid"]
    assert after["pid"] == after["tid"] == before["pid"]
    watcher.wait_for(Fork, pid=child["pid"])
    app.release()
    watcher.wait_for(Exit, pid=after["pid"])
    watcher.stop()
    pid = after["pid"]
    assert watcher.told(pid) == ["fork", "exec", "exit"]
    assert len({line.process_id for kind in (Fork, Exec, Exit) for line in watcher.of(kind, pid=pid)}) == 1
    assert watcher.told(before["tid"]) == []
    fork = watcher.one(Fork, pid=child["pid"])
    assert (fork.parent_process_id, fork.depth) == (watcher.one(Exec, pid=pid).process_id, 2)


def test_threads_that_end_together_end_their_process_once(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    rounds = 40
    watcher = watch("--watch", name)
    app = programs.start("threads_exit_together", name, str(rounds))
    app.fact("children")
    app.release()
    ended = {fact["pid"]: fact["status"] for fact in app.facts("ended")}
    if watcher.unknown("short-lived process"):
        watcher.stop()
        assert all(watcher.told(pid).count("exit") <= 1 for pid in ended)
        return
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert len(ended) == rounds
    assert {exit_.pid: (exit_.exit_code or 0) << 8 for exit_ in watcher.of(Exit) if exit_.pid != app.pid} == ended
    assert len(watcher.of(Exit)) == rounds + 1
