"""Windows are judged once each, whatever restarts; verdicts are lines of the event log.

Owns counters and a device of its own making, so that a window is what a test says. Refuses to know captures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.config import Config, Expect, Watch
from monitor.defender.report import document
from monitor.defender.values import metric_values
from monitor.detect.device import Connection, DeviceReading, NetworkStats, Port, blocks, device_values
from monitor.detect.evaluator import INVALID_AFTER_S
from monitor.detect.profile import DEVICE_SIDE
from monitor.engine import lines
from monitor.engine.lines import Alarm, Clear, Enforced
from monitor.errors import ConfigInvalid
from monitor.judging.detection import Detection, Said
from monitor.judging.names import Names
from monitor.judging.plan import Plan, plan
from monitor.judging.said import enforced_line, moment
from monitor.schema import Defender, Detect
from monitor.window import FileStore, Window
from tests.unit.service import NO_NETWORK, Counters
from tests.unit.test_device import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = Watch(name="myapp", kind="process", value="myapp")
NOON_S = 1_795_600_000


class Machine(Counters):
    """Counters at a time, and a device."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s: float = NOON_S
        self.reading: DeviceReading = NO_NETWORK

    def snapshot(self, reader: int | None, mark: int) -> Any:  # noqa: ANN401 - as Counters
        """Now."""
        made = super().snapshot(reader, mark)
        return msgspec.structs.replace(made, wall_ns=round(self.now_s * 1e9))

    def device(self) -> DeviceReading:
        """Now."""
        return self.reading


def behavior(name: str, metric: str, operator: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    criteria = {"comparisonOperator": operator, "value": value} | more.pop("criteria", {})
    return {"name": name, "metric": metric, "criteria": criteria} | more


FEW = behavior("few", "child_procs_spawned_myapp", "less-than-equals", {"number": 1})


class Life:
    """A daemon's Detect, over its lives."""

    def __init__(self, directory: Path) -> None:
        self.machine, self.directory, self.generation = Machine(), directory, 1
        self.profile = directory / "profile.json"
        self.detection: Detection
        self.kin = b""
        """Live kin, as the engine's tree."""

    def plan(self, *behaviors: dict[str, Any]) -> Plan:
        """As the configuration names a file with these."""
        self.profile.write_text(json.dumps({"securityProfileName": "p", "behaviors": behaviors}))
        return plan(Config(watches=(APP,), detect=Detect(security_profile=str(self.profile))))

    def begin(self, *behaviors: dict[str, Any], anew: bool = False) -> Said:
        """A new process."""
        machine: Any = self.machine
        self.detection = Detection(
            self.plan(*behaviors) if behaviors else plan(Config(watches=(APP,))),
            lambda held: Window(machine, machine, 2, machine.device, store=held, generation=self.generation),
            kin=lambda: self.kin,
            store=FileStore(self.directory / "detect.json"),
            anew=anew,
        )
        told = self.detection.resumed(self.machine.now_s)
        self.detection.begin()
        return told

    def window(self, spawned: int = 0, after_s: float = 300) -> list[Any]:
        """The lines at the end of a window."""
        self.machine.spawned += spawned
        self.machine.now_s += after_s
        said = self.detection.judge()
        self.detection.settle()
        return decoded(said.lines)


def decoded(told: bytes) -> list[Any]:
    return [lines.decode(line) for line in told.splitlines()]


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def test_a_window_alarms_and_the_next_one_clears(life: Life) -> None:
    life.begin(FEW, anew=True)
    assert life.window(spawned=1) == []
    (alarm,) = life.window(spawned=2)
    assert isinstance(alarm, Alarm)
    assert (alarm.watch, alarm.behavior, alarm.metric, alarm.value) == ("myapp", "few", "child_procs_spawned_myapp", 2)
    assert msgspec.to_builtins(alarm.criteria) == {"comparisonOperator": "less-than-equals", "value": {"number": 1}}
    assert alarm.time == alarm.since == moment(life.machine.now_s)
    assert life.window(spawned=2) == []
    (clear,) = life.window()
    assert isinstance(clear, Clear)
    assert (clear.value, clear.since, clear.invalidated) == (0, alarm.since, msgspec.UNSET)


def test_a_line_has_its_keys_in_the_order_of_the_engines(life: Life) -> None:
    life.begin(FEW, anew=True)
    life.machine.spawned = 2
    keys = list(json.loads(life.detection.judge().lines))
    assert keys == ["time", "event", "watch", "behavior", "metric", "value", "criteria", "since"]


def test_an_alarm_about_descendants_names_those_that_live(life: Life) -> None:
    tree = (
        b'{"pid":7,"process_id":"7-70","comm":"app","watches":[{"watch":"myapp","root":true}]}\n'
        b'{"pid":8,"process_id":"8-80","parent_process_id":"7-70","comm":"sh","exe":"/bin/sh",'
        b'"watches":[{"watch":"myapp","depth":1,"root_process_id":"7-70"}]}\n'
    )
    life.kin = tree
    life.begin(FEW, behavior("quiet", "bytes_out_myapp", "less-than", {"number": 0}), anew=True)
    alarm, other = life.window(spawned=2)
    assert (alarm.behavior, alarm.process_ids) == ("few", ("8-80",))
    assert [(one.pid, one.comm, one.exe) for one in alarm.lineage] == [
        (7, "app", msgspec.UNSET),
        (8, "sh", "/bin/sh"),
    ]
    assert (other.process_ids, other.lineage) == (msgspec.UNSET, msgspec.UNSET)
    clear, *_ = life.window()
    assert isinstance(clear, Clear)
    assert clear.process_ids is msgspec.UNSET


def test_what_was_counted_before_a_profile_came_is_no_datapoint(life: Life) -> None:
    life.machine.spawned = 1000
    life.begin(FEW)
    assert life.window(spawned=1) == []


def test_what_was_counted_since_the_start_of_the_capture_is(life: Life) -> None:
    life.machine.spawned = 2
    life.begin(FEW, anew=True)
    assert [type(line) for line in life.window()] == [Alarm]


def test_a_restart_in_a_window_changes_nothing(life: Life) -> None:
    life.begin(FEW, anew=True)
    assert [type(line) for line in life.window(spawned=2)] == [Alarm]
    life.machine.spawned += 2
    assert life.begin(FEW) == Said()
    assert life.detection.left_s(300, round((life.machine.now_s + 100) * 1e9)) == pytest.approx(200)
    assert life.window() == [], "two of the window before the restart: the alarm holds"
    life.begin(FEW)
    assert [type(line) for line in life.window()] == [Clear]


def test_a_window_that_was_judged_and_not_told_is_judged_again(life: Life) -> None:
    life.begin(FEW, anew=True)
    life.window()
    life.machine.spawned += 2
    life.machine.now_s += 300
    lost = life.detection.judge().lines  # killed before anybody heard it
    life.begin(FEW)
    (again,) = life.window(after_s=0)
    assert decoded(lost) == [again]


def test_counters_that_begin_anew_have_a_window_of_their_own(life: Life) -> None:
    life.begin(FEW, anew=True)
    life.window(spawned=1000)
    life.machine = Machine()
    life.machine.now_s = NOON_S + 86_400
    life.generation = 2
    life.begin(FEW, anew=True)
    assert life.detection.left_s(300, round(life.machine.now_s * 1e9)) == 300, "not at once, however long it was away"
    assert [type(line) for line in life.window(spawned=1)] == [Clear], "the alarm survived"


def test_an_alarm_whose_behavior_went_or_changed_is_invalidated(life: Life) -> None:
    ports = behavior("ports", "aws:listening-tcp-ports", "in-port-set", {"ports": []})
    life.begin(FEW, ports, anew=True)
    life.machine.reading = msgspec.structs.replace(NO_NETWORK, tcp=rows_of([Port(22), Port(22, "::")]))
    few, listening = life.window(spawned=2)
    assert (few.value, listening.value, listening.watch) == (2, (22,), msgspec.UNSET)
    changed = behavior("few", "child_procs_spawned_myapp", "less-than-equals", {"number": 5})
    told = life.begin(changed)
    gone = {line.behavior: line for line in decoded(told.lines)}
    assert [(name, line.invalidated) for name, line in gone.items()] == [("few", True), ("ports", True)]
    assert gone["few"].value == 2
    assert gone["ports"].value is msgspec.UNSET, "of a list nothing is remembered"
    life.detection.settle()
    assert life.begin(changed) == Said(), "it is told once"


def test_a_profile_that_is_taken_away_ends_its_alarms_and_leaves_nothing(life: Life) -> None:
    life.begin(FEW, anew=True)
    life.window(spawned=2)
    told = life.begin()
    assert [line.invalidated for line in decoded(told.lines)] == [True]
    life.detection.settle()
    assert not life.detection.active
    life.machine.spawned += 1000
    assert life.detection.judge() == Said()
    life.begin(FEW)
    assert life.window() == [], "what came while nobody judged is no datapoint"


def test_a_reload_changes_the_profile_between_two_windows(life: Life) -> None:
    life.begin(FEW, anew=True)
    life.window(spawned=2)
    none = plan(Config(watches=(APP,)))
    (clear,) = decoded(life.detection.change(none, life.machine.now_s).lines)
    assert clear.invalidated is True
    life.machine.spawned += 1000
    assert life.window() == []
    assert life.detection.change(life.plan(FEW), life.machine.now_s) == Said()
    assert life.window(spawned=1) == []
    assert [type(line) for line in life.window(spawned=2)] == [Alarm]
    assert life.detection.change(life.plan(FEW), life.machine.now_s) == Said(), "the same profile again"
    assert [type(line) for line in life.window()] == [Clear]


def test_no_datapoint_for_two_days_ends_an_alarm(life: Life) -> None:
    life.begin(FEW, anew=True)
    life.window(spawned=2)
    life.begin(FEW)
    invalidated, alarm = life.window(spawned=2, after_s=INVALID_AFTER_S + 1)
    assert (type(invalidated), invalidated.invalidated, type(alarm)) == (Clear, True, Alarm)


def test_suppressed_alerts_stand_in_the_log_and_are_told_to_nobody(life: Life) -> None:
    hush = behavior("hush", "child_procs_spawned_myapp", "less-than", {"number": 1}, suppressAlerts=True)
    life.begin(FEW, hush, anew=True)
    life.machine.spawned = 2
    said = life.detection.judge()
    assert [(line.behavior, line.suppressed) for line in decoded(said.lines)] == [
        ("few", msgspec.UNSET),
        ("hush", True),
    ]
    assert [line.behavior for line in decoded(said.loud)] == ["few"]
    assert (said.lines_count, said.alarms) == (2, 1)


def test_an_empty_list_is_a_datapoint_and_clears(life: Life) -> None:
    life.begin(behavior("exes", "child_exes_myapp", "not-in-set", {"strings": ["/opt/g++"]}), anew=True)
    life.machine.exes = ("/bin/cat", "/opt/g++")
    (alarm,) = life.window()
    assert alarm.value == ("/bin/cat", "/opt/g++"), "as it is, not as a report may write it"
    life.machine.exes = ()
    (clear,) = life.window()
    assert clear.value == ()


def test_the_window_cut_short_is_judged_for_what_it_proves(life: Life) -> None:
    least = behavior("least", "child_procs_spawned_myapp", "greater-than", {"number": 10})
    life.begin(FEW, least, anew=True)
    life.machine.spawned = 2
    assert [line.behavior for line in decoded(life.detection.judge(whole=False).lines)] == ["few"]


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"behaviors":1}', b"\xff", b'{"window":{"x":1}}'])
def test_state_that_is_torn_is_forgotten(life: Life, torn: bytes) -> None:
    (life.directory / "detect.json").write_bytes(torn)
    life.begin(FEW, anew=True)
    assert [type(line) for line in life.window(spawned=2)] == [Alarm]


def test_a_full_disk_costs_the_memory_of_a_restart_only(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    life.begin(FEW, anew=True)
    monkeypatch.setattr(FileStore, "save", full)
    assert [type(line) for line in life.window(spawned=2)] == [Alarm]
    assert [type(line) for line in life.window()] == [Clear]


def test_without_a_profile_nothing_is_written(life: Life) -> None:
    life.begin()
    assert life.window() == []
    assert not (life.directory / "detect.json").exists()


def test_status_names_each_behavior_its_clock_and_its_alarm(life: Life) -> None:
    entries = (
        FEW,
        behavior("none", "num_child_procs_myapp", "less-than-equals", {"number": 0}),
        behavior("odd", "child_exes_myapp", "less-than", {"number": 1}),
        behavior("cloud", "aws:num-messages-sent", "less-than", {"count": 1}),
    )
    life.begin(*entries, anew=True)
    life.window(spawned=2)
    status = life.detection.status()
    rows = {row["name"]: row for row in status["behaviors"]}
    assert (status["profile"], status["windows"]) == ("p", 1)
    assert {name: row["clock"] for name, row in rows.items()} == {
        "few": "window",
        "none": "instant",
        "odd": "window",
        "cloud": "none",
    }
    assert (rows["few"]["in_alarm"], rows["odd"]["in_alarm"]) == (True, False)
    assert rows["odd"]["unfit"] == "less-than judges a number, the metric is a list"
    assert rows["cloud"]["why"] == "aws:num-messages-sent is measured in the cloud"


# -------- the device's own metrics --------

ports = st.frozensets(st.builds(Port, st.integers(1, 9), st.sampled_from(["", "::", "eth0"])), max_size=5).map(rows_of)
remotes = st.sampled_from(["10.0.0.1:443", "10.0.0.1:80", "[fd00::1]:443"])
stats = st.builds(NetworkStats, **dict.fromkeys(NetworkStats.__struct_fields__, st.integers(0, 99)))
readings = st.builds(
    DeviceReading,
    tcp=ports,
    udp=ports,
    connected=st.lists(st.builds(Connection, remotes, st.integers(1, 9)), max_size=4).map(rows_of),
    interfaces=st.dictionaries(st.sampled_from(["lo", "eth0"]), stats),
)


@given(st.none() | readings, readings)
def test_a_datapoint_of_the_device_is_what_a_report_would_say(before: DeviceReading | None, now: DeviceReading) -> None:
    def unordered(values: dict[str, Any]) -> dict[str, Any]:
        return {name: sorted(value) if isinstance(value, tuple) else value for name, value in values.items()}

    said = metric_values(document(1, (), blocks(before, now)))
    assert unordered(device_values(before, now, DEVICE_SIDE)) == unordered(said)


# -------- names, plans, words --------

ENGINE = (
    b'{"time":"t","event":"alarm","watch":"myapp","behavior":"child_processes","metric":"num_child_procs_myapp","value":1}\n'
    b'{"time":"t","event":"alarm","watch":"other","behavior":"child_processes","metric":"num_child_procs_other","value":1}\n'
    rb'{"time":"t","event":"exec","argv":["\"event\":\"alarm\",\"watch\":\"myapp\",\"behavior\":\"child_processes\""]}'
    b"\n"
)


def test_alarms_of_expectations_have_the_names_of_the_profile(life: Life) -> None:
    made = life.plan(behavior("No children", "child_procs_peak_myapp", "less-than", {"number": 1}))
    names = Names(made.names)
    first, second, third = names.named(ENGINE).splitlines()
    assert (json.loads(first)["behavior"], json.loads(first)["metric"]) == ("No children", "child_procs_peak_myapp")
    assert [second, third] == ENGINE.splitlines()[1:]
    names.change({})
    assert json.loads(names.named(ENGINE.replace(b"alarm", b"clear", 1)).splitlines()[0])["behavior"] == "No children"
    assert names.named(ENGINE) == ENGINE


def test_the_watches_expect_what_the_profile_says(life: Life) -> None:
    made = life.plan(behavior("none", "num_child_procs_myapp", "less-than", {"number": 1}), FEW)
    assert [watch.expect for watch in made.config.watches] == [Expect(child_processes=0)]
    assert [found.name for found in made.window.behaviors] == ["few"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: None, "there is no such file; 'aws iot describe-security-profile'"),
        (lambda path: path.mkdir(), "there is no such file"),
        (lambda path: path.write_text("{"), "this is not JSON"),
        (
            lambda path: path.write_text('{"behaviors":[{"name":"b","metric":"m","criteria":{}}]}'),
            r"behaviors\[0\].criteria",
        ),
    ],
)
def test_a_profile_that_cannot_be_read_is_refused_by_key_and_path(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "p.json"
    make(path)
    settings = Defender(thing="t", endpoint="e", security_profile=str(path))
    for config, key in (
        (Config(detect=Detect(security_profile=str(path)), origin="k.toml"), "detect"),
        (Config(defender=settings, origin="k.toml"), "defender"),
    ):
        with pytest.raises(ConfigInvalid, match=rf"^k\.toml: {key}\.security_profile: .*p\.json: {why}"):
            plan(config)


def test_what_the_configuration_switches_off_is_said_at_load(life: Life) -> None:
    entries = [
        behavior("wire", "wire_bytes_in_myapp", "less-than", {"number": 1}),
        behavior("peers", "destination_ips_myapp", "in-cidr-set", {"cidrs": []}),
    ]
    (wire,) = life.plan(*entries).notes()
    assert wire.startswith("behavior wire is not judged here: wire_bytes_in_myapp is not known")
    (peers,) = life.plan(*entries).unreported({"remotes"})
    assert peers.startswith("behavior peers is not judged here: destination_ips_myapp is not known")
    assert [one.clock for one in life.plan(*entries).found({"remotes"})] == ["none", "none"]
    later = life.plan(behavior("in", "bytes_in_myapp", "less-than", {"number": 1}))
    assert later.notes() == []
    assert "bytes_in_myapp" in later.unreported({"bytes_in"})[0]


@pytest.mark.parametrize(
    ("at_s", "text"),
    [(0, "1970-01-01T00:00:00.000000000Z"), (1_795_600_000.5, "2026-11-25T09:46:40.500000000Z")],
)
def test_a_moment_has_nine_digits(at_s: float, text: str) -> None:
    assert moment(at_s) == text


def test_an_action_is_a_line_without_what_it_does_not_know() -> None:
    line = lines.decode(enforced_line(0, watch="", process_id="", action="command", reason="few", error="exit 1"))
    assert line == Enforced(time=moment(0), action="command", reason="few", error="exit 1")
