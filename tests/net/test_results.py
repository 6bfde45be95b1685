"""Connections that never came to be: why, and how many."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET

from monitor.engine.lines import Close, Connect
from monitor.remote import endpoint
from tests.net.peer import BRIEF, CLOSED
from tests.net.rig import FAR4, FAR6, HOLE4, MAPPED, NOBODY4, as_told

if TYPE_CHECKING:
    from tests.net.rig import Net

CONNECTIONS = 10_000


@pytest.mark.parametrize(
    ("address", "how", "result"),
    [
        (FAR4, "blocking", "ECONNREFUSED"),
        (FAR6, "blocking", "ECONNREFUSED"),
        (MAPPED, "blocking", "ECONNREFUSED"),
        (FAR4, "polled", "ECONNREFUSED"),
        (HOLE4, "blocking", "ETIMEDOUT"),
        (HOLE4, "polled", "ETIMEDOUT"),
        (HOLE4, "abandoned", "ECONNABORTED"),
    ],
)
def test_a_failed_connection_is_told_once_with_its_reason(net: Net, address: str, how: str, result: str) -> None:
    watcher = net.watch("attempt")
    program = net.start("attempt", address, CLOSED, how)
    attempted = program.fact("attempted")
    program.fact("done")
    program.release()
    watcher.wait_for(Connect)
    line = watcher.one(Connect)
    assert (line.process_id, line.remote, line.result) == (
        attempted["process_id"],
        endpoint(as_told(address), CLOSED),
        result,
    )
    report = watcher.finish()
    assert not watcher.of(Close)
    assert report.numbers("connections_out", "connections_failed", "bytes_out", "bytes_in") == {
        "connections_out": 0,
        "connections_failed": 1,
        "bytes_out": 0,
        "bytes_in": 0,
    }
    # Tried is enough: where it wanted to go is what matters.
    assert report.find("destination_ips") == [as_told(address)]
    assert report.find("destination_ports") == [CLOSED]


def test_a_connection_that_no_route_leads_to_is_no_event_of_the_kernel(net: Net) -> None:
    # tcp_v4_connect() looks up the route before it changes the socket's state, and fails without a word.
    watcher = net.watch("attempt")
    program = net.start("attempt", NOBODY4, CLOSED, "blocking")
    program.fact("attempted")
    assert program.fact("result")["errno"] == errno.ENETUNREACH
    program.release()
    report = watcher.finish()
    assert not watcher.of(Connect)
    assert report.numbers("connections_out", "connections_failed") == {"connections_out": 0, "connections_failed": 0}


def test_of_many_short_connections_none_is_lost(net: Net) -> None:
    watcher = net.watch("many")
    program = net.start("many", FAR4, BRIEF, CONNECTIONS)
    assert program.fact("done")["count"] == CONNECTIONS
    program.release()
    watcher.wait_for(Close, CONNECTIONS)
    connects, closes = watcher.of(Connect), watcher.of(Close)
    report = watcher.finish()
    assert len(connects) == len(closes) == CONNECTIONS
    assert all(line.result is UNSET for line in connects)
    assert {line.connection_id for line in connects} == {line.connection_id for line in closes}
    assert len({line.connection_id for line in closes}) == CONNECTIONS
    assert {(line.bytes_out, line.bytes_in) for line in closes} == {(1, 1)}
    assert report.numbers("connections_out", "connections_failed", "bytes_out", "bytes_in") == {
        "connections_out": CONNECTIONS,
        "connections_failed": 0,
        "bytes_out": CONNECTIONS,
        "bytes_in": CONNECTIONS,
    }
    assert report.documents[-1]["custom_metrics"]["events_lost"] == [{"number": 0}]
    assert report.find("destination_ips") == [FAR4]
    assert report.find("destination_ports") == [BRIEF]
