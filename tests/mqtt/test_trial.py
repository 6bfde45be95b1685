"""`kinwatch doctor` finds the first thing that is wrong on the way to the broker, and says what to do about it.

Owns the steps, against a real broker. Refuses to know the link behind them (test_link).
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from monitor import cli
from monitor.defender import trial
from monitor.defender.responder import Faults, Heard, Responder
from monitor.defender.trial import NAMES, Step
from monitor.schema import Auth, Defender, Proxy
from tests.mqtt.between import Between
from tests.mqtt.broker import LEAST_PRIVILEGE, THING, Authority, Broker, free_port
from tests.mqtt.rig import defender
from tests.mqtt.wires import REPORT, connection, linked

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = f"{THING}-kinwatch"


def settings(broker: Broker, **changes: Any) -> Defender:  # noqa: ANN401
    link = connection(broker)
    values: dict[str, Any] = {
        "thing": THING,
        "endpoint": "localhost",
        "port": broker.port,
        "root_ca": link.root_ca,
        "certificate": link.certificate,
        "private_key": link.private_key,
        "answer_s": 30,
    }
    return Defender(**(values | changes))


def taken(asked: Defender, *, connect: bool = True, send_report: bool = False) -> dict[str, Step]:
    steps = asyncio.run(trial.trial(asked, now_s=time.time(), connect=connect, send_report=send_report))
    assert [step.name for step in steps] == list(NAMES)
    return {step.name: step for step in steps}


def first_wrong(asked: Defender, *, send_report: bool = False) -> Step:
    """The one step that failed; everything before it is well and nothing behind it was tried."""
    steps = list(taken(asked, send_report=send_report).values())
    at = next(place for place, step in enumerate(steps) if step.ok is False)
    assert [step.ok for step in steps] == [True] * at + [False] + [None] * (len(steps) - at - 1)
    assert steps[at].remedy
    return steps[at]


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_a_way_that_is_free_is_well_in_every_step_and_its_report_is_accepted(broker: Broker, form: str) -> None:
    heard: list[Heard] = []
    with defender(broker, Responder(None, heard=heard.append)):
        steps = taken(settings(broker, format=form), send_report=True)
    assert {name: step.ok for name, step in steps.items()} == dict.fromkeys(NAMES, True) | {"alarms": None}
    (report,) = heard
    assert report.status == "accepted"
    assert steps["report"].detail == f"report {report.report_id} was accepted"
    assert "127.0.0.1" in steps["name"].detail
    assert "TLSv1.3 with localhost, valid until " in steps["tls"].detail
    assert f"iot:Publish on topic/kinwatch/{THING}/alarms" in steps["alarms"].remedy


def test_no_report_is_sent_unless_asked_for(broker: Broker) -> None:
    heard: list[Heard] = []
    with defender(broker, Responder(None, heard=heard.append)):
        steps = taken(settings(broker))
        assert (steps["subscribe"].ok, steps["report"].ok) == (True, None)
        assert "--send-report" in steps["report"].remedy
    assert heard == []
    assert "Received PUBLISH" not in broker.log()


def test_a_daemon_that_is_connected_stays_so(broker: Broker) -> None:
    async def scenario() -> None:
        async with linked(connection(broker)) as (link, ear):
            steps = await trial.trial(settings(broker), now_s=time.time(), connect=True, send_report=False)
            assert not [step for step in steps if step.ok is False]
            await link.publish(REPORT, b"{}")
            assert ear.downs == []

    asyncio.run(scenario())
    assert f"as {CLIENT}-doctor" in broker.log()


def test_wrong_files_are_said_and_nothing_is_tried(broker: Broker) -> None:
    asked = settings(broker, certificate="/nowhere/cert.pem")
    wrong = first_wrong(asked)
    assert (wrong.name, wrong.detail) == (
        "files",
        "defender.certificate: /nowhere/cert.pem cannot be read: No such file or directory",
    )
    assert {step.ok for step in taken(settings(broker), connect=False).values()} == {True, None}


def test_a_name_without_an_address_is_said(broker: Broker) -> None:
    wrong = first_wrong(settings(broker, endpoint="nowhere.invalid"))
    assert wrong.name == "name"
    assert wrong.detail.startswith("nowhere.invalid has no address: ")


def test_a_port_where_nobody_listens_is_said(broker: Broker) -> None:
    port = free_port()
    wrong = first_wrong(settings(broker, port=port))
    assert wrong.name == "tcp"
    assert f"port {port}: " in wrong.detail
    assert "127.0.0.1: Connection refused" in wrong.detail


def test_another_authority_is_said(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    wrong = first_wrong(settings(broker, root_ca=str(other.root_ca)))
    assert wrong.name == "tls"
    assert wrong.detail.startswith("the broker's certificate is not trusted: ")
    assert f"defender.root_ca ({other.root_ca}) must be the authority" in wrong.remedy


def test_a_name_that_is_not_in_the_certificate_is_said(broker: Broker) -> None:
    with Between(broker.port, host="127.0.0.2") as wire:
        wrong = first_wrong(settings(broker, endpoint="127.0.0.2", port=wire.own_port))
    assert wrong.name == "tls"
    assert "mismatch" in wrong.detail
    assert "127.0.0.2 is none" in wrong.remedy


def test_a_port_without_tls_is_said(tmp_path: Path) -> None:
    plain = free_port()
    with Broker(tmp_path, Authority(tmp_path), "", more=[f"listener {plain} 127.0.0.1"]) as broker:
        wrong = first_wrong(settings(broker, port=plain))
    assert wrong.name == "tls"
    assert f"is {plain} a TLS port" in wrong.remedy


@pytest.mark.parametrize("tls", ["tlsv1.2", "tlsv1.3"])
def test_a_certificate_that_the_broker_does_not_know_is_said(tmp_path: Path, tls: str) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").identity(CLIENT)
    with Broker(tmp_path, authority, "", more=[f"tls_version {tls}"]) as broker:
        asked = settings(broker, certificate=str(stranger.certificate), private_key=str(stranger.private_key))
        wrong = first_wrong(asked)
    assert wrong.name == "tls"
    assert wrong.detail.startswith("the broker refuses the certificate: ")
    assert "activate it" in wrong.remedy


def test_a_client_id_that_is_not_allowed_is_said_with_the_action_that_is_missing(tmp_path: Path) -> None:
    with Broker(tmp_path, Authority(tmp_path), "", more=["clientid_prefixes somebody-else"]) as broker:
        wrong = first_wrong(settings(broker))
    assert wrong.name == "connect"
    assert f"iot:Connect on client/{CLIENT}, for the daemon, and on client/{CLIENT}-doctor" in wrong.remedy


def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("")
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("wrong")
    auth = Auth(method="custom-authorizer", username="me", password_file=str(tmp_path / "secret"))
    with Broker(tmp_path, Authority(tmp_path), "", listener=[f"password_file {tmp_path / 'passwords'}"]) as broker:
        wrong = first_wrong(settings(broker, certificate="", private_key="", auth=auth))
    assert wrong.name == "connect"
    assert wrong.detail.startswith("refused with 13")


def test_a_report_that_may_not_be_published_is_said_with_the_action_that_is_missing(tmp_path: Path) -> None:
    acl = LEAST_PRIVILEGE.format(client=CLIENT, thing=THING).replace("metrics/json\n", "metrics/other\n")
    with Broker(tmp_path, Authority(tmp_path), acl) as broker:
        wrong = first_wrong(settings(broker), send_report=True)
    assert wrong.name == "report"
    assert "refused with 135" in wrong.detail
    assert wrong.remedy == f"the policy must allow iot:Publish on topic/{REPORT}"


@pytest.mark.parametrize(
    ("faults", "words", "remedy"),
    [
        (Faults(reject_code="InvalidPayload"), "was rejected: InvalidPayload", "try again later"),
        (Faults(drop_every=1), "no answer came within 1 s", f"iot:Receive on topic/{REPORT}/accepted"),
        (Faults(foreign_id=True), "no answer came within 1 s", "Device Defender Detect"),
    ],
    ids=["rejected", "silent", "foreign"],
)
def test_what_becomes_of_the_report_is_said(broker: Broker, faults: Faults, words: str, remedy: str) -> None:
    with defender(broker, Responder(None, faults=faults)):
        wrong = first_wrong(settings(broker, answer_s=1), send_report=True)
    assert wrong.name == "report"
    assert words in wrong.detail
    assert remedy in wrong.remedy


def test_a_proxy_is_part_of_the_way(broker: Broker) -> None:
    with Between(0, proxy=True) as proxy:
        way = Proxy(host="127.0.0.1", port=proxy.own_port)
        steps = taken(settings(broker, proxy=way))
        assert steps["subscribe"].ok is True
        assert f"through the proxy to localhost:{broker.port}" in steps["tcp"].detail
        assert len(proxy.heads) == 2
    with Between(0, proxy=True, answer=b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
        wrong = first_wrong(settings(broker, proxy=Proxy(host="127.0.0.1", port=proxy.own_port)))
        assert wrong.name == "tcp"
        assert "407 Proxy Authentication Required" in wrong.detail


def configuration(folder: Path, asked: Defender) -> str:
    keys = ("thing", "endpoint", "client", "port", "root_ca", "certificate", "private_key")
    lines = [f"{key} = {json.dumps(getattr(asked, key))}" for key in keys]
    path = folder / "kinwatch.toml"
    path.write_text("\n".join(["[defender]", *lines, ""]))
    return str(path)


def test_doctor_takes_the_steps(broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = configuration(tmp_path, settings(broker))
    assert cli.main(["doctor", "-c", file, "--json"]) == 0
    steps = msgspec.json.decode(capsys.readouterr().out)["connection"]
    assert [step["name"] for step in steps] == list(NAMES)
    assert {step["ok"] for step in steps} == {True, None}
    assert cli.main(["doctor", "-c", file]) == 0
    text = capsys.readouterr().out
    heading = f"\nconnection to localhost:{broker.port}\n  over awscrt: it is installed\n"
    assert f"{heading}  ok    files      everything is there" in text
    assert "\n  -     report     not sent" in text


def test_doctor_takes_the_steps_with_the_library_that_is_asked_for(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configuration(tmp_path, settings(broker, client="paho"))
    assert cli.main(["doctor", "-c", file, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    assert found["mqtt"] == {"client": "paho", "why": "defender.client says so"}
    taken = {step["name"]: step["ok"] for step in found["connection"]}
    assert (taken["connect"], taken["subscribe"]) == (True, True)


def test_doctor_says_what_is_wrong_and_ends_with_4(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings(broker)
    file = configuration(tmp_path, msgspec.structs.replace(asked, port=free_port()))
    assert cli.main(["doctor", "-c", file]) == 4
    text = capsys.readouterr().out
    assert "\n  FAIL  tcp        port " in text
    assert "\n                   look at the port, the network, and firewalls in between\n" in text
    assert cli.main(["doctor", "-c", file, "--no-connect"]) == 0
    assert "\n  -     tcp        not tried, as asked\n" in capsys.readouterr().out
    file = configuration(tmp_path, msgspec.structs.replace(asked, certificate="/nowhere/cert.pem"))
    assert cli.main(["doctor", "-c", file, "--no-connect"]) == 4
    assert "\n  FAIL  files      defender.certificate: /nowhere/cert.pem cannot be read" in capsys.readouterr().out
