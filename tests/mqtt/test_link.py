"""The link keeps its promise with a real broker: acknowledged or failed, in order, and never silent for ever.

Owns the link's own promises. Refuses to know what is sent over it (test_loop) and what the daemon does (test_faults).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import awscrt.exceptions
import msgspec
import pytest

from monitor.defender import reasons
from monitor.defender.link import Refused, Unreachable
from monitor.defender.paho import PahoLink
from monitor.errors import ConfigInvalid
from tests.mqtt import wires
from tests.mqtt.between import Between
from tests.mqtt.broker import DEADLINE_S, EVERYTHING, LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.wires import ACCEPTED, REPORT, Ear, connection, linked, run

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = f"{THING}-kinwatch"


@pytest.fixture(autouse=True, params=wires.KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each library in turn."""
    monkeypatch.setattr(wires, "kind", wires.KINDS[request.param])
    return str(request.param)


def test_messages_arrive_whole_and_in_the_order_they_were_published_in(broker: Broker) -> None:
    async def scenario() -> None:
        payloads = [b"", bytes(range(256)), *(b"%d" % number for number in range(300)), b"x" * 128 * 1024]
        async with linked(connection(broker, "responder")) as (there, ear), linked(connection(broker)) as (link, _):
            await there.subscribe([REPORT])
            await asyncio.gather(*(link.publish(REPORT, payload) for payload in payloads))
            await ear.until(lambda: len(ear.messages) == len(payloads))
            assert ear.messages == [(REPORT, payload) for payload in payloads]

    run(scenario())


def test_a_topic_that_is_not_allowed_is_a_refusal_with_its_reason(broker: Broker) -> None:
    async def scenario() -> None:
        async with linked(connection(broker)) as (link, _):
            with pytest.raises(Refused, match=r"publish to other/topic was refused with 135: not authorized") as caught:
                await link.publish("other/topic", b"{}")
            assert caught.value.reason_code == 135
            await link.publish(REPORT, b"{}")  # nothing else is harmed

    run(scenario())


@pytest.mark.parametrize("topic", ["a/+/b", "", "a" * 70_000])
def test_a_topic_that_cannot_be_is_a_refusal_and_no_exception(broker: Broker, topic: str) -> None:
    async def scenario() -> None:
        async with linked(connection(broker)) as (link, ear):
            with pytest.raises(Refused) as caught:
                await link.publish(topic, b"")
            assert caught.value.reason_code == 144
            with pytest.raises(Refused):
                await link.subscribe(["a/#/b"])
            await link.publish(REPORT, b"{}")
            assert ear.downs == []

    run(scenario())


def test_a_message_larger_than_the_broker_takes_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    acl = LEAST_PRIVILEGE.format(client=CLIENT, thing=THING)

    async def scenario(broker: Broker) -> None:
        async with linked(connection(broker)) as (link, ear):
            with pytest.raises(Refused) as caught:
                await link.publish(REPORT, b"x" * 20_000)
            assert caught.value.reason_code == 149
            await link.publish(REPORT, b"x")
            assert ear.downs == []

    with Broker(tmp_path, Authority(tmp_path), acl, more=["max_packet_size 10000"]) as broker:
        run(scenario(broker))


def test_a_broker_that_takes_few_at_once_gets_everything_in_order(tmp_path: Path) -> None:
    acl = LEAST_PRIVILEGE.format(client=CLIENT, thing=THING) + EVERYTHING.format(client="responder")

    async def scenario(broker: Broker) -> None:
        settings = connection(broker, throttle=True)
        async with linked(connection(broker, "responder")) as (there, hearing), linked(settings) as (link, ear):
            await there.subscribe([REPORT])
            payloads = [b"%d" % number for number in range(90)]
            await asyncio.gather(*(link.publish(REPORT, payload) for payload in payloads))
            await hearing.until(lambda: len(hearing.messages) == len(payloads))
            assert [payload for _, payload in hearing.messages] == payloads
            assert ear.downs == []

    with Broker(tmp_path, Authority(tmp_path), acl, more=["max_inflight_messages 2"]) as broker:
        run(scenario(broker))


@pytest.mark.parametrize("kind", ["paho"], indirect=True)
def test_paho_sends_no_more_than_the_broker_takes_without_acknowledgement(tmp_path: Path) -> None:
    acl = LEAST_PRIVILEGE.format(client=CLIENT, thing=THING)

    async def scenario(broker: Broker) -> None:
        ear, link = Ear(), PahoLink(connection(broker))
        link.start(ear)
        await ear.until(lambda: ear.ups)
        broker.signal(signal.SIGSTOP)
        flying = [link.publish(REPORT, b"%d" % number) for number in range(10)]
        await asyncio.sleep(0)
        session = link._session
        assert session is not None
        assert (session._flying, len(session._held)) == (2, 8)
        broker.signal(signal.SIGCONT)
        await asyncio.gather(*flying)
        assert (session._flying, len(session._held)) == (0, 0)
        await link.stop(5)

    with Broker(tmp_path, Authority(tmp_path), acl, more=["max_inflight_messages 2"]) as broker:
        run(scenario(broker))


def test_nothing_queues_while_there_is_no_connection(broker: Broker) -> None:
    async def scenario() -> None:
        link = wires.kind(connection(broker))
        ear = Ear()
        link.start(ear)
        with pytest.raises(Unreachable, match="there is no connection"):
            await link.publish(REPORT, b"1")
        with pytest.raises(Unreachable, match="there is no connection"):
            await link.subscribe([ACCEPTED])
        await ear.until(lambda: ear.ups)
        broker.kill()
        await ear.until(lambda: ear.downs)
        with pytest.raises(Unreachable, match="there is no connection"):
            await link.publish(REPORT, b"1")
        await link.stop(5)

    run(scenario())


def test_a_broker_that_comes_again_is_found_again_and_has_forgotten_the_session(broker: Broker) -> None:
    async def scenario() -> None:
        async with linked(connection(broker)) as (link, ear):
            await link.subscribe([ACCEPTED])
            broker.signal(signal.SIGSTOP)
            flying = [link.publish(REPORT, b"%d" % number) for number in range(20)]  # some written, some not
            broker.signal(signal.SIGKILL)  # before it could acknowledge one
            broker.kill()
            results = await asyncio.gather(*flying, return_exceptions=True)
            assert {type(result) for result in results} == {Unreachable}
            broker.start()
            await ear.until(lambda: len(ear.ups) == 2)
            assert ear.ups == [False, False]
            await link.publish(REPORT, b"{}")

    run(scenario())


def test_what_was_missed_comes_when_the_broker_kept_the_session(broker: Broker) -> None:
    async def scenario() -> None:
        with Between(broker.port) as wire:
            settings = connection(broker, port=wire.own_port, reconnect_ms=(1000, 1000))
            async with linked(connection(broker, "responder")) as (there, _), linked(settings) as (link, ear):
                await link.subscribe([ACCEPTED])
                wire.cut()
                await ear.until(lambda: ear.downs)
                await there.publish(ACCEPTED, b"missed")
                await ear.until(lambda: ear.messages)
                assert ear.ups == [False, True]
                assert ear.messages == [(ACCEPTED, b"missed")]

    run(scenario())


def test_a_session_of_no_time_ends_with_its_connection(broker: Broker) -> None:
    async def scenario() -> None:
        with Between(broker.port) as wire:
            settings = connection(broker, port=wire.own_port, session_s=0)
            async with linked(settings) as (link, ear):
                await link.subscribe([ACCEPTED])
                wire.cut()
                await ear.until(lambda: len(ear.ups) == 2)
                assert ear.ups == [False, False]

    run(scenario())


def test_a_frozen_broker_fails_what_waits_and_is_left(broker: Broker) -> None:
    async def scenario() -> None:
        async with linked(connection(broker, keep_alive_s=5)) as (link, ear):
            broker.signal(signal.SIGSTOP)
            with pytest.raises(Unreachable):
                await link.publish(REPORT, b"{}")
            await ear.until(lambda: ear.downs)
            assert "the broker is silent" in ear.downs[0]
            broker.signal(signal.SIGCONT)
            await ear.until(lambda: len(ear.ups) == 2)
            await link.publish(REPORT, b"{}")

    run(scenario())


def test_who_takes_over_the_client_id_is_suspected(broker: Broker) -> None:
    async def scenario() -> None:
        slow = connection(broker, reconnect_ms=(60_000, 120_000))
        async with linked(slow) as (_, ear), linked(connection(broker, "reader", client_id=CLIENT)):
            await ear.until(lambda: ear.downs)
            assert "does another client use this client id?" in ear.downs[0]

    run(scenario())


def test_a_wrong_authority_and_a_wrong_name_are_said(broker: Broker, tmp_path: Path) -> None:
    """Together, because the AWS runtime takes up to half a minute for each."""
    folder = tmp_path / "other"
    folder.mkdir()
    wrong_ca = connection(broker, root_ca=str(Authority(folder).root_ca))

    async def scenario() -> None:
        with Between(broker.port, host="127.0.0.2") as wire:
            wrong_name = connection(broker, endpoint="127.0.0.2", port=wire.own_port)
            async with linked(wrong_ca, up=False) as (_, ear), linked(wrong_name, up=False) as (_, other):
                await ear.until(lambda: ear.downs)
                await other.until(lambda: other.downs)
                assert (ear.ups, other.ups) == ([], [])
                for why in (*ear.downs, *other.downs):
                    assert why.startswith("TLS failed; is root_ca the broker's, and endpoint its name?"), why

    run(scenario())


def test_a_certificate_that_the_broker_does_not_take_is_said(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    expired, revoked = authority.identity("expired", not_after=past), authority.identity("withdrawn")
    with Broker(tmp_path, authority, "", more=[f"crlfile {authority.revoke(revoked)}"]) as broker:

        async def scenario() -> None:
            async with (
                linked(connection(broker, expired.name), up=False) as (_, ear),
                linked(connection(broker, revoked.name), up=False) as (_, other),
            ):
                await ear.until(lambda: ear.downs)
                await other.until(lambda: other.downs)
                assert (ear.ups, other.ups) == ([], [])
                for why in (*ear.downs, *other.downs):
                    assert "does it know this certificate" in why, why

        run(scenario())


@pytest.mark.parametrize("state", ["new", "connecting", "connected", "frozen", "refused", "stopped"])
def test_stop_comes_to_an_end_in_every_state(broker: Broker, tmp_path: Path, state: str) -> None:
    settings = connection(broker)
    if state == "refused":
        (tmp_path / "other").mkdir()
        settings = msgspec.structs.replace(settings, root_ca=str(Authority(tmp_path / "other").root_ca))

    async def scenario() -> None:
        link, ear = wires.kind(settings), Ear()
        flying: list[asyncio.Future[None]] = []
        if state != "new":
            link.start(ear)
        if state in {"connected", "frozen", "stopped"}:
            await ear.until(lambda: ear.ups)
        if state == "refused":  # in the midst of what the runtime takes so long for
            await asyncio.to_thread(_wait_for_log, broker, "New connection")
        if state == "frozen":
            broker.signal(signal.SIGSTOP)
            flying = [link.publish(REPORT, b"x" * 100_000) for _ in range(50)]
        if state == "stopped":
            await link.stop(5)
        await link.stop(1)
        results = await asyncio.gather(*flying, return_exceptions=True)
        assert {type(result) for result in results} == ({Unreachable} if flying else set())
        if state != "new":
            with pytest.raises(Unreachable):
                await link.publish(REPORT, b"late")
            with pytest.raises(Unreachable):
                await link.subscribe([ACCEPTED])

    run(scenario())


def _wait_for_log(broker: Broker, text: str, before: int = 0) -> None:
    """Wait until the log says that, beyond its first `before` characters."""
    deadline = time.monotonic() + DEADLINE_S
    while text not in broker.log()[before:]:
        assert time.monotonic() < deadline, broker.log()
        time.sleep(0.05)


def test_the_broker_hears_a_farewell(broker: Broker) -> None:
    async def scenario() -> None:
        async with linked(connection(broker)):
            pass

    run(scenario())
    _wait_for_log(broker, f"Received DISCONNECT from {CLIENT}")


def test_a_loop_that_ended_is_not_called(broker: Broker, kind: str) -> None:
    """The runtime's thread outlives the loop of a program that ends in a hurry; it must not complain, nor hold it.

    paho has no thread then, and nobody who would connect again.
    """
    program = """
        import asyncio, sys, time
        import msgspec
        from monitor.defender.connection import Connection
        from tests.mqtt.wires import KINDS, Ear
        settings = msgspec.json.decode(sys.argv[1], type=Connection)

        async def hurry():
            link, ear = KINDS[sys.argv[2]](settings), Ear()
            link.start(ear)
            await ear.until(lambda: ear.ups)
            return link

        link = asyncio.run(hurry())
        print("closed", flush=True)
        sys.stdin.read()
        print("done", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), msgspec.json.encode(connection(broker)).decode(), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"closed\n"
        before = len(broker.log())
        broker.kill()  # the runtime tells that it lost the connection
        broker.start()  # and that it has another one
        if kind == "awscrt":
            _wait_for_log(broker, f"as {CLIENT}", before)
        output, errors = process.communicate(timeout=60)
        assert (output, errors, process.returncode) == (b"done\n", b"", 0)
    finally:
        process.kill()
        process.wait()


def test_a_file_that_is_not_what_it_should_be_is_a_wrong_configuration(broker: Broker) -> None:
    async def scenario() -> None:
        settings = connection(broker)
        other = broker.authority.identity("other")
        for change, words in (
            ({"private_key": str(other.private_key)}, "no TLS can be made with these files"),
            ({"certificate": "/nowhere/cert.pem"}, "cannot be read"),
            ({"root_ca": "/nowhere/ca.pem"}, "cannot be read|no TLS can be made"),
        ):
            with pytest.raises(ConfigInvalid, match=words):
                wires.kind(msgspec.structs.replace(settings, **change)).start(Ear())

    run(scenario())


def test_a_listener_that_fails_harms_nobody_else(broker: Broker) -> None:
    class Deaf(Ear):
        def received(self, topic: str, payload: bytes) -> None:
            super().received(topic, payload)
            if payload == b"0":
                raise ValueError("a bug")

    async def scenario() -> None:
        complaints: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(str(context["exception"]))
        )
        ear, link = Deaf(), wires.kind(connection(broker, "responder"))
        link.start(ear)
        await ear.until(lambda: ear.ups)
        await link.subscribe([REPORT])
        async with linked(connection(broker)) as (here, _):
            await asyncio.gather(*(here.publish(REPORT, b"%d" % number) for number in range(10)))
        await ear.until(lambda: len(ear.messages) == 10)
        await link.stop(5)
        assert complaints == ["a bug"]

    run(scenario())


def test_every_error_that_has_words_is_one_of_the_runtime() -> None:
    known = {getattr(awscrt.exceptions.from_code(code), "name", "") for code in range(1 << 15)}
    assert reasons._WORDS.keys() <= known
