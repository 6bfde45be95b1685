"""A socket belongs to who made it or, where that is a stranger, to the first of kin that used it.

An accepted one belongs to the owner of its listener. Whoever uses and closes it changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.engine.lines import Accept, Close, Connect, Exit, Fork, Listen
from monitor.remote import endpoint
from tests.net.peer import EXCHANGE
from tests.net.rig import FAR4, NEAR4, NEAR6

if TYPE_CHECKING:
    from tests.net.rig import Net

OF_MAKER, OF_USER = 1000, 200_003


def test_a_connection_that_a_child_uses_and_closes_is_its_parents(net: Net) -> None:
    watcher = net.watch("shared")
    program = net.start("shared", FAR4, EXCHANGE, OF_MAKER, OF_USER)
    opened, child = program.fact("opened"), program.fact("child")
    program.fact("done")
    program.release()
    peer = net.peer.told("stream", port=opened["port"])
    watcher.wait_for(Close)
    assert peer["got"] == OF_MAKER + OF_USER + 8
    assert watcher.one(Fork).pid == child["pid"] != opened["pid"]
    assert watcher.one(Connect).process_id == opened["process_id"]
    close = watcher.one(Close)
    assert (close.process_id, close.bytes_out) == (opened["process_id"], peer["got"])
    assert watcher.finish().number("bytes_out") == peer["got"]


def test_a_connection_stays_its_makers_over_an_exec(net: Net) -> None:
    watcher = net.watch("over_exec")
    program = net.start("over_exec", FAR4, EXCHANGE, OF_MAKER, OF_USER)
    opened = program.fact("opened")
    program.fact("done")
    program.release()
    peer = net.peer.told("stream", port=opened["port"])
    watcher.wait_for(Close)
    close = watcher.one(Close)
    assert (close.process_id, close.bytes_out) == (opened["process_id"], peer["got"])
    assert peer["got"] == OF_MAKER + OF_USER + 8
    assert watcher.finish().numbers("bytes_out", "connections_out") == {"bytes_out": peer["got"], "connections_out": 1}


def test_a_connection_that_kin_gave_to_a_stranger_is_still_kins(net: Net) -> None:
    watcher = net.watch("give")
    door = net.path("give").with_name("door")
    taker = net.start_stranger("take", door, OF_USER)
    taker.fact("waiting")
    giver = net.start("give", door, FAR4, EXCHANGE, OF_MAKER)
    opened = giver.fact("opened")
    taker.fact("done")
    giver.release()
    peer = net.peer.told("stream", port=opened["port"])
    watcher.wait_for(Close)
    close = watcher.one(Close)
    assert (close.process_id, close.bytes_out) == (opened["process_id"], peer["got"])
    assert peer["got"] == OF_MAKER + OF_USER + 8
    assert watcher.finish().number("bytes_out") == peer["got"]


def test_a_connection_outlives_its_owner_in_a_strangers_hands(net: Net) -> None:
    watcher = net.watch("give")
    door = net.path("give").with_name("door")
    taker = net.start_stranger("take", door, 40_000_003)  # far more than the buffers hold
    taker.fact("waiting")
    giver = net.start("give", door, FAR4, EXCHANGE, OF_MAKER)
    opened = giver.fact("opened")
    giver.release()
    taker.fact("done")
    peer = net.peer.told("stream", port=opened["port"])
    watcher.wait_for(Close)
    watcher.wait_for(Exit, process_id=opened["process_id"])
    close = watcher.one(Close)
    assert (close.process_id, close.bytes_out) == (opened["process_id"], peer["got"])
    assert watcher.finish().number("bytes_out") == peer["got"] == OF_MAKER + 40_000_003 + 8


def test_a_strangers_connection_is_kins_from_its_first_use_on(net: Net) -> None:
    watcher = net.watch("take")
    door = net.path("take").with_name("door")
    taker = net.start("take", door, OF_USER)
    waiting = taker.fact("waiting")
    giver = net.start_stranger("give", door, FAR4, EXCHANGE, OF_MAKER)
    port = giver.fact("opened")["port"]
    taker.fact("done")
    giver.release()
    peer = net.peer.told("stream", port=port)
    watcher.wait_for(Close)
    assert peer["got"] == OF_MAKER + OF_USER + 8
    assert watcher.one(Close).process_id == waiting["process_id"]
    assert watcher.one(Connect).cause == "running"
    report = watcher.finish()
    # The stranger's bytes are not kin's, and kin did not connect.
    assert report.numbers("bytes_out", "connections_out") == {"bytes_out": OF_USER, "connections_out": 0}


def test_accepted_connections_belong_to_the_owner_of_the_listener(net: Net) -> None:
    watcher = net.watch("serve")
    program = net.start("serve", "::", 8100, 1000, 2000, 2)
    listening = program.fact("listening")
    before = len(net.peer.facts("connected"))
    for address in (NEAR4, NEAR6):
        net.peer.order("connect", address=address, port=8100, out=1000, wanted=2000)
    program.fact("served", 2)
    workers = {fact["pid"] for fact in program.facts("accepted")}
    program.release()
    net.peer.fact("connected", before + 2)
    clients = {
        endpoint(fact["host"], fact["port"]): (fact["got"], fact["sent"])
        for fact in net.peer.facts("connected")[before:]
    }
    watcher.wait_for(Close, 3)
    assert watcher.one(Listen).process_id == listening["process_id"]
    assert watcher.one(Listen).local == "[::]:8100"
    accepts, closes = watcher.of(Accept), [close for close in watcher.of(Close) if close.remote in clients]
    assert {line.remote for line in accepts} == {line.remote for line in closes} == set(clients)
    assert {line.process_id for line in accepts + closes} == {listening["process_id"]}
    assert listening["pid"] not in workers
    assert {close.remote: (close.bytes_out, close.bytes_in) for close in closes} == clients
    report = watcher.finish()
    assert report.numbers("connections_in", "connections_out", "bytes_in", "bytes_out") == {
        "connections_in": 2,
        "connections_out": 0,
        "bytes_in": 2000,
        "bytes_out": 4000,
    }
    assert report.find("listening_ports") == [8100]
    assert report.find("destination_ips") is None


def test_bytes_that_leave_after_the_process_has_ended_are_still_its(net: Net) -> None:
    watcher = net.watch("flood")
    program = net.start("flood", FAR4, EXCHANGE, 3_000_003)
    opened = program.fact("opened")
    assert program.release() == 0
    peer = net.peer.told("stream", port=opened["port"])
    watcher.wait_for(Close)
    close = watcher.one(Close)
    assert (close.process_id, close.bytes_out) == (opened["process_id"], peer["got"])
    assert watcher.finish().number("bytes_out") == peer["got"] == 3_000_003 + 8
