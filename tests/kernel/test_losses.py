"""Where details are lost: how many is known exactly, and the counts of processes are right all the same."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from monitor.engine.lines import Exec, Exit, Fork, Lost, Root
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemon, Daemons

LONG = os.environ.get("KINWATCH_LONG") == "1"
STORM = 100_000 if LONG else 2_000
PAGE_BYTES = 4096


def _lost(daemon: Daemon, stage: str) -> int:
    return sum(line.count for line in daemon.of(Lost, stage=stage))


def _all_accounted(daemon: Daemon, expected: int) -> bool:
    told = sum(len(daemon.of(kind)) for kind in (Root, Fork, Exec, Exit))
    return told + _lost(daemon, "ring_full") >= expected


def test_counters_are_exact_though_most_details_are_lost(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(f"[capture]\nring_bytes = {PAGE_BYTES}\n")
    daemon = daemons.start("--watch", name)
    daemon.send(signal.SIGSTOP)  # a reader that is too slow, whatever this machine is
    app = programs.start("short_lived", name, str(STORM))
    assert app.fact("children")["count"] == STORM
    daemon.send(signal.SIGCONT)
    eventually(lambda: daemon.counters(name)["exits"] == STORM, "the last exit to be counted")
    counted = daemon.counters(name)
    assert (counted["spawned"], counted["exits"], counted["alive"], counted["peak"]) == (STORM, STORM, 0, 1)
    assert (counted["roots"], counted["root_starts"], counted["execs"], counted["adopted"]) == (1, 1, 0, 0)
    records = 1 + 2 * STORM
    eventually(lambda: _all_accounted(daemon, records), "every record to be told or told to be lost")
    status = daemon.ask("status")
    told = len(daemon.of(Root)) + len(daemon.of(Fork)) + len(daemon.of(Exit))
    assert told + _lost(daemon, "ring_full") == records
    assert _lost(daemon, "ring_full") == status["lost"]["ring_full"] > STORM, "most were lost"
    assert told * 60 < PAGE_BYTES * 2, "no more than the ring held, and what came after"
    assert status["kernel"]["kin"] == 1
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()
    metrics = daemon.metrics()
    assert metrics[f"num_child_procs_{name}"] == STORM
    assert metrics[f"child_procs_spawned_{name}"] == STORM
    assert metrics["events_lost"] == status["lost"]["ring_full"]


def test_storm_against_a_reader_that_tries_is_exact_too(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(f"[capture]\nring_bytes = {PAGE_BYTES}\n")
    daemon = daemons.start("--watch", name)
    app = programs.start("short_lived", name, str(STORM))
    app.fact("children")
    app.release()
    records = 2 + 2 * STORM
    eventually(lambda: _all_accounted(daemon, records), "every record to be told or told to be lost")
    counted, lost = daemon.counters(name), daemon.ask("status")["lost"]
    assert (counted["spawned"], counted["exits"], counted["alive"], counted["roots"]) == (STORM, STORM, 0, 0)
    told = len(daemon.of(Root)) + len(daemon.of(Fork)) + len(daemon.of(Exit))
    assert told + _lost(daemon, "ring_full") == records
    assert _lost(daemon, "ring_full") == lost["ring_full"]
    assert {stage for stage, count in lost.items() if count} <= {"ring_full"}
    daemon.stop()


def test_tree_is_right_again_after_a_loss(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure(f"[capture]\nring_bytes = {PAGE_BYTES}\n")
    daemon = daemons.start("--watch", name)
    gone = programs.start("family", f"{name}a", "1")
    daemon.send(signal.SIGSTOP)
    app = programs.start("family", name, "100", "1")
    pids = {app.fact("child", number)["pid"] for number in range(1, 201)}
    daemon.send(signal.SIGCONT)

    def members() -> set[int]:
        found: set[int] = set()
        rows = list(daemon.ask("tree")["tree"])
        while rows:
            row = rows.pop()
            found.add(row["pid"])
            rows += row.get("children", [])
        return found

    eventually(lambda: members() == {app.pid, *pids}, "the tree to hold root, children and grandchildren")
    assert daemon.ask("status")["lost"]["ring_full"] > 0
    assert daemon.counters(name)["alive"] == 200
    assert not daemon.of(Fork, pid=gone.pid)
    app.release()
    eventually(lambda: members() == set(), "the tree to be empty")
    counted = daemon.counters(name)
    assert (counted["alive"], counted["roots"], counted["spawned"], counted["exits"]) == (0, 0, 200, 200)
    daemon.stop()


def test_more_kin_than_the_table_holds_is_counted_and_told(daemons: Daemons, programs: Programs, name: str) -> None:
    rows, children = 64, 100
    daemons.configure(f"[capture]\nmax_processes = {rows}\n")
    daemon = daemons.start("--watch", name)
    app = programs.start("family", name, str(children))
    pids = {app.fact("child", number)["pid"] for number in range(1, children + 1)}
    followed, beyond = rows - 1, children - (rows - 1)
    eventually(lambda: _lost(daemon, "table_full") == beyond, "the processes beyond the table to be told")
    counted, status = daemon.counters(name), daemon.ask("status")
    assert (counted["roots"], counted["alive"], counted["spawned"]) == (1, followed, followed)
    assert status["lost"]["table_full"] == beyond
    assert status["kernel"]["kin"] == rows
    forks = daemon.of(Fork)
    assert len(forks) == followed
    assert {line.pid for line in forks} < pids
    app.release()
    eventually(lambda: len(daemon.of(Exit)) == rows, "the exits of those followed")
    assert {line.pid for line in daemon.of(Exit)} == {app.pid} | {line.pid for line in forks}
    counted = daemon.counters(name)
    assert (counted["alive"], counted["roots"], counted["exits"]) == (0, 0, followed)
    again = programs.start("family", name, str(followed))
    again.fact("child", followed)
    eventually(lambda: daemon.counters(name)["alive"] == followed, "all of those that fit to be followed")
    assert _lost(daemon, "table_full") == beyond, "the table is free again"
    again.release()
    daemon.stop()
