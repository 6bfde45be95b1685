"""UDP: payload, peers, ports that kin receives on, destinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from monitor.engine.lines import Close, Connect, Listen, Peer, Root
from monitor.remote import endpoint
from tests.net.peer import ECHO
from tests.net.rig import FAR4, FAR6, MAPPED, NEAR4, NEAR6, as_told

if TYPE_CHECKING:
    from tests.net.rig import Net

COUNT, SIZE = 50, 1201


@pytest.mark.parametrize("address", [FAR4, FAR6, MAPPED])
@pytest.mark.parametrize("how", ["send", "write", "uring"])
def test_a_connected_socket_counts_its_datagrams(net: Net, address: str, how: str) -> None:
    watcher = net.watch("datagrams")
    program = net.start("datagrams", address, ECHO, COUNT, SIZE, how)
    done, opened = program.fact("done"), program.fact("opened")
    program.release()
    assert (done["out"], done["in"]) == (COUNT * SIZE, COUNT * SIZE)
    watcher.wait_for(Close)
    connect, close = watcher.one(Connect), watcher.one(Close)
    assert (connect.process_id, connect.protocol) == (opened["process_id"], "udp")
    assert connect.remote == close.remote == endpoint(as_told(address), ECHO)
    assert (close.bytes_out, close.bytes_in) == (done["out"], done["in"])
    report = watcher.finish()
    assert report.numbers("bytes_out", "bytes_in") == {"bytes_out": done["out"], "bytes_in": done["in"]}
    assert report.find("destination_ips") == [as_told(address)]
    assert report.find("destination_ports") == [ECHO]
    assert report.find("listening_ports") is None


@pytest.mark.parametrize("address", [FAR4, FAR6, MAPPED])
@pytest.mark.parametrize("how", ["sendto", "sendmsg", "sendmmsg"])
def test_a_socket_without_a_peer_counts_its_datagrams_and_tells_a_peer_once(net: Net, address: str, how: str) -> None:
    watcher = net.watch("datagrams")
    program = net.start("datagrams", address, ECHO, COUNT, SIZE, how)
    done, opened = program.fact("done"), program.fact("opened")
    program.release()
    watcher.wait_for(Close)
    peer, close = watcher.one(Peer), watcher.one(Close)
    assert (close.process_id, close.connection_id) == (opened["process_id"], peer.connection_id)
    assert (close.bytes_out, close.bytes_in) == (done["out"], done["in"])
    assert (peer.process_id, peer.remote) == (opened["process_id"], endpoint(as_told(address), ECHO))
    assert peer.family == ("ipv6" if address == FAR6 else "ipv4")
    report = watcher.finish()
    assert report.numbers("bytes_out", "bytes_in") == {"bytes_out": done["out"], "bytes_in": done["in"]}
    assert report.find("destination_ips") == [as_told(address)]
    assert report.find("destination_ports") == [ECHO]


@pytest.mark.parametrize(("bound", "address"), [("::", NEAR4), ("::", NEAR6), (NEAR4, NEAR4)])
def test_a_server_counts_its_datagrams_and_its_port(net: Net, bound: str, address: str) -> None:
    watcher = net.watch("echo")
    program = net.start("echo", bound, 8101, COUNT)
    listening = program.fact("listening")
    watcher.wait_for(Root)
    net.peer.order("send", address=address, port=8101, count=COUNT, size=SIZE)
    done = program.fact("done")
    program.release()
    assert (done["in"], done["out"]) == (COUNT * SIZE, COUNT * SIZE)
    watcher.wait_for(Close)
    listen = watcher.one(Listen)
    assert (listen.process_id, listen.protocol, listen.local) == (
        listening["process_id"],
        "udp",
        endpoint(bound, 8101),
    )
    report = watcher.finish()
    assert report.numbers("bytes_out", "bytes_in") == {"bytes_out": done["out"], "bytes_in": done["in"]}
    assert report.find("listening_ports") == [8101]
