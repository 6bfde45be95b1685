"""Programs and maps outlive a daemon that crashed; the next one goes on where it stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.core import PINS
from monitor.engine.lines import Adopt, Exit, Fork, Root
from tests.contract.conftest import KINWATCH, eventually
from tests.kernel.conftest import kinwatch, pinned, sentence

if TYPE_CHECKING:
    from tests.contract.conftest import Program, Programs
    from tests.kernel.conftest import Daemon, Daemons

CRASHES = 100 if os.environ.get("KINWATCH_LONG") == "1" else 6
TURNS = 1_000 if os.environ.get("KINWATCH_LONG") == "1" else 200
UNWATCHED_S = 2.0 if os.environ.get("KINWATCH_LONG") == "1" else 0.3
"""How long a storm goes on without a daemon."""
SECOND = timedelta(seconds=1)
ROOMY = "[capture]\nring_bytes = 67108864\n"


def _pids(app: Program, first_wall_ns: int, last_wall_ns: int) -> set[int]:
    """Those a storm made between two moments."""
    turns = [turn for turn in app.facts("turn") if first_wall_ns < turn["wall_ns"] < last_wall_ns]
    return {pid for turn in turns for pid in turn["pids"]}


def _storm_on(daemon: Daemon, name: str) -> None:
    begun = daemon.counters(name)["spawned"]
    eventually(lambda: daemon.counters(name)["spawned"] >= begun + 2 * TURNS, f"{TURNS} turns of the storm")


def test_what_happens_while_no_daemon_runs_is_told_by_the_next(daemons: Daemons, built: Programs, name: str) -> None:
    daemons.configure(ROOMY)
    first = daemons.start("--watch", name)
    assert first.origin == "new"
    app = built.start("storm", name)
    _storm_on(first, name)
    since = first.ask("status")["since"]
    first.kill()
    killed_ns = time.time_ns()
    assert pinned()
    time.sleep(UNWATCHED_S)
    again_ns = time.time_ns()
    second = daemons.start("--watch", name)
    assert "taken over" in second.ready_line
    assert second.origin == "taken over"
    # Kept by the boot clock and told by the wall clock: not the same to the last digit.
    assert abs(datetime.fromisoformat(second.ask("status")["since"]) - datetime.fromisoformat(since)) < SECOND
    _storm_on(second, name)
    app.go()
    turns = app.fact("paused")["turns"]
    counted = second.counters(name)
    assert (counted["spawned"], counted["exits"]) == (2 * turns, 2 * turns), "over both lives"
    assert (counted["alive"], counted["roots"], counted["root_starts"], counted["adopted"]) == (0, 1, 1, 0)
    app.release()
    second.wait_for(Exit, pid=app.pid)
    second.stop()
    meanwhile = _pids(app, killed_ns, again_ns)
    assert meanwhile, "the storm went on without a daemon"
    assert meanwhile <= {line.pid for line in second.of(Fork)}
    assert meanwhile <= {line.pid for line in second.of(Exit)}
    assert len(second.of(Root)) == 1, "it was a root before: nothing new"
    assert second.of(Adopt) == []
    assert not pinned(), "a clean stop unloads"


def test_a_restart_leaves_the_watching_to_the_next_daemon(daemons: Daemons, programs: Programs, name: str) -> None:
    first = daemons.start("--watch", name)
    app = programs.start("short_lived", name, "7")
    app.fact("children")
    first.send(signal.SIGUSR2)
    assert first.wait() == 0
    assert pinned()
    meanwhile = programs.start("short_lived", name, "20")
    meanwhile.fact("children")
    second = daemons.start("--watch", name)
    assert second.origin == "taken over"
    assert second.counters(name)["spawned"] == 27
    second.stop()
    assert not pinned(), "a clean stop unloads"
    told = [report["custom_metrics"][f"num_child_procs_{name}"][0]["number"] for report in second.reports()]
    assert told == [7, 20], "each report has what no other had"


def test_window_goes_on_over_a_crash(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.configure("", keep="always")
    first = daemons.start("--watch", name)
    programs.start("short_lived", name, "7").fact("children")
    first.stop()
    assert first.metrics()[f"num_child_procs_{name}"] == 7
    second = daemons.start("--watch", name)
    assert second.origin == "taken over"
    programs.start("short_lived", name, "20").fact("children")
    second.kill()
    programs.start("short_lived", name, "300").fact("children")
    third = daemons.start("--watch", name)
    programs.start("short_lived", name, "4000").fact("children")
    third.stop()
    assert len(third.reports()) == 2, "one a clean stop; a crash writes none"
    assert third.metrics()[f"num_child_procs_{name}"] == 4320, "since the first daemon's report"
    assert third.metrics()[f"child_procs_spawned_{name}"] == 4320
    first_report, last_report = third.reports()
    assert last_report["header"]["report_id"] > first_report["header"]["report_id"]


def test_peak_of_a_window_goes_on_over_a_crash(daemons: Daemons, programs: Programs, name: str) -> None:
    first = daemons.start("--watch", name)
    app = programs.start("family", name, "5")
    app.fact("child", 5)
    eventually(lambda: first.counters(name)["alive"] == 5, "five children")
    app.release()
    first.wait_for(Exit, pid=app.pid)
    first.kill()
    second = daemons.start("--watch", name)
    assert second.counters(name)["peak"] == 5
    second.stop()
    assert second.metrics()[f"child_procs_peak_{name}"] == 5
    assert second.metrics()[f"child_procs_alive_{name}"] == 0


def _lineage(daemon: Daemon) -> list[dict[str, object]]:
    """The tree without executables: the kernel's table does not keep them."""
    return [{key: row[key] for key in row if key != "exe"} for row in daemon.ask("tree")["tree"]]


def test_tree_is_whole_after_a_takeover(daemons: Daemons, programs: Programs, name: str) -> None:
    first = daemons.start("--watch", name)
    app = programs.start("family", name, "2", "1")
    told = [app.fact("child", number) for number in range(1, 5)]
    eventually(lambda: len(first.of(Fork)) == 4, "all forks")
    before = _lineage(first)
    assert len(before) == 5
    first.kill()
    second = daemons.start("--watch", name)
    assert _lineage(second) == before
    app.release()
    for fact in told:
        exit_ = second.wait_for(Exit, pid=fact["pid"])
        assert exit_.depth == fact["depth"]
    second.stop()


def test_alarm_that_a_crash_left_behind_is_raised_or_cleared_by_the_next(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    first = daemons.start("--watch", name, "--expect", "child_processes=0")
    app = programs.start("family", name, "1")
    app.fact("child")
    eventually(lambda: len(first.reports()) == 1, "the immediate report")
    first.kill()
    second = daemons.start("--watch", name, "--expect", "child_processes=0")
    app.release()
    second.wait_for(Exit, pid=app.pid)
    second.stop()
    kinds = [type(line).__name__ for line in second.lines() if type(line).__name__ in {"Alarm", "Clear"}]
    assert kinds in (["Alarm", "Clear"], ["Alarm", "Alarm", "Clear"]), "an alarm does not stay for ever"


def test_fresh_takes_nothing_over(daemons: Daemons, programs: Programs, name: str) -> None:
    first = daemons.start("--watch", name)
    app = programs.start("family", name, "3")
    app.fact("child", 3)
    eventually(lambda: first.counters(name)["spawned"] == 3, "three children")
    first.kill()
    second = daemons.start("--watch", name, fresh=True)
    assert second.origin == "new"
    assert "taken over" not in second.ready_line
    counted = second.counters(name)
    assert (counted["spawned"], counted["adopted"], counted["alive"], counted["roots"]) == (0, 3, 3, 1)
    second.stop()


def test_second_daemon_is_refused(daemons: Daemons, programs: Programs, name: str) -> None:
    first = daemons.start("--watch", name)
    refused = kinwatch("run", "--watch", "other", "--capture", "core")
    assert refused.returncode == 3
    assert "another kinwatch daemon is running" in sentence(refused)
    forced = kinwatch("run", "--watch", "other", "--capture", "core", "--fresh")
    assert forced.returncode == 3, "--fresh is no way around the lock"
    assert pinned()
    app = programs.start("family", name, "1")
    first.wait_for(Fork, pid=app.fact("child")["pid"])
    first.stop()


def test_unload_refuses_while_a_daemon_runs_and_removes_what_a_crash_left(daemons: Daemons, name: str) -> None:
    first = daemons.start("--watch", name)
    refused = kinwatch("unload")
    assert refused.returncode == 3
    assert "another kinwatch daemon is running" in sentence(refused)
    assert pinned()
    first.kill()
    assert pinned()
    done = kinwatch("unload")
    assert (done.returncode, pinned()) == (0, False)
    assert PINS in done.stderr
    assert kinwatch("unload").returncode == 0, "nothing to do is no failure"


def test_clean_stop_leaves_no_pin_unless_it_is_to_go_on(daemons: Daemons, programs: Programs, name: str) -> None:
    first = daemons.start("--watch", name)
    assert pinned()
    first.stop()
    assert not pinned()
    daemons.configure("", keep="always")
    second = daemons.start("--watch", name)
    assert second.origin == "new"
    second.stop()
    assert pinned()
    app = programs.start("family", name, "2")
    pids = {app.fact("child", number)["pid"] for number in (1, 2)}
    third = daemons.start("--watch", name)
    assert third.origin == "taken over"
    eventually(lambda: {line.pid for line in third.of(Fork)} == pids, "those forked while no daemon ran")
    third.stop()


def test_takeover_with_other_watches(daemons: Daemons, programs: Programs, name: str) -> None:
    stays, goes, comes = (f"{name}{letter}" for letter in "abc")
    first = daemons.start("--watch", stays, "--watch", goes)
    apps = {each: programs.start("family", each, "2") for each in (stays, goes, comes)}
    for app in apps.values():
        app.fact("child", 2)
    eventually(lambda: all(first.counters(each)["spawned"] == 2 for each in (stays, goes)), "the children")
    first.kill()
    second = daemons.start("--watch", comes, "--watch", stays)
    assert second.origin == "taken over"
    assert second.watched() == [stays, comes]
    kept, taken = second.counters(stays), second.counters(comes)
    assert (kept["spawned"], kept["adopted"], kept["alive"], kept["roots"]) == (2, 0, 2, 1)
    assert (taken["spawned"], taken["adopted"], taken["alive"], taken["roots"]) == (0, 2, 2, 1)
    assert second.ask("status")["kernel"]["kin"] == 6
    for app in apps.values():
        app.release()
    for each in (stays, comes):
        second.wait_for(Exit, pid=apps[each].pid)
    assert second.of(Exit, watch=goes) == []
    assert second.ask("status")["kernel"]["kin"] == 0
    second.stop()
    third = daemons.start("--watch", goes)
    assert third.counters(goes)["spawned"] == 0, "a watch that was forgotten begins anew"
    third.stop()


def test_watch_of_the_same_name_that_matches_something_else_begins_anew(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    daemons.configure(f'[[watch]]\nname = "app"\nprocess = "{name}a"\n')
    first = daemons.start()
    app = programs.start("family", f"{name}a", "2")
    app.fact("child", 2)
    eventually(lambda: first.counters("app")["spawned"] == 2, "the children")
    first.kill()
    daemons.configure(f'[[watch]]\nname = "app"\nprocess = "{name}b"\n')
    second = daemons.start()
    counted = second.counters("app")
    assert (counted["spawned"], counted["alive"], counted["roots"]) == (0, 0, 0)
    other = programs.start("family", f"{name}b", "1")
    eventually(lambda: second.counters("app")["spawned"] == 1, "the other application's child")
    other.release()
    app.release()
    second.wait_for(Exit, pid=other.pid)
    assert not {app.pid} & {line.pid for line in second.of(Exit)}
    second.stop()


def test_pins_that_are_no_whole_set_are_replaced(daemons: Daemons, programs: Programs, name: str) -> None:
    daemons.start("--watch", name).kill()
    Path(PINS, "link_on_exit").unlink()
    second = daemons.start("--watch", name)
    assert second.origin != "taken over"
    app = programs.start("family", name, "1")
    child = app.fact("child")["pid"]
    app.release()
    second.wait_for(Exit, pid=child)
    second.stop()
    assert not pinned()


def test_crash_in_the_middle_of_pinning_leaves_nothing_in_the_way(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    for suffix in ("_new", "_old"):
        Path(PINS + suffix).mkdir()
    daemon = daemons.start("--watch", name)
    app = programs.start("family", name, "1")
    daemon.wait_for(Fork, pid=app.fact("child")["pid"])
    daemon.stop()
    assert not [path for path in Path(PINS).parent.iterdir() if path.name.startswith("kinwatch")]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"generation":"\xff"}', b'{"generation":1}', b"\0" * 512])
def test_window_file_that_is_damaged_is_begun_anew(
    daemons: Daemons, programs: Programs, name: str, damage: bytes
) -> None:
    daemons.configure("", keep="always")
    first = daemons.start("--watch", name)
    programs.start("short_lived", name, "7").fact("children")
    first.stop()
    (daemons.directory / "window.json").write_bytes(damage)
    second = daemons.start("--watch", name)
    second.stop()
    assert second.metrics()[f"num_child_procs_{name}"] == 7, "the window begins with the counters: long, and right"


def test_crash_at_any_moment_of_the_start_is_in_nobodys_way(daemons: Daemons, programs: Programs, name: str) -> None:
    dice = random.Random(20_240_607)  # noqa: S311 - repeatable
    command: list[str | Path] = [KINWATCH, "run", "-c", daemons.config, "--capture", "core", "--watch", name]
    for _ in range(CRASHES):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as life:
            time.sleep(dice.uniform(0.1, 0.6))
            life.kill()
    daemon = daemons.start("--watch", name)
    app = programs.start("family", name, "1")
    daemon.wait_for(Fork, pid=app.fact("child")["pid"])
    assert len(daemon.of(Root)) == 1
    pins = {path.name for path in Path(PINS).parent.iterdir() if path.name.startswith("kinwatch")}
    assert pins == {"kinwatch", "kinwatch_net"}
    counted = daemon.counters(name)
    assert (counted["roots"], counted["alive"], counted["spawned"]) == (1, 1, 1)
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    daemon.stop()
    assert not pinned()


def test_other_sizes_in_the_configuration_hold_after_a_takeover(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    first = daemons.start("--watch", name)
    app = programs.start("family", name, "3")
    app.fact("child", 3)
    eventually(lambda: first.counters(name)["spawned"] == 3, "three children")
    first.kill()
    daemons.configure("[capture]\nmax_processes = 64\n")
    second = daemons.start("--watch", name)
    assert second.counters(name)["spawned"] == 3
    more = programs.start("family", name, "100")
    more.fact("child", 100)
    assert second.counters(name)["spawned"] == 64 - 2, "two roots and 62 descendants fill the table"
    second.stop()


def test_start_that_is_refused_leaves_no_pin(daemons: Daemons, name: str) -> None:
    done = kinwatch("run", "-c", daemons.config, "--capture", "core", "--watch", name, "--log", "/nowhere/at/all")
    assert done.returncode == 2, done.stderr
    assert not pinned()
