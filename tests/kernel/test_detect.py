"""A security profile judged by a running daemon: at the event, at the end of windows, over restarts; and what it does.

Owns profiles and the traces of commands. Refuses to judge behaviors: the units do.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from monitor.engine.lines import Alarm, Clear, Enforced, Exit, Fork
from tests.contract.conftest import eventually, open_place
from tests.kernel.conftest import kinwatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Cgroup, Daemon, Daemons

WINDOW = ("--interval-s", "1")


def behavior(name: str, metric: str, operator: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"name": name, "metric": metric, "criteria": {"comparisonOperator": operator, "value": value}} | more


def none_alive(name: str) -> dict[str, Any]:
    """A behavior of the window, about a state."""
    return behavior("none-alive", f"child_procs_alive_{name}", "less-than", {"number": 1})


def configure(daemons: Daemons, name: str, *behaviors: dict[str, Any], more: str = "", watch: str = "") -> Path:
    """A daemon that judges a profile with these."""
    profile = daemons.directory / "profile.json"
    profile.write_text(json.dumps({"securityProfileName": "p", "behaviors": behaviors}))
    matched = watch or f'process = "{name}"'
    daemons.configure(f'[[watch]]\nname = "{name}"\n{matched}\n[detect]\nsecurity_profile = "{profile}"\n{more}')
    return profile


def told(daemon: Daemon, behavior_name: str) -> list[str]:
    """The kinds of the lines about a behavior, in order."""
    return [
        type(line).__name__
        for line in daemon.lines()
        if isinstance(line, Alarm | Clear) and line.behavior == behavior_name
    ]


def windows(daemon: Daemon) -> int:
    """How many were judged in this life."""
    return int(daemon.ask("status")["detect"]["windows"])


def test_a_window_alarms_and_clears_without_any_report(daemons: Daemons, programs: Programs, name: str) -> None:
    configure(daemons, name, none_alive(name))
    daemon = daemons.start(*WINDOW)
    app = programs.start("family", name, "2")
    alarm = daemon.wait_for(Alarm, behavior="none-alive")
    assert alarm.metric == f"child_procs_alive_{name}"
    assert alarm.watch == name
    before = windows(daemon)
    eventually(lambda: windows(daemon) >= before + 2, "two more windows")
    assert told(daemon, "none-alive") == ["Alarm"], "once, however many windows it lasts"
    app.release()
    clear = daemon.wait_for(Clear, behavior="none-alive")
    assert (clear.value, clear.since) == (0, alarm.since)
    daemon.stop()
    assert told(daemon, "none-alive") == ["Alarm", "Clear"]


def test_an_alarm_of_a_window_sends_a_report_at_once(daemons: Daemons, programs: Programs, name: str) -> None:
    configure(daemons, name, none_alive(name))
    daemon = daemons.start(*WINDOW)
    app = programs.start("family", name, "1")
    daemon.wait_for(Alarm, behavior="none-alive")
    eventually(lambda: bool(daemon.reports()), "a report")
    app.release()
    daemon.stop()


def test_alarms_in_progress_and_the_window_survive_a_crash(daemons: Daemons, programs: Programs, name: str) -> None:
    configure(daemons, name, none_alive(name))
    first = daemons.start(*WINDOW)
    app = programs.start("family", name, "1")
    begun = first.wait_for(Alarm, behavior="none-alive")
    judged = windows(first)
    eventually(lambda: windows(first) > judged, "it to be remembered")
    first.kill()
    second = daemons.start(*WINDOW)
    assert second.origin == "taken over"
    eventually(lambda: windows(second) >= 2, "windows of the second life")
    assert told(second, "none-alive") == ["Alarm"], "the second life does not raise it again"
    app.release()
    clear = second.wait_for(Clear, behavior="none-alive")
    assert clear.since == begun.since
    second.stop()


def test_an_alarm_of_a_behavior_that_is_gone_at_the_next_start_is_invalidated(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    configure(daemons, name, none_alive(name))
    first = daemons.start(*WINDOW)
    app = programs.start("family", name, "1")
    first.wait_for(Alarm, behavior="none-alive")
    first.stop()
    configure(daemons, name)
    second = daemons.start(*WINDOW)
    clear = second.wait_for(Clear, behavior="none-alive")
    assert clear.invalidated is True
    app.release()
    second.stop()
    third = daemons.start(*WINDOW)
    third.stop()
    assert told(third, "none-alive").count("Clear") == 1


def test_what_an_expectation_says_as_well_is_told_at_the_fork_by_the_profiles_name(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    configure(daemons, name, behavior("No children", f"num_child_procs_{name}", "less-than-equals", {"number": 0}))
    daemon = daemons.start("--interval-s", "3600")
    app = programs.start("family", name, "1")
    fork = daemon.wait_for(Fork, watch=name)
    alarm = daemon.wait_for(Alarm)
    assert (alarm.behavior, alarm.metric) == ("No children", f"num_child_procs_{name}")
    assert alarm.process_ids == (fork.process_id,)
    assert alarm.lineage is not msgspec.UNSET
    assert [one.pid for one in alarm.lineage] == [app.pid, fork.pid]
    app.release()
    clear = daemon.wait_for(Clear)
    assert clear.behavior == "No children"
    (row,) = daemon.ask("status")["detect"]["behaviors"]
    assert row["clock"] == "instant"
    daemon.stop()


def test_a_reload_brings_and_takes_a_profile(daemons: Daemons, programs: Programs, name: str) -> None:
    configure(daemons, name)
    daemon = daemons.start(*WINDOW)
    app = programs.start("family", name, "1")
    app.fact("child")
    configure(daemons, name, none_alive(name))
    daemon.reload()
    daemon.wait_for(Alarm, behavior="none-alive")
    profile = configure(daemons, name, none_alive(name))
    profile.write_text("{")
    daemon.reload()
    daemon.wait_said("this is not JSON")
    assert "(nothing was changed)" in daemon.said
    configure(daemons, name, behavior("No children", f"num_child_procs_{name}", "less-than", {"number": 1}))
    daemon.reload()
    assert daemon.wait_for(Clear, behavior="none-alive").invalidated is True
    daemon.wait_for(Alarm, behavior="No children")
    configure(daemons, name)
    daemon.reload()
    assert daemon.wait_for(Clear, behavior="No children").invalidated is msgspec.UNSET
    app.release()
    daemon.stop()


def test_what_is_not_judged_is_said_at_the_start_and_by_doctor(daemons: Daemons, name: str) -> None:
    configure(
        daemons,
        name,
        none_alive(name),
        behavior("sent", "aws:num-messages-sent", "less-than", {"count": 1}),
        behavior("wire", f"packets_in_{name}", "less-than", {"number": 1}),
        behavior("other", "roots_nobody", "less-than", {"number": 1}),
    )
    daemon = daemons.start(*WINDOW)
    reasons = {
        "sent": "aws:num-messages-sent is measured in the cloud",
        "wire": f"packets_in_{name} is not known with this capture and configuration",
        "other": "no watch is called nobody",
    }
    for one, why in reasons.items():
        words = f"behavior {one} is not judged here: {why}"
        eventually(lambda words=words: words in daemon.said, words)  # type: ignore[misc]
    text = kinwatch("status", "--socket", daemon.socket).stdout
    assert "1 window, 3 none" in text
    daemon.stop()
    found = json.loads(kinwatch("doctor", "-c", daemons.config, "--json").stdout)
    rows = {row["name"]: row for row in found["clocks"]}
    assert {one: rows[one]["why"] for one in reasons} == reasons
    assert rows["none-alive"]["clock"] == "window"
    assert f"child_procs_alive_{name} < 1" in kinwatch("doctor", "-c", daemons.config).stdout


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '{"behaviors":[{"name":"b","metric":"m","criteria":{"value":{}}}]}',
            "behaviors[0].criteria.comparisonOperator",
        ),
        ("{", "this is not JSON"),
    ],
)
def test_a_wrong_profile_starts_nothing(daemons: Daemons, name: str, text: str, complaint: str) -> None:
    configure(daemons, name).write_text(text)
    for verb in (("run", "--log", "/dev/null"), ("doctor",)):
        done = kinwatch(*verb, "-c", daemons.config)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert str(daemons.directory / "profile.json") in done.stderr


def test_a_command_run_judges_its_last_window(programs: Programs, name: str, tmp_path: Path) -> None:
    profile, config, log = tmp_path / "p.json", tmp_path / "c.toml", tmp_path / "log"
    most = behavior("most", f"child_procs_spawned_{name}", "less-than", {"number": 2})
    least = behavior("least", f"child_procs_spawned_{name}", "greater-than", {"number": 9})
    profile.write_text(json.dumps({"behaviors": [most, least]}))
    config.write_text(f'[detect]\nsecurity_profile = "{profile}"\n')
    exe = programs.path("short_lived", name)
    done = kinwatch("run", "-c", config, "--capture", "core", "--log", log, "--", exe, "3", input="")
    assert done.returncode == 0, done.stderr
    raised = [json.loads(line) for line in log.read_text().splitlines() if '"event":"alarm"' in line]
    assert [(line["behavior"], line["value"]) for line in raised] == [("most", 3)]


# -------- actions --------

TOUCH = [
    "/bin/sh",
    "-c",
    'id -un > "$0/$KINWATCH_BEHAVIOR.new"; mv "$0/$KINWATCH_BEHAVIOR.new" "$0/$KINWATCH_BEHAVIOR"',
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a command that is nobody can leave a trace."""
    return open_place(tmp_path)


def action(command: list[str], **more: object) -> str:
    keys = {"command": command, **more}
    return "[detect.action]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def test_alarms_of_both_clocks_run_the_command_as_nobody(
    daemons: Daemons, programs: Programs, name: str, place: Path
) -> None:
    hush = behavior("hush", f"child_procs_alive_{name}", "less-than", {"number": 1}, suppressAlerts=True)
    entries = (behavior("instant", f"num_child_procs_{name}", "less-than", {"number": 1}), none_alive(name), hush)
    configure(daemons, name, *entries, more=action([*TOUCH, str(place)]))
    daemon = daemons.start(*WINDOW)
    app = programs.start("family", name, "1")
    for one in ("instant", "none-alive"):
        line = daemon.wait_for(Enforced, reason=one)
        assert (line.action, line.watch, line.error) == ("command", name, msgspec.UNSET)
        assert (place / one).read_text() == "nobody\n"
    alarm = daemon.wait_for(Alarm, behavior="hush")
    assert alarm.suppressed is True
    app.release()
    assert daemon.wait_for(Clear, behavior="hush").suppressed is True
    assert daemon.ask("status")["actions"]["commands"] == 2
    daemon.stop()
    assert sorted(path.name for path in place.iterdir()) == ["instant", "none-alive"]


def test_a_command_that_hangs_holds_up_neither_the_log_nor_the_end(
    daemons: Daemons, programs: Programs, name: str
) -> None:
    entry = behavior("instant", f"num_child_procs_{name}", "less-than", {"number": 1})
    configure(daemons, name, entry, more=action(["/bin/sleep", "1000"], timeout_s=1))
    daemon = daemons.start()
    app = programs.start("short_lived", name, "20")
    app.fact("children")
    eventually(lambda: len(daemon.of(Exit)) >= 20, "the log to go on")
    daemon.wait_for(Enforced, error="killed after 1 s")
    actions = daemon.ask("status")["actions"]
    assert actions["commands"] + actions["skipped"] == 20
    assert actions["commands"] >= 4
    app.release()
    daemon.stop()


def test_stop_stops_the_descendants_and_not_the_root(daemons: Daemons, programs: Programs, name: str) -> None:
    entry = behavior("instant", f"num_child_procs_{name}", "less-than", {"number": 1})
    configure(daemons, name, entry, more=action([], freeze="stop"))
    daemon = daemons.start()
    app = programs.start("family", name, "3", "1")
    eventually(lambda: len(daemon.of(Fork, depth=1)) == 3, "the children")

    def stopped() -> set[int]:
        return {line.pid for line in daemon.of(Fork) if _state(line.pid) == "T"}

    try:
        # Those that are stopped start no more children; whoever lives is stopped.
        eventually(lambda: stopped() == {line.pid for line in daemon.of(Fork)}, "all descendants to stop")
        assert _state(app.pid) == "S"
        eventually(
            lambda: (
                {line.process_id for line in daemon.of(Enforced, action="stop")}
                == {line.process_id for line in daemon.of(Fork)}
            ),
            "a line about each",
        )
    finally:
        for pid in stopped():
            os.kill(pid, signal.SIGCONT)
    app.release()
    daemon.stop()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_the_cgroup_of_a_watch_is_frozen(
    daemons: Daemons, programs: Programs, name: str, cgroup: Callable[[str], Cgroup], cgroup_name: str
) -> None:
    group = cgroup(cgroup_name)
    switch = group.path / "cgroup.freeze"
    entry = behavior("instant", f"num_child_procs_{name}", "less-than", {"number": 1})
    where = f'cgroup = "{group.name}"'
    configure(daemons, name, entry, more=action([], freeze="cgroup"), watch=where)
    daemon = daemons.start()
    app = programs.start("steady", name)
    app.fact("child")
    try:
        group.enter(app.pid)
        line = daemon.wait_for(Enforced, action="freeze")
        assert (line.watch, line.reason, line.process_id) == (name, "instant", msgspec.UNSET)
        assert switch.read_text() == "1\n"
        eventually(lambda: "frozen 1" in (group.path / "cgroup.events").read_text(), "it to stand still")
        daemon.stop()
    finally:
        switch.write_text("0")
    app.release()
