"""The device's policy permits what kinwatch does at the broker, and nothing beside it.

Owns the list of what a device does, taken from the code that does it. Refuses to know how the policy is written.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from monitor.defender import trial
from monitor.defender.answers import TOPIC
from monitor.provisioning.answers import CREATE, REGISTER
from monitor.publishing import client_id_of, topic
from monitor.shadow import document as shadow
from tests.cloud.account import Account, faults, permits, size
from tests.cloud.configurations import DEFENDER, MYAPP, TEXTS, configured, made

PUBLISHING = {name: text for name, text in TEXTS.items() if DEFENDER in text}
MOST_BYTES = 2048
"""Of a policy document without white space: a limit of AWS IoT Core."""
each = pytest.mark.parametrize("text", PUBLISHING.values(), ids=PUBLISHING)
detect_or_not = pytest.mark.parametrize("detect", [True, False], ids=["detect", "no detect"])


@each
@detect_or_not
def test_a_device_may_do_what_kinwatch_does(text: str, *, detect: bool) -> None:
    policy = Account(made(text, detect=detect).document).one("AWS::IoT::Policy")["PolicyDocument"]
    settings = configured(text)
    assert settings.defender is not None
    defender = msgspec.structs.replace(settings.defender, thing=settings.defender.thing or "mything1")

    def may(action: str, resource: str) -> bool:
        return permits(policy, f"iot:{action}", resource, defender.thing)

    report = TOPIC.format(thing=defender.thing, format=defender.format)
    assert may("Connect", f"client/{client_id_of(defender)}")
    assert may("Connect", f"client/{client_id_of(defender)}{trial._SUFFIX}")
    for name in (report, topic(defender, "alarm_topic"), topic(defender, "events_topic")):
        assert not name or may("Publish", f"topic/{name}")
    for answer in ("accepted", "rejected"):
        assert may("Subscribe", f"topicfilter/{report}/{answer}")
        assert may("Receive", f"topic/{report}/{answer}")
    for call in (CREATE, REGISTER.format(template="cameras")):
        provisioned = settings.provisioning is not None
        assert may("Publish", f"topic/{call}") == provisioned
        for answer in ("accepted", "rejected"):
            assert may("Subscribe", f"topicfilter/{call}/{answer}") == provisioned
            assert may("Receive", f"topic/{call}/{answer}") == provisioned
    from_afar = settings.remote is not None
    for what in ("get", "update"):
        assert may("Publish", f"topic/{shadow.topic(defender.thing, what)}") == from_afar
    for what in shadow.HEARD:
        assert may("Subscribe", f"topicfilter/{shadow.topic(defender.thing, what)}") == from_afar
        assert may("Receive", f"topic/{shadow.topic(defender.thing, what)}") == from_afar


@each
def test_a_device_may_do_nothing_else(text: str) -> None:
    policy = Account(made(text).document).one("AWS::IoT::Policy")["PolicyDocument"]

    def may(action: str, resource: str, thing: str = "mything1") -> bool:
        return permits(policy, f"iot:{action}", resource, thing)

    assert not may("Connect", "client/other-kinwatch")
    for thing in ("other", "mything1"):
        assert not may("Publish", f"topic/$aws/things/{thing}/shadow/update")
        assert not may("Publish", f"topic/$aws/things/{thing}/defender/metrics/json/accepted")
        assert not may("Publish", f"topic/$aws/things/{thing}/shadow/name/other/update")
        assert not may("Receive", f"topic/$aws/things/{thing}/jobs/notify")
        assert not may("Subscribe", f"topicfilter/$aws/things/{thing}/#")
    for form in ("json", "cbor"):
        assert not may("Publish", f"topic/$aws/things/other/defender/metrics/{form}")
        assert not may("Receive", f"topic/$aws/things/other/defender/metrics/{form}/accepted")
    assert not may("Publish", "topic/kinwatch/other/alarms")
    assert not may("Subscribe", "topicfilter/#")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_api_would_take_the_policy(text: str) -> None:
    properties = Account(made(text).document).one("AWS::IoT::Policy")
    assert size(properties["PolicyDocument"]) <= MOST_BYTES
    asked = properties | {"PolicyDocument": json.dumps(properties["PolicyDocument"])}
    assert faults("CreatePolicy", asked) == []


def test_one_policy_serves_every_device_of_a_configuration() -> None:
    others = TEXTS["publishing"].replace("mything1", "mything2")
    assert made(others).document == made(TEXTS["publishing"]).document


def test_without_defender_the_policy_is_that_of_the_defaults() -> None:
    assert (
        made(MYAPP).document["Resources"]["DevicePolicy"]
        == made(MYAPP + DEFENDER).document["Resources"]["DevicePolicy"]
    )
