"""Everything that can go wrong between kinwatch and the broker: no alarm is lost, no report id used twice.

Owns the faults of the way; what happens when kinwatch itself dies is test_kill's.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import resource
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from monitor.defender.responder import Faults, Heard, Responder
from tests.mqtt.broker import LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.rig import (
    ALARMS,
    REPORTS,
    Kinwatch,
    Listener,
    defender,
    ids_are_reports,
    lines_of,
    once,
    shell,
    spawned,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPECT = ("--expect", "child_processes=0")


def misbehaving(tmp_path: Path, broker: Broker, settings: str = "min_spacing_s = 1\nanswer_s = 3") -> Kinwatch:
    return Kinwatch(tmp_path / "k", broker, defender=settings, arguments=EXPECT, command=[shell(tmp_path)])


def all_arrived(cloud: Listener, kinwatch: Kinwatch, alarms: int) -> None:
    """So many alarms and their ends are in the log, every line of them came, and no report id was used twice."""
    kinwatch.wait_until(lambda: len(kinwatch.events("alarm", "clear")) == 2 * alarms)
    messages = cloud.wait(ALARMS, lambda found: lines_of(found) >= 2 * alarms)
    assert lines_of(messages) == 2 * alarms
    assert told(once(messages)[-1:]) == told(kinwatch.events("alarm", "clear")[-1:])
    assert ids_are_reports(cloud)


def told_of(heard: list[Heard]) -> float:
    """How many children accepted reports tell of, together."""
    values = [report.values["child_procs_spawned_myapp"] for report in heard if report.status == "accepted"]
    return sum(value for value in values if not isinstance(value, tuple))


def test_a_broker_that_dies_in_a_burst_costs_nothing(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = misbehaving(tmp_path, broker)
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(ALARMS, lambda found: len(found) == 2)
            kinwatch.tell("i=0; while [ $i -lt 40 ]; do /bin/true; i=$((i+1)); done")
            kinwatch.wait_until(lambda: len(kinwatch.events("alarm")) >= 10)
            broker.kill()
            kinwatch.wait_until(lambda: len(kinwatch.events("alarm")) >= 41)
            broker.start()
            assert cloud.ready.wait(60)
            kinwatch.tell("/bin/true")
            all_arrived(cloud, kinwatch, 42)
            # A report whose answer died with the broker is told again, in the next one.
            cloud.wait(REPORTS, lambda found: spawned(found) >= 42)
        assert "trying again, nothing is lost meanwhile" in kinwatch.said()


def test_a_frozen_broker_is_noticed_and_everything_comes_when_it_thaws(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = misbehaving(tmp_path, broker, "min_spacing_s = 1\nanswer_s = 2\nkeep_alive_s = 5")
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(REPORTS, bool)
            broker.signal(signal.SIGSTOP)
            for _ in range(3):
                kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: "no connection to localhost" in kinwatch.said())
            kinwatch.tell("/bin/true")
            broker.signal(signal.SIGCONT)
            all_arrived(cloud, kinwatch, 5)


def test_two_clients_with_one_id_lose_nothing_and_it_is_said(broker: Broker, tmp_path: Path) -> None:
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud:
        kinwatch = misbehaving(tmp_path, broker)
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(REPORTS, bool)
            for _ in range(2):  # the other one comes and goes
                with Listener(broker, [ALARMS], name=f"{THING}-kinwatch", client_id=f"{THING}-kinwatch"):
                    kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: "client id" in kinwatch.said())
            all_arrived(cloud, kinwatch, 3)


def test_a_topic_that_the_policy_forbids_is_said_and_its_alarms_wait(broker: Broker, tmp_path: Path) -> None:
    broker.allow("user responder\ntopic read forbidden/#\n")
    with defender(broker, Responder(None, min_spacing_s=0), "forbidden/alarms") as cloud:
        kinwatch = misbehaving(tmp_path, broker, 'min_spacing_s = 1\nalarm_topic = "forbidden/alarms"')
        with kinwatch:
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: "refused with 135" in kinwatch.said())
            cloud.wait(REPORTS, bool)  # the other channel goes on
            assert cloud.on("forbidden") == []
            broker.allow(f"user {THING}-kinwatch\ntopic write forbidden/alarms\n")
            found = cloud.wait("forbidden", lambda found: len(found) == 2)
            assert told(found) == told(kinwatch.events("alarm", "clear"))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(drop_every=1), "no answer within 1 s"),
        (Faults(foreign_id=True), "no answer within 1 s"),
        (Faults(reject_code="InvalidPayload"), "was rejected: InvalidPayload"),
    ],
    ids=["silent", "foreign", "rejected"],
)
def test_a_report_that_was_not_accepted_is_in_the_next_one(
    broker: Broker, tmp_path: Path, faults: Faults, words: str
) -> None:
    heard: list[Heard] = []
    with defender(broker, Responder(None, faults=faults)) as cloud:
        kinwatch = misbehaving(tmp_path, broker, "min_spacing_s = 1\nanswer_s = 1")
        with kinwatch:
            kinwatch.tell("/bin/true")
            cloud.wait(REPORTS, lambda found: len(found) >= 2)
            kinwatch.tell("/bin/true")
            cloud.responder = Responder(None, heard=heard.append)
            kinwatch.wait_until(lambda: bool(heard))
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: told_of(heard) >= 3)
            assert told_of(heard) == 3
            all_arrived(cloud, kinwatch, 3)
        assert words in kinwatch.said()


def test_a_wrong_authority_is_said_in_words(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    kinwatch = misbehaving(tmp_path, broker)
    text = kinwatch.configuration.read_text().replace(str(broker.authority.root_ca), str(other.root_ca))
    kinwatch.configuration.write_text(text)
    with kinwatch:
        kinwatch.tell("/bin/true")
        kinwatch.wait_until(lambda: "is root_ca the broker's" in kinwatch.said())
        kinwatch.configuration.write_text(text.replace(str(other.root_ca), str(broker.authority.root_ca)))
    # The same state_dir with the right authority: what waited arrives.
    with defender(broker, Responder(None, min_spacing_s=0)) as cloud, kinwatch:
        all_arrived(cloud, kinwatch, 1)


def test_a_broker_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    acl = LEAST_PRIVILEGE.format(client=f"{THING}-kinwatch", thing=THING)
    with Broker(folder, Authority(folder), acl, hosts=("elsewhere.invalid",)) as broker:
        kinwatch = misbehaving(tmp_path, broker)
        with kinwatch:
            kinwatch.wait_until(lambda: "endpoint its name" in kinwatch.said())
        assert "New client connected" not in broker.log()


def test_an_expired_certificate_is_refused_before_the_first_connection(broker: Broker, tmp_path: Path) -> None:
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    broker.authority.identity("old", not_after=past)
    kinwatch = Kinwatch(tmp_path / "k", broker, identity="old", command=[shell(tmp_path)])
    assert kinwatch.refused() == 2
    assert "2020-01-01" in kinwatch.said()
    assert "defender.certificate" in kinwatch.said()


def test_a_revoked_certificate_is_said_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    authority = Authority(folder)
    revoked = authority.identity(f"{THING}-kinwatch")
    acl = LEAST_PRIVILEGE.format(client=revoked.name, thing=THING)
    with Broker(folder, authority, acl, more=[f"crlfile {authority.revoke(revoked)}"]) as broker:
        kinwatch = misbehaving(tmp_path, broker)
        with kinwatch:
            kinwatch.wait_until(lambda: "does it know this certificate" in kinwatch.said())


def test_a_device_of_thousands_of_ports_sends_a_report_that_fits_with_true_totals(
    broker: Broker, tmp_path: Path
) -> None:
    heard: list[Heard] = []
    with defender(broker, Responder(None, heard=heard.append)) as cloud, sockets(3000) as ports:
        kinwatch = misbehaving(tmp_path, broker)
        with kinwatch:
            kinwatch.tell("/bin/true")
            kinwatch.wait_until(lambda: bool(heard))
        assert heard[0].status == "accepted"
        assert all(len(payload) <= 128 * 1024 for _, payload in cloud.messages)
        block = cloud.on(REPORTS)[0]["metrics"]["listening_tcp_ports"]
        assert len(block["ports"]) < len(ports) <= block["total"]


@contextlib.contextmanager
def sockets(count: int) -> Iterator[set[int]]:
    """So many listening sockets of the loopback interface."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 1000), hard))
    try:
        with contextlib.ExitStack() as stack:
            ports = set()
            for _ in range(count):
                sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                ports.add(sock.getsockname()[1])
            yield ports
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
