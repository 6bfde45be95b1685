"""Expected destinations and listening ports: the first that breaks them raises the alarm at once, and it clears."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Alarm, Clear, Connect, Listen
from monitor.remote import endpoint
from tests.net import dns
from tests.net.peer import CLOSED, ECHO, EXCHANGE
from tests.net.rig import FAR4, FAR6, MAPPED, as_told

if TYPE_CHECKING:
    from tests.net.rig import Kinwatch, Net


def _alarms(watcher: Kinwatch) -> list[tuple[str, str, tuple[object, ...]]]:
    """Alarms and clears in order: kind, behavior, value."""
    judgements = [line for line in watcher.lines() if isinstance(line, Alarm | Clear)]
    return [(type(line).__name__, line.behavior, line.value) for line in judgements]  # type: ignore[misc]


@pytest.mark.parametrize("address", [FAR4, FAR6, MAPPED])
def test_a_connection_outside_the_expected_networks_alarms_while_it_is_open(net: Net, address: str) -> None:
    watcher = net.watch_command(
        "--expect",
        "destinations=192.0.2.0/24,2001:db8::/32",
        program="live",
        words=(address, str(EXCHANGE), "1", "10", "10"),
    )
    opened = watcher.fact("opened")
    alarm = watcher.wait_for(Alarm)[0]
    assert (alarm.behavior, alarm.metric) == ("destinations", f"destination_ips_{watcher.watch}")
    assert alarm.value == (as_told(address),)
    assert alarm.criteria.comparison_operator == "in-cidr-set"
    assert alarm.criteria.value.cidrs == ("192.0.2.0/24", "2001:db8::/32")
    assert opened["process_id"] in alarm.process_ids
    assert [ancestor.process_id for ancestor in alarm.lineage] == [opened["process_id"]]
    watcher.fact("done")
    assert not watcher.of(Clear)  # it is still open
    watcher.wait_for_report()
    watcher.release()
    report = watcher.ended()
    clear = watcher.one(Clear)
    assert (clear.behavior, clear.since) == ("destinations", alarm.since)
    assert len(watcher.of(Alarm)) == 1
    assert [as_told(address) in json.dumps(document) for document in report.documents] == [True, True]


def test_a_child_that_connects_elsewhere_alarms_with_its_lineage(net: Net) -> None:
    watcher = net.watch_command("--expect", "destinations=", program="spawned", words=(FAR4, str(EXCHANGE)))
    opened, parent = watcher.fact("opened"), watcher.fact("parent")
    watcher.wait_for(Clear)
    alarm = watcher.one(Alarm)
    assert opened["process_id"] in alarm.process_ids
    assert [ancestor.process_id for ancestor in alarm.lineage] == [parent["process_id"], opened["process_id"]]
    watcher.release()
    watcher.ended()


@pytest.mark.parametrize("address", [FAR4, FAR6, MAPPED])
def test_expected_destinations_raise_nothing(net: Net, address: str) -> None:
    watcher = net.watch_command(
        "--expect",
        "destinations=10.77.0.0/16,fd77:1::/64",
        program="live",
        words=(address, str(EXCHANGE), "3", "10", "10"),
    )
    watcher.fact("done")
    watcher.release()
    watcher.ended()
    assert len(watcher.of(Connect)) == 3
    assert _alarms(watcher) == []


@pytest.mark.parametrize("address", [FAR4, FAR6, MAPPED])
@pytest.mark.parametrize("port", [EXCHANGE, CLOSED])
def test_another_port_of_an_expected_network_alarms(net: Net, address: str, port: int) -> None:
    expected = f"destinations=10.77.0.0/16:{port},[fd77:1::/64]:{port}"
    watcher = net.watch_command("--expect", expected, program="live", words=(address, str(EXCHANGE), "1", "10", "10"))
    watcher.fact("done")
    watcher.release()
    watcher.ended()
    assert len(watcher.of(Connect)) == 1
    told = (endpoint(as_told(address), EXCHANGE),)
    assert _alarms(watcher) == (
        [] if port == EXCHANGE else [("Alarm", "destinations", told), ("Clear", "destinations", ())]
    )


def test_a_datagram_to_another_port_alarms(net: Net) -> None:
    watcher = net.watch_command(
        *("--expect", f"destinations={FAR4}:53"), program="datagrams", words=(FAR4, str(ECHO), "1", "1", "sendto")
    )
    watcher.fact("done")
    watcher.release()
    watcher.ended()
    assert watcher.one(Alarm).value == (f"{FAR4}:{ECHO}",)


@pytest.mark.parametrize(("pattern", "fits"), [("*.example.test", True), ("*.elsewhere.test", False)])
def test_an_address_that_dns_gave_an_expected_name_is_expected(net: Net, pattern: str, *, fits: bool) -> None:
    net.packets = True
    asked = "Service.example.test"
    query = dns.query(0, asked, dns.A)
    net.peer.order("zone", udp={query[2:].hex(): dns.answer(0, asked, dns.A, [dns.address(FAR4)])[2:].hex()}, tcp={})
    net.peer.told("zone", size=1)
    expected = ("--expect", f"destinations={FAR4}:53", "--expect", f"destination_names={pattern}")
    watcher = net.watch("ask", *expected)
    program = net.start_known(watcher, "ask", FAR4, "udp", query.hex(), "then", EXCHANGE)
    program.fact("done")
    program.release()
    assert watcher.wait_for(Connect, protocol="tcp")[0].name == asked
    watcher.finish()
    assert [alarm.value for alarm in watcher.of(Alarm)] == ([] if fits else [(f"{FAR4}:{EXCHANGE}",)])


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("attempt", (FAR4, str(CLOSED), "blocking")),
        ("datagrams", (FAR4, str(ECHO), "1", "1", "send")),
        ("datagrams", (FAR4, str(ECHO), "1", "1", "sendto")),
    ],
)
def test_trying_is_enough_for_an_alarm(net: Net, program: str, words: tuple[str, ...]) -> None:
    watcher = net.watch_command("--expect", "destinations=192.0.2.0/24", program=program, words=words)
    watcher.fact("done")
    watcher.release()
    watcher.ended()
    alarm = watcher.one(Alarm)
    assert (alarm.behavior, alarm.value) == ("destinations", (FAR4,))
    assert watcher.one(Clear).since == alarm.since


@pytest.mark.parametrize(
    ("program", "words", "port"),
    [("serve", ("::", "8100", "1", "1", "0"), 8100), ("echo", ("::", "8101", "0"), 8101)],
)
def test_a_port_that_nobody_expects_alarms_while_it_is_open(
    net: Net, program: str, words: tuple[str, ...], port: int
) -> None:
    watcher = net.watch_command("--expect", "listening_ports=8080", program=program, words=words)
    listening = watcher.fact("listening")
    alarm = watcher.wait_for(Alarm)[0]
    assert (alarm.behavior, alarm.metric) == ("listening_ports", f"listening_ports_{watcher.watch}")
    assert alarm.value == (port,)
    assert alarm.criteria.comparison_operator == "in-set"
    assert alarm.criteria.value.numbers == (8080,)
    assert listening["process_id"] in alarm.process_ids
    watcher.release()
    watcher.ended()
    assert watcher.one(Clear).behavior == "listening_ports"


def test_an_expected_port_raises_nothing(net: Net) -> None:
    watcher = net.watch_command(
        "--expect", "listening_ports=8100,8101", program="serve", words=("::", "8100", "1", "1", "0")
    )
    watcher.fact("listening")
    watcher.release()
    watcher.ended()
    assert len(watcher.of(Listen)) == 1
    assert _alarms(watcher) == []
