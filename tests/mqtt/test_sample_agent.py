"""AWS's sample agent is the reference: what it sends is accepted here, and of one state both tell the same.

Where they differ the test says how; docs/sample-agent.md says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from monitor.defender.validate import parse, validate
from monitor.errors import ReportInvalid
from tests.mqtt.both import ANY6, MANY, SENT_BYTES
from tests.mqtt.broker import THING
from tests.mqtt.stage import isolated, play

if TYPE_CHECKING:
    from pathlib import Path

AGENT = (sys.executable, "-um", "AWSIoTDeviceDefenderAgentSDK.agent")
FILES = ("-r", "FOLDER/ca.pem", "-c", f"FOLDER/{THING}.pem", "-k", f"FOLDER/{THING}.key")
UDP_HEADERS_BYTES = 28
"""IPv4 and UDP; the loopback counts no Ethernet header."""
THEIR_MOST = 50


def both(state: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Their report, ours, and the ports of the state."""
    ran = isolated(sys.executable, "-m", "tests.mqtt.both", state)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    return seen["theirs"], seen["ours"], seen["ports"]


def listed(report: dict[str, Any], block: str) -> set[tuple[int, str | None]]:
    return {(entry["port"], entry.get("interface")) for entry in report["metrics"][block]["ports"]}


def connections(report: dict[str, Any]) -> set[tuple[str, int, str | None]]:
    found = report["metrics"]["tcp_connections"]["established_connections"]
    assert found["total"] == len(found["connections"])
    return {(one["remote_addr"], one["local_port"], one.get("local_interface")) for one in found["connections"]}


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_what_the_sample_agent_sends_is_accepted(tmp_path: Path, form: str) -> None:
    seen = play(tmp_path, 2, *AGENT, "-f", form, "-e", "localhost", *FILES, "-cm", "-id", THING, "-i", "1")
    assert seen.heard[:2] == [(THING, form, "accepted")] * 2
    assert f"Received message from topic '$aws/things/{THING}/defender/metrics/{form}/accepted'" in seen.stdout
    for topic, payload in seen.reports:
        report = parse(payload, "cbor" if topic.endswith("cbor") else "json")
        assert set(report) == {"header", "metrics", "custom_metrics"}
        assert set(report["custom_metrics"]) == {"cpu_usage"}
        assert set(report["metrics"]) == {"network_stats", "listening_tcp_ports", "tcp_connections"}
        assert 443 in {port for port, _ in listed(report, "listening_tcp_ports")}


def test_of_a_plain_state_both_tell_the_same() -> None:
    theirs, ours, ports = both("plain")
    assert validate(theirs) == theirs
    assert validate(ours) == ours
    for block in ("listening_tcp_ports", "listening_udp_ports"):
        assert listed(theirs, block) == listed(ours, block)
        assert theirs["metrics"][block]["total"] == ours["metrics"][block]["total"] == len(listed(ours, block))
    assert {port for port, _ in listed(ours, "listening_tcp_ports")} == {
        port for name, port in ports.items() if name.startswith("tcp")
    }
    assert {port for port, _ in listed(ours, "listening_udp_ports")} == {ports["udp4"], ports["udp6"], ports["server"]}
    assert connections(theirs) == connections(ours)
    assert connections(ours) == {
        (f"127.0.0.1:{ports['tcp4']}", ports["client"], "lo"),
        (f"127.0.0.1:{ports['client']}", ports["tcp4"], "lo"),
    }
    stats = ours["metrics"]["network_stats"]
    assert theirs["metrics"]["network_stats"] == stats
    on_loopback = SENT_BYTES + UDP_HEADERS_BYTES
    assert stats == {"bytes_in": on_loopback, "bytes_out": on_loopback, "packets_in": 1, "packets_out": 1}


def test_of_an_odd_state_they_differ_as_documented() -> None:
    theirs, ours, ports = both("odd")
    assert validate(ours) == ours
    # a socket with a peer takes nothing from anybody else
    udp = listed(theirs, "listening_udp_ports") ^ listed(ours, "listening_udp_ports")
    assert udp == {(ports["udp client"], "lo")}
    assert udp <= listed(theirs, "listening_udp_ports")
    # two sockets that share a port are one port
    their_tcp, our_tcp = theirs["metrics"]["listening_tcp_ports"], ours["metrics"]["listening_tcp_ports"]
    assert their_tcp["total"] == our_tcp["total"] + 1
    assert [entry["port"] for entry in their_tcp["ports"]].count(ports["shared"]) == 2
    assert [entry["port"] for entry in our_tcp["ports"]].count(ports["shared"]) == 1
    # all of 127.0.0.0/8 is the loopback interface
    different = listed(theirs, "listening_tcp_ports") ^ listed(ours, "listening_tcp_ports")
    assert different == {(ports["other loopback"], None), (ports["other loopback"], "lo")}
    assert (ports["other loopback"], "lo") in listed(ours, "listening_tcp_ports")
    assert (ports["dual"], ANY6) in listed(theirs, "listening_tcp_ports") & listed(ours, "listening_tcp_ports")
    # an IPv4 peer of an IPv6 socket, and IPv6 beside a port
    mapped, dual, six, tcp6 = (ports[name] for name in ("mapped client", "dual", "six client", "tcp6"))
    assert connections(theirs) - connections(ours) == {
        (f"::ffff:127.0.0.1:{mapped}", dual, None),
        (f"::1:{tcp6}", six, "lo"),
        (f"::1:{six}", tcp6, "lo"),
    }
    assert connections(ours) - connections(theirs) == {
        (f"127.0.0.1:{mapped}", dual, "lo"),
        (f"[::1]:{tcp6}", six, "lo"),
        (f"[::1]:{six}", tcp6, "lo"),
    }
    assert theirs["metrics"]["network_stats"] == ours["metrics"]["network_stats"]
    # the documented form has no place for these peers; a responder takes them, as written there
    with pytest.raises(ReportInvalid, match=r"remote_addr|local_interface"):
        validate(theirs)
    taken = parse(json.dumps(theirs).encode(), "json", sample=True)
    assert connections(taken) == {
        (f"[::ffff:127.0.0.1]:{mapped}", dual, None),
        *(connections(ours) - {(f"127.0.0.1:{mapped}", dual, "lo")}),
    }


def test_of_many_ports_the_sample_agent_lists_some_by_chance_and_both_count_all() -> None:
    theirs, ours, _ = both("many")
    assert theirs["metrics"]["listening_tcp_ports"]["total"] == ours["metrics"]["listening_tcp_ports"]["total"] == MANY
    assert len(listed(theirs, "listening_tcp_ports")) == THEIR_MOST
    assert len(listed(ours, "listening_tcp_ports")) == MANY
    assert listed(theirs, "listening_tcp_ports") < listed(ours, "listening_tcp_ports")


def test_short_names_end_the_sample_agent_at_its_second_sample() -> None:
    """So nothing can be compared there; ours are judged by the document of the format alone."""
    ran = subprocess.run(
        [sys.executable, "-m", "AWSIoTDeviceDefenderAgentSDK.collector", "--short-names", "-s", "0", "-n", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "KeyError: 'bi'" in ran.stderr
    assert '"hed"' in ran.stdout
