"""Without Detect: IoT rules hear what devices say on their topics, and nothing that they carry gets lost unseen.

Owns the comparison with topics, lines and the API's model. Refuses to know how a template is written.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from monitor.cloud.ingest import source
from monitor.cloud.tables import alarm_columns, event_columns
from monitor.cloud.template import alarming
from monitor.engine import lines
from monitor.errors import ConfigInvalid
from monitor.judging.plan import NO_PROFILE
from monitor.publishing import topic
from monitor.schema import Defender
from tests.cloud.account import Account, faults, structure_faults
from tests.cloud.configurations import DEFENDER, EXPECTING, MYAPP, PROFILE, TEXTS, configured, made

each = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
HIVE = re.compile(r"(string|bigint|double|boolean|array<[a-z_:,<>]+>|struct<[a-z_:,<>]+>)\Z")
ALARM_LINE = (
    b'{"time":"2026-01-01T00:00:00.000000000Z","event":"alarm","watch":"myapp","behavior":"depth","metric":"depth",'
    b'"value":3,"criteria":{"comparisonOperator":"less-than-equals","value":{"number":2}},"since":"x",'
    b'"process_ids":["1-2"],"lineage":[{"process_id":"1-2","pid":1}]}'
)


def account(text: str, profile: dict[str, Any] | None = None) -> Account:
    """The account that has the template."""
    return Account(made(text, profile, detect=False).document)


def heard(name: str, rule: dict[str, Any]) -> bool:
    """Whether a rule selects from a topic, as MQTT matches filters."""
    (selected,) = re.findall(r"^SELECT \* FROM '([^']*)'$", rule["TopicRulePayload"]["Sql"])
    wanted, found = selected.split("/"), name.split("/")
    return len(wanted) == len(found) and all(one in {"+", other} for one, other in zip(wanted, found, strict=True))


@each
def test_the_api_would_take_every_rule(text: str) -> None:
    for rule in account(text).of_type("AWS::IoT::TopicRule"):
        assert structure_faults("TopicRulePayload", rule["TopicRulePayload"]) == []
        assert structure_faults("RuleName", rule["RuleName"]) == []


@each
def test_the_api_would_take_streams_alarms_and_tables(text: str) -> None:
    of = account(text)
    for stream in of.of_type("AWS::KinesisFirehose::DeliveryStream"):
        target = stream["ExtendedS3DestinationConfiguration"]
        target = {key: value for key, value in target.items() if key not in {"BucketARN", "RoleARN"}}
        assert {"CompressionFormat", "Prefix", "ErrorOutputPrefix"} <= set(target)
    for alarm in of.of_type("AWS::CloudWatch::Alarm"):
        named = {key: value for key, value in alarm.items() if key != "AlarmDescription"}
        assert {"Namespace", "MetricName", "Threshold"} <= set(named)
    names = [alarm["MetricName"] for alarm in of.of_type("AWS::CloudWatch::Alarm")]
    assert len(set(names)) == len(names)


@each
def test_the_rules_hear_the_topics_of_every_device(text: str) -> None:
    rules = account(text).of_type("AWS::IoT::TopicRule")
    defender = configured(text).defender or Defender(thing="x", endpoint="localhost")
    for thing in ("mything1", "another:thing_2"):
        of_thing = msgspec.structs.replace(defender, thing=thing)
        for key in ("alarm_topic", "events_topic"):
            name = topic(of_thing, key)
            ingest = re.match(r"\$aws/rules/(\w+)/(.*)", name)
            if ingest:
                assert [rule for rule in rules if rule["RuleName"] == ingest[1] and heard(ingest[2], rule)]
            elif name:
                assert len([rule for rule in rules if heard(name, rule)]) == 1


def test_no_text_of_a_topic_ends_the_statement() -> None:
    defender = Defender(thing="x", endpoint="localhost", alarm_topic='a\'; DROP/{thing}/"b"')
    assert source(defender, "alarm_topic") == ("", "+/+/+")


@each
def test_what_a_rule_cannot_deliver_is_kept_and_told(text: str) -> None:
    of = account(text)
    for rule in of.of_type("AWS::IoT::TopicRule"):
        assert rule["TopicRulePayload"]["ErrorAction"]["Sqs"]["QueueUrl"] == of._name("DeadLetters")
    assert of.filled["DeadLettersAlarm"]["AlarmActions"] == [of._name("AlarmTopic")]
    assert of.resources["Bucket"]["DeletionPolicy"] == "Retain"


@each
def test_every_behavior_that_can_raise_an_alarm_has_one_in_cloudwatch(text: str) -> None:
    of = account(text, PROFILE)
    counted = {alarm["MetricName"] for alarm in of.of_type("AWS::CloudWatch::Alarm")}
    assert {"alarm", "alarm/quiet", "alarm/images"} <= counted
    assert "alarm/ports" not in counted, "its alerts are suppressed: no message tells of them"
    expect = msgspec.structs.asdict(configured(text).watches[0].expect)
    assert {f"alarm/{key}" for key, value in expect.items() if value is not None} <= counted


def test_the_rule_counts_under_the_names_that_the_alarms_look_at() -> None:
    of = account(EXPECTING)
    (rule,) = of.of_type("AWS::IoT::TopicRule")
    counting = [
        action["CloudwatchMetric"] for action in rule["TopicRulePayload"]["Actions"] if "CloudwatchMetric" in action
    ]
    line = msgspec.json.decode(ALARM_LINE)
    names = {re.sub(r"\$\{(\w+)\}", lambda found: str(line[found[1]]), one["MetricName"]) for one in counting}
    looked_at = {(one["Namespace"], one["MetricName"]) for one in of.of_type("AWS::CloudWatch::Alarm")}
    assert {(one["MetricNamespace"], name) for one, name in zip(counting, sorted(names), strict=True)} <= looked_at
    assert names == {"alarm", "alarm/depth"}


def test_alarms_that_enforcement_raises_are_known() -> None:
    assert {"root_image", "enforcement", "memfd"} <= set(alarming(configured(EXPECTING), NO_PROFILE))
    assert alarming(configured(MYAPP), NO_PROFILE) == []


def test_names_of_destinations_share_the_alarm_of_their_networks() -> None:
    text = MYAPP + 'expect = { destination_names = ["example.com"] }\n[capture]\npackets = true\n'
    assert alarming(configured(text), NO_PROFILE) == ["destinations"]


def test_an_alarm_has_a_column_for_each_key() -> None:
    assert isinstance(lines.decode(ALARM_LINE), lines.Alarm)
    columns = alarm_columns()
    assert {key.lower() for key in msgspec.json.decode(ALARM_LINE)} | {"thing", "alarm_id", "merged"} <= set(columns)
    assert columns["lineage"] == "array<struct<process_id:string,pid:bigint,comm:string,exe:string>>"
    assert columns["value"] == "string", "a number or a list"
    assert columns["process_ids"] == "array<string>"


@pytest.mark.parametrize("columns", [alarm_columns(), event_columns()], ids=["alarms", "events"])
def test_columns_have_types_that_hive_knows(columns: dict[str, str]) -> None:
    assert [name for name, hive in columns.items() if not HIVE.match(hive)] == []
    assert "dt" not in columns, "the partition has that name"


def test_batches_that_devices_compress_are_kept_as_they_are() -> None:
    for text, packed in ((TEXTS["publishing"], "GZIP"), (TEXTS["compressed batches"], "UNCOMPRESSED")):
        of = account(text)
        target = of.filled["EventsStream"]["ExtendedS3DestinationConfiguration"]
        assert target["CompressionFormat"] == packed
        assert target.get("FileExtension", "").endswith(".gz") == (packed == "UNCOMPRESSED")
        (action,) = of.filled["EventsRule"]["TopicRulePayload"]["Actions"]
        assert "Separator" not in action["Firehose"], (
            "a batch ends with a line's end; nothing may stand between two of gzip"
        )


def test_without_detect_nothing_of_detect_is_made() -> None:
    kinds = {one["Type"] for one in account(EXPECTING, PROFILE).resources.values()}
    assert not kinds & {"AWS::IoT::CustomMetric", "AWS::IoT::SecurityProfile", "AWS::IoT::MitigationAction"}


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        ('alarm_topic = ""\n', "alarm_topic"),
        ('alarm_topic = "$aws/rules/one/a"\nevents_topic = "$aws/rules/one/b"\n', "same rule"),
    ],
)
def test_topics_without_a_way_are_refused(topics: str, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        made(MYAPP + DEFENDER + topics, detect=False)


def test_cloudwatch_would_take_every_alarm() -> None:
    for alarm in account(EXPECTING, PROFILE).of_type("AWS::CloudWatch::Alarm"):
        given = {"AlarmName": "a"}
        assert faults("PutMetricAlarm", alarm, given, api="cloudwatch") == []
