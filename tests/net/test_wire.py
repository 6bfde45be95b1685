"""Wire bytes and packets: what the near interface has carried, less its link headers, and nothing else.

Only the programs' packets are on the wire (rig.py). Where segments travel bundled (GSO) the interface counts bundles:
then the kernel's own count of segments is the truth of packets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Accept, Close, Connect, Peer
from tests.net.peer import ECHO, EXCHANGE
from tests.net.rig import FAR4, FAR6, MAPPED, NEAR4, NEAR6, until_still

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.net.rig import Net, Report, Traffic, Wire

ADDRESSES = pytest.mark.parametrize("address", [FAR4, FAR6, MAPPED])
WIRE = ("packets_out", "packets_in", "wire_bytes_out", "wire_bytes_in")


@pytest.fixture(autouse=True)
def _packets(net: Net) -> None:
    """What is asked for here is in the packets."""
    net.packets = True


@pytest.fixture
def plain(wire: Wire) -> Iterator[None]:
    """Every TCP segment is a packet of its own."""
    wire.segment(together=False)
    yield
    wire.segment(together=True)


def _truth(traffic: Traffic) -> dict[str, int]:
    return dict(zip(WIRE, (traffic.packets_out, traffic.packets_in, traffic.wire_out, traffic.wire_in), strict=True))


def _told(report: Report) -> dict[str, int]:
    return report.numbers(*WIRE)


@ADDRESSES
def test_a_stream_costs_what_the_interface_carried(net: Net, plain: None, address: str) -> None:  # noqa: ARG001
    watcher = net.watch("stream")
    before = net.wire.traffic()
    program = net.start_known(watcher, "stream", address, EXCHANGE, "send", 1_000_003, "read", 500_003)
    program.fact("done")
    program.release()
    watcher.wait_for(Close)
    until_still(net.wire.traffic)
    truth = net.wire.traffic() - before
    report = watcher.finish()
    assert _told(report) == _truth(truth)
    assert report.number("packets_out") > 1_000_003 // 1500


@pytest.mark.parametrize("address", [NEAR4, NEAR6])
def test_an_accepted_connection_costs_what_the_interface_carried(
    net: Net,
    plain: None,  # noqa: ARG001
    address: str,
) -> None:
    watcher = net.watch("serve")
    before = net.wire.traffic()
    program = net.start_known(watcher, "serve", "::", 8100, 300_003, 400_003, 1)
    program.fact("listening")
    net.peer.order("connect", address=address, port=8100, out=300_003, wanted=400_003)
    program.fact("served")
    watcher.wait_for(Accept)
    until_still(net.wire.traffic)
    program.release()
    watcher.wait_for(Close, 2)
    until_still(net.wire.traffic)
    truth = net.wire.traffic() - before
    assert _told(watcher.finish()) == _truth(truth)


@ADDRESSES
def test_datagrams_cost_what_the_interface_carried(net: Net, address: str) -> None:
    watcher = net.watch("datagrams")
    before = net.wire.traffic()
    program = net.start_known(watcher, "datagrams", address, ECHO, 100, 1000, "sendto")
    program.fact("done")
    program.release()
    watcher.wait_for(Peer)
    until_still(net.wire.traffic)
    truth = net.wire.traffic() - before
    report = watcher.finish()
    assert _told(report) == _truth(truth)
    assert report.numbers("packets_out", "packets_in") == {"packets_out": 100, "packets_in": 100}


@ADDRESSES
def test_bundled_segments_count_one_by_one(net: Net, address: str) -> None:
    watcher = net.watch("stream")
    before = net.wire.traffic()
    program = net.start_known(watcher, "stream", address, EXCHANGE, "send", 1_000_003, "read", 500_003)
    program.fact("done")
    program.release()
    watcher.wait_for(Close)
    until_still(net.wire.traffic)
    bundles = net.wire.traffic() - before
    report = watcher.finish()
    # An Ethernet frame carries at most 1,460 bytes of a stream.
    assert report.number("packets_out") >= 1_000_003 / 1460 > bundles.packets_out
    assert report.number("packets_in") >= 500_003 / 1460
    # A bundle has the headers of one packet, here as there; what comes in may be bundled behind the interface (GRO).
    assert report.number("wire_bytes_out") == bundles.wire_out
    assert 500_003 < report.number("wire_bytes_in") <= bundles.wire_in


def test_a_strangers_packets_are_nobodys(net: Net) -> None:
    watcher = net.watch("stream")
    kin = net.start_known(watcher, "stream", FAR4, EXCHANGE, "send", 1, "read", 1)
    kin.fact("done")
    stranger = net.start_stranger("stream", FAR4, EXCHANGE, "send", 100_003, "read", 100_003)
    stranger.fact("done")
    stranger.release()
    kin.release()
    watcher.wait_for(Close)
    assert len(watcher.of(Connect)) == 1
    report = watcher.finish()
    assert report.numbers("bytes_out", "bytes_in") == {"bytes_out": 9, "bytes_in": 1}
    assert report.number("wire_bytes_out") < 1000
