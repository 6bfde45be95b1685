"""The whole loop over a real broker: a child, the alarm, the report, its answer, the window that ends with it.

Owns what reaches whom when nothing goes wrong. Refuses to know faults (test_faults).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from monitor.defender.responder import Faults, Heard, Responder
from monitor.defender.validate import parse
from tests.mqtt.rig import ALARMS, EVENTS, REPORTS, Kinwatch, defender, lines_of, shell, spawned, told

if TYPE_CHECKING:
    from tests.mqtt.broker import Broker

EXPECT = ("--expect", "child_processes=0")


@pytest.mark.parametrize("form", ["json", "cbor"])
@pytest.mark.parametrize("names", ["long", "short"])
def test_a_child_of_a_millisecond_is_an_alarm_and_an_accepted_report(
    broker: Broker, tmp_path: Path, form: Literal["json", "cbor"], names: str
) -> None:
    heard: list[Heard] = []
    responder = Responder(None, min_spacing_s=300, heard=heard.append)
    with defender(broker, responder) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k",
            broker,
            defender=f'format = "{form}"',
            report=f'interval_s = 3600\nnames = "{names}"',
            arguments=EXPECT,
            command=[shell(tmp_path)],
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            alarms = cloud.wait(ALARMS, lambda found: len(found) == 2)
            cloud.wait(REPORTS, bool)
            kinwatch.wait_until(lambda: len(heard) == 1)
        assert [alarm["event"] for alarm in alarms] == ["alarm", "clear"]
        assert {alarm["thing"] for alarm in alarms} == {"mything1"}
        assert len({alarm["alarm_id"] for alarm in alarms}) == 2
        assert told(alarms) == told(kinwatch.events("alarm", "clear"))
        assert [report.status for report in heard] == ["accepted"]
        assert heard[0].values["num_child_procs_myapp"] == 1
        topic, payload = next(message for message in cloud.messages if message[0].startswith(REPORTS))
        assert topic == REPORTS + form
        parse(payload, form)  # raises if it breaks a rule of the format
        keys = set(cloud.on(REPORTS)[0])
        assert keys == ({"header", "metrics", "custom_metrics"} if names == "long" else {"hed", "met", "cmet"})


def test_the_loop_is_the_same_over_paho(broker: Broker, tmp_path: Path) -> None:
    """Whatever the library: the alarm, the report, its answer, an end in good order, and no other library loaded."""
    heard: list[Heard] = []
    responder = Responder(None, min_spacing_s=300, heard=heard.append)
    with defender(broker, responder) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k", broker, defender='client = "paho"', arguments=EXPECT, command=[shell(tmp_path)]
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            alarms = cloud.wait(ALARMS, lambda found: len(found) == 2)
            kinwatch.wait_until(lambda: len(heard) == 1)
            assert kinwatch.process is not None
            maps = Path(f"/proc/{kinwatch.process.pid}/maps").read_text()
            assert kinwatch.stop() == 0
        assert told(alarms) == told(kinwatch.events("alarm", "clear"))
        assert [report.status for report in heard] == ["accepted"]
        assert "_awscrt" not in maps
        assert "Received DISCONNECT from mything1-kinwatch" in broker.log()


def test_alarms_within_the_spacing_share_the_report_that_leaves_when_it_may(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=2)) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k", broker, defender="min_spacing_s = 3", arguments=EXPECT, command=[shell(tmp_path)]
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(REPORTS, bool)
            for _ in range(5):
                kinwatch.tell("/bin/true")
            cloud.wait(ALARMS, lambda found: len(found) == 12)
            documents = cloud.wait(REPORTS, lambda found: spawned(found) >= 6)
        assert spawned(documents) == 6
        assert len(documents) < 6
        ids = [document["header"]["report_id"] for document in documents]
        assert ids == sorted(set(ids))


def test_the_event_log_reaches_its_topic_whole_and_in_order(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k",
            broker,
            defender='events_topic = "kinwatch/{thing}/events"\nevents_s = 1\nevents_bytes = 1024\nevents_gzip = true',
            command=[shell(tmp_path)],
        )
        with kinwatch:
            for _ in range(30):
                kinwatch.tell("/bin/true")
            cloud.wait(EVENTS, bool)  # it is connected: an end before that leaves all of them to the next life
            kinwatch.tell("exit")
            assert kinwatch.process is not None
            kinwatch.process.wait()
        batches = cloud.wait(EVENTS, lambda found: b'"depth":0' in b"".join(map(gzip.decompress, found[-1:])))
        assert b"".join(map(gzip.decompress, batches)) == kinwatch.log.read_bytes()
        assert len(batches) > 5
        assert max(len(gzip.decompress(batch)) for batch in batches) <= 1024


def test_a_storm_of_alarms_is_merged_and_none_is_missing(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = Kinwatch(tmp_path / "k", broker, arguments=EXPECT, command=[shell(tmp_path)])
        with kinwatch:
            kinwatch.tell("i=0; while [ $i -lt 500 ]; do /bin/true; i=$((i+1)); done; exit")
            assert kinwatch.process is not None
            kinwatch.process.wait()
        lines = kinwatch.events("alarm", "clear")
        assert len(lines) >= 1000
        messages = cloud.wait(ALARMS, lambda found: lines_of(found) == len(lines))
        assert len(messages) < 200
        assert told(messages[-1:]) == told(lines[-1:])


def test_without_a_topic_there_is_no_message_and_still_the_report(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k", broker, defender='alarm_topic = ""', arguments=EXPECT, command=[shell(tmp_path)]
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(REPORTS, bool)
        assert cloud.on(ALARMS) == []


def test_basic_ingest_is_a_topic_like_any_other(broker: Broker, tmp_path: Path) -> None:
    rule = "$aws/rules/alarms/kinwatch"
    broker.allow(f"user mything1-kinwatch\ntopic write {rule}\n")
    with defender(broker, Responder(None, min_spacing_s=0), rule) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k", broker, defender=f'alarm_topic = "{rule}"', arguments=EXPECT, command=[shell(tmp_path)]
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            assert [alarm["event"] for alarm in cloud.wait(rule, lambda found: len(found) == 2)] == ["alarm", "clear"]


def test_alarms_of_a_window_reach_the_topic_and_suppressed_ones_do_not(broker: Broker, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    criteria = {"comparisonOperator": "less-than", "value": {"number": 1}}
    judged = {"metric": "child_procs_spawned_myapp", "criteria": criteria}
    behaviors = [{"name": "hush", "suppressAlerts": True, **judged}, {"name": "few", **judged}]
    profile.write_text(json.dumps({"behaviors": behaviors}))
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k",
            broker,
            report="interval_s = 2",
            defender=f'security_profile = "{profile}"',
            command=[shell(tmp_path)],
        )
        with kinwatch:
            kinwatch.tell("/bin/true")
            alarms = cloud.wait(ALARMS, lambda found: len(found) == 2)
            kinwatch.wait_until(lambda: len(kinwatch.events("alarm", "clear")) >= 4)
        assert [(alarm["event"], alarm["behavior"], alarm["thing"]) for alarm in alarms] == [
            ("alarm", "few", "mything1"),
            ("clear", "few", "mything1"),
        ]
        logged = [(line["event"], line["behavior"]) for line in kinwatch.events("alarm", "clear")]
        assert sorted(logged[:2]) == [("alarm", "few"), ("alarm", "hush")]
        assert sorted(logged[2:4]) == [("clear", "few"), ("clear", "hush")]
        assert {alarm["behavior"] for alarm in cloud.on(ALARMS)} == {"few"}


@pytest.mark.parametrize("answered", [True, False])
def test_once_ends_with_what_became_of_its_report(broker: Broker, tmp_path: Path, answered: bool) -> None:  # noqa: FBT001
    with defender(broker, Responder(None, faults=Faults(drop_every=0 if answered else 1))) as cloud:
        kinwatch = Kinwatch(
            tmp_path / "k",
            broker,
            defender="answer_s = 2",
            arguments=["--pid", "1", "--once", "--interval-s", "1"],
        )
        with kinwatch:
            assert kinwatch.process is not None
            assert kinwatch.process.wait(60) == (0 if answered else 4), kinwatch.said()
        assert len(cloud.on(REPORTS)) == 1
