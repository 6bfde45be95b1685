"""SIGHUP: files are opened again and watches changed, while the applications go on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from monitor.engine import lines
from monitor.engine.lines import Adopt, Alarm, Exit, Fork, Root
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemons

ROTATIONS = 50 if os.environ.get("KINWATCH_LONG") == "1" else 5


def _watch(*names: str, expect: str = "") -> str:
    return "".join(f'[[watch]]\nname = "{name}"\nprocess = "{name}"\n{expect}\n' for name in names)


def test_rotation_of_the_log_loses_no_line(daemons: Daemons, built: Programs, name: str) -> None:
    daemon = daemons.start("--watch", name)
    app = built.start("storm", name)
    app.fact("begun")
    rotated = [daemon.log.with_suffix(f".{number}") for number in range(ROTATIONS)]
    for path in rotated:
        eventually(lambda: daemon.log.stat().st_size > 20_000, "the log to grow")
        daemon.log.rename(path)
        daemon.reload()
        eventually(daemon.log.exists, "a new log")
    app.go()
    turns = app.fact("paused")["turns"]
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()
    told = [lines.decode(line) for path in [*rotated, daemon.log] for line in path.read_bytes().splitlines()]
    ends = [line.process_id for line in told if isinstance(line, Exit)]
    forks = [line.process_id for line in told if isinstance(line, Fork)]
    assert len(forks) == len(set(forks)) == 2 * turns
    assert len(ends) == len(set(ends)) == 2 * turns + 1
    assert daemon.log.stat().st_mode & 0o777 == 0o600


def test_reports_go_to_a_new_file_after_a_rotation(daemons: Daemons, programs: Programs, name: str) -> None:
    daemon = daemons.start("--watch", name, "--expect", "child_processes=0")
    reports = daemons.directory / "reports.jsonl"
    app = programs.start("family", name, "1")
    app.fact("child")
    eventually(lambda: reports.stat().st_size > 0, "the immediate report")
    reports.rename(reports.with_suffix(".0"))
    daemon.reload()
    eventually(reports.exists, "a new file")
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()
    assert len(daemon.reports()) == 1, "that of the stop"


def test_watch_that_is_added_takes_in_what_runs(daemons: Daemons, programs: Programs, name: str) -> None:
    old, new = f"{name}a", f"{name}b"
    daemons.configure(_watch(old))
    daemon = daemons.start()
    app, other = programs.start("family", old, "1"), programs.start("family", new, "2")
    children = {other.fact("child", number)["pid"] for number in (1, 2)}
    eventually(lambda: daemon.counters(old)["spawned"] == 1, "the old watch's child")
    daemons.configure(_watch(new, old))
    daemon.reload()
    root = daemon.wait_for(Root, watch=new)
    assert (root.pid, root.cause) == (other.pid, "running")
    eventually(lambda: {line.pid for line in daemon.of(Adopt, watch=new)} == children, "its children to be adopted")
    kept, added = daemon.counters(old), daemon.counters(new)
    assert (kept["spawned"], kept["adopted"], kept["alive"]) == (1, 0, 1)
    assert (added["spawned"], added["adopted"], added["alive"]) == (0, 2, 2)
    app.release()
    other.release()
    eventually(lambda: len(daemon.of(Exit)) == 5, "everybody's exit")
    daemon.stop()


def test_watch_that_is_removed_is_forgotten(daemons: Daemons, programs: Programs, name: str) -> None:
    stays, goes = f"{name}a", f"{name}b"
    daemons.configure(_watch(stays, goes))
    daemon = daemons.start()
    app, other = programs.start("family", stays, "1"), programs.start("family", goes, "2")
    other.fact("child", 2)
    eventually(lambda: daemon.counters(goes)["spawned"] == 2, "its children")
    daemons.configure(_watch(stays))
    daemon.reload()
    eventually(lambda: daemon.watched() == [stays], "the watch to go")
    eventually(lambda: daemon.ask("status")["kernel"]["kin"] == 2, "its kin to be strangers")
    other.release()
    programs.start("family", goes, "1").release()
    app.release()
    daemon.wait_for(Exit, watch=stays, pid=app.pid)
    assert daemon.of(Exit, watch=goes) == []
    assert [row["watch"] for row in daemon.ask("tree")["tree"]] == []
    daemons.configure(_watch(stays, goes))
    daemon.reload()
    eventually(lambda: daemon.watched() == [stays, goes], "the watch to come back")
    assert daemon.counters(goes)["spawned"] == 0, "it begins anew"
    daemon.stop()


def test_expectation_can_change(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch(name))
    daemon = daemons.start()
    programs.start("short_lived", name, "1").fact("children")
    eventually(lambda: daemon.counters(name)["exits"] == 1, "the child")
    daemons.configure(_watch(name, expect="expect = { child_processes = 0 }"))
    daemon.reload()

    def is_broken() -> bool:
        programs.start("short_lived", name, "1").fact("children")
        return bool(daemon.of(Alarm))

    eventually(is_broken, "an alarm of the new expectation")
    assert daemon.of(Root)[0].pid == daemon.of(Fork)[0].parent_pid
    assert daemon.counters(name)["spawned"] >= 2, "the watch itself stayed"
    daemon.stop()


def test_configuration_that_is_broken_changes_nothing(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch(name))
    daemon = daemons.start()
    app = programs.start("family", name, "1")
    app.fact("child")
    eventually(lambda: daemon.counters(name)["spawned"] == 1, "the child")
    for broken, complaint in (
        ("[[watch]]\nproces = 'x'\n", "did you mean process?"),
        ("[[watch\n", "is not TOML"),
        ("", "nothing to watch"),
        (f"[[watch]]\nname = 'deep'\ncgroup = '/{'x/' * 150}x'\n", "expected at most 255 bytes"),
    ):
        said = daemon.said.count("(nothing was changed)")
        daemons.configure(broken)
        daemon.reload()
        eventually(lambda n=said: daemon.said.count("(nothing was changed)") > n, f"a complaint about {broken!r}")  # type: ignore[misc]
        assert complaint in daemon.said
        assert daemon.watched() == [name]
    daemons.config.unlink()
    daemon.reload()
    daemon.wait_said("cannot be read")
    another = programs.start("family", name, "1")
    daemon.wait_for(Fork, pid=another.fact("child")["pid"])
    assert daemon.counters(name)["alive"] == 2
    app.release()
    another.release()
    daemon.wait_for(Exit, pid=another.pid)
    daemon.stop()


def test_watches_of_the_command_line_survive_a_reload(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch("something-else"))
    daemon = daemons.start("--watch", name)
    assert daemon.watched() == [name]
    daemons.configure(_watch("something-new"))
    rotated = daemon.log.with_suffix(".0")
    daemon.log.rename(rotated)
    daemon.reload()
    eventually(daemon.log.exists, "the reload")
    app = programs.start("family", name, "1")
    daemon.wait_for(Fork, pid=app.fact("child")["pid"])
    assert daemon.watched() == [name]
    daemon.stop()
