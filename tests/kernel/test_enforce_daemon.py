"""Enforcement over the life of a daemon: reloads, its death, its successor, and what it tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.engine.lines import Enforced, Exit, Fork
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemons

COUNT = 100


def _watch(name: str, *, enforce: str = "kill", more: str = "") -> str:
    return (
        f'[[watch]]\nprocess = "{name}"\nenforce = "{enforce}"\nexpect = {{ child_processes = 0 }}\n'
        f"[enforcement]\nmax_kills_per_minute = 100000\n{more}"
    )


def _bytes(programs: Programs, name: str, way: str = "fork") -> int:
    """How many of COUNT attempts wrote their byte."""
    app = programs.start("attempts", name, way, str(COUNT))
    told = int(app.fact("attempts")["bytes"])
    app.release()
    return told


def test_each_kill_is_told(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch(name))
    daemon = daemons.start()
    assert _bytes(programs, name) == 0
    eventually(lambda: len(daemon.of(Exit)) == COUNT + 1, "all exits")
    told = daemon.of(Enforced)
    assert [line.process_id for line in told] == [line.process_id for line in daemon.of(Fork)]
    assert {(line.watch, line.action, line.reason) for line in told} == {(name, "kill", "child_processes")}
    counters = daemon.counters(name)
    assert (counters["enforced"], counters["would_enforce"], counters["spawned"]) == (COUNT, 0, COUNT)
    assert daemon.ask("status")["enforcement"] == "on"
    assert daemon.ask("status")["lost"]["bad_record"] == 0
    daemon.stop()


def test_a_dry_run_is_told(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch(name, enforce="dry-run"))
    daemon = daemons.start()
    assert _bytes(programs, name) == COUNT
    eventually(lambda: len(daemon.of(Enforced, action="would")) > 0, "what it would have done")
    counters = daemon.counters(name)
    assert counters["enforced"] == 0
    assert 0 < counters["would_enforce"] <= COUNT
    daemon.stop()


def test_a_reload_begins_and_ends_it(daemons: Daemons, programs: Programs, name: str) -> None:
    """Counters go on, for the watch is the same."""
    daemons.configure(_watch(name, enforce="off"))
    daemon = daemons.start()
    assert daemon.ask("status")["enforcement"] == "off"
    assert _bytes(programs, name) == COUNT
    daemons.configure(_watch(name))
    daemon.reload()
    eventually(lambda: daemon.ask("status")["enforcement"] == "on", "the reload")
    assert _bytes(programs, name) == 0
    daemons.configure(_watch(name, enforce="off"))
    daemon.reload()
    eventually(lambda: daemon.ask("status")["enforcement"] == "off", "the reload")
    assert _bytes(programs, name) == COUNT
    assert daemon.counters(name)["spawned"] == 3 * COUNT
    daemon.stop()


def test_the_breaker_is_told_and_a_reload_closes_it(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch(name).replace("100000", "10"))
    daemon = daemons.start()
    assert _bytes(programs, name) == COUNT - 10
    eventually(lambda: len(daemon.of(Enforced, action="spared")) > 0, "that the breaker spared somebody")
    assert daemon.ask("status")["enforcement"] == "stopped by the breaker"
    daemons.configure(_watch(name))
    daemon.reload()
    eventually(lambda: daemon.ask("status")["enforcement"] == "on", "the reload")
    assert _bytes(programs, name) == 0
    daemon.stop()


def test_failing_closed_it_outlives_the_daemon(daemons: Daemons, programs: Programs, name: str) -> None:
    """And the next one tells what was done meanwhile."""
    daemons.configure(_watch(name))
    daemons.start().kill()
    assert _bytes(programs, name) == 0
    daemon = daemons.start()
    assert daemon.origin == "taken over"
    assert daemon.counters(name)["enforced"] == COUNT
    eventually(lambda: len(daemon.of(Enforced)) == COUNT, "what was done without a daemon")
    assert _bytes(programs, name) == 0
    daemon.stop()


def test_a_breaker_that_trips_without_a_daemon_is_told_by_the_next(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    """Each kill up to it, and that somebody was spared; the start closes the breaker."""
    daemons.configure(_watch(name).replace("100000", "10"))
    daemons.start().kill()
    assert _bytes(programs, name) == COUNT - 10
    daemons.configure(_watch(name))
    daemon = daemons.start()
    assert daemon.origin == "taken over"
    eventually(lambda: len(daemon.of(Enforced, action="spared")) > 0, "that the breaker spared somebody")
    assert len(daemon.of(Enforced, action="kill", reason="child_processes")) == 10
    counters = daemon.counters(name)
    assert (counters["enforced"], counters["would_enforce"]) == (10, COUNT - 10)
    told = [line.action for line in daemon.of(Enforced)]
    assert told.index("spared") == 10, "in the order of what happened"
    assert daemon.ask("status")["enforcement"] == "on"
    assert _bytes(programs, name) == 0
    daemon.stop()


def test_failing_open_it_ends_with_the_daemon(daemons: Daemons, programs: Programs, name: str) -> None:
    """And begins again with the next one."""
    daemons.configure(_watch(name, more='fail = "open"\n'))
    first = daemons.start()
    assert _bytes(programs, name) == 0
    first.kill()
    assert _bytes(programs, name) == COUNT
    daemon = daemons.start()
    assert daemon.origin == "taken over"
    assert _bytes(programs, name) == 0
    counters = daemon.counters(name)
    assert (counters["enforced"], counters["spawned"]) == (2 * COUNT, 3 * COUNT)
    daemon.stop()


def test_a_daemon_that_wants_no_enforcement_any_more_ends_it(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(_watch(name))
    daemons.start().kill()
    daemons.configure(_watch(name, enforce="off"))
    daemon = daemons.start()
    assert _bytes(programs, name) == COUNT
    daemon.stop()


def test_a_storm_sees_no_gap_while_daemons_die(daemons: Daemons, programs: Programs, name: str) -> None:
    """Not one of the children that are forked while daemons come and go runs."""
    daemons.configure(_watch(name))
    daemon = daemons.start()
    app = programs.start("attempts", name, "fork", "20000")
    for _ in range(3):
        begun = daemon.counters(name)["enforced"]
        eventually(lambda: daemon.counters(name)["enforced"] > begun or bool(app.facts("attempts")), "more")  # noqa: B023
        daemon.kill()
        daemon = daemons.start()
    assert app.fact("attempts") == {"fact": "attempts", "bytes": 0, "killed": 20000, "failed": 0}
    assert daemon.counters(name)["enforced"] == 20000
    daemon.stop()
