"""What leaves a device besides reports, and in which order.

Owns a broker in memory that takes, refuses, keeps silent and breaks. Refuses to know MQTT and machines' clocks.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from monitor.defender.alarms import BURST
from monitor.defender.delivery import HOPELESS, PIPELINE
from monitor.defender.link import Refused, Unreachable
from tests.unit.service import (
    ALARM,
    ALARMS,
    CLEAR,
    EVENTS,
    EVENTS_S,
    INTERVAL_S,
    SPACING_S,
    THING,
    Clock,
    Device,
    Service,
    events,
    refuse,
    spawned,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# -------- alarms --------


def test_alarms_leave_at_once_while_reports_keep_their_spacing(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        moments = []
        for number in range(5):
            moments.append(clock.time())
            device.delivery.alarm(ALARM % number)
            await asyncio.sleep(7.0)
        assert values(service) == list(range(5))
        assert service.moments(ALARMS) == pytest.approx(moments, abs=0.01)
        assert len(service.reports()) == 1
        await device.finish()

    clock.run(story())


def test_the_end_of_an_alarm_is_a_message_and_asks_for_no_report(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        device.delivery.alarm(CLEAR % 1)
        await asyncio.sleep(SPACING_S)
        assert [alarm["event"] for alarm in service.alarms()] == ["clear"]
        assert service.reports() == []
        await device.finish(report=False)

    clock.run(story())


def test_an_alarm_before_the_loop_runs_is_sent_and_reported_like_any_other(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        delivery = device.open()
        device.spawn(1)
        delivery.alarm(ALARM % 1)
        await device.go()
        await asyncio.sleep(1.0)
        assert values(service) == [1]
        assert [spawned(report) for report in service.reports()] == [1]
        await device.finish(report=False)

    clock.run(story())


def test_alarms_without_a_topic_still_ask_for_a_report(clock: Clock, service: Service) -> None:
    device = Device(clock, service, alarm_topic="")

    async def story() -> None:
        await device.begin()
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(1.0)
        assert (service.alarms(), len(service.reports())) == ([], 1)
        await device.finish(report=False)

    clock.run(story())


def test_without_a_connection_alarms_wait_and_come_in_order(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        service.up = False
        await device.begin()
        for number in range(2 * PIPELINE + 3):
            device.delivery.alarm(ALARM % number if number % 2 else CLEAR % number)
            await asyncio.sleep(2.0)
        service.connect()
        await asyncio.sleep(1.0)
        assert values(service) == list(range(2 * PIPELINE + 3))
        assert device.spool.sizes().alarms == 0
        await device.finish(report=False)

    clock.run(story())


def test_what_was_on_its_way_when_the_connection_broke_is_sent_again_under_its_id(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        tried: list[str] = []

        def silent(topic: str, payload: bytes) -> bool:
            if topic == ALARMS:
                tried.append(json.loads(payload)["alarm_id"])
            return False

        service.ack = silent
        for number in range(3):
            device.delivery.alarm(ALARM % number)
        await asyncio.sleep(1.0)
        service.disconnect()
        device.delivery.alarm(ALARM % 3)
        service.ack = lambda _topic, _payload: True
        await asyncio.sleep(60.0)
        service.connect()
        await asyncio.sleep(5.0)
        assert values(service) == [0, 1, 2, 3]
        assert [alarm["alarm_id"] for alarm in service.alarms()][:3] == tried
        status = device.delivery.status()
        assert (status["alarms"]["undelivered"], status["alarms"]["delivered"]) == (3, 4)
        await device.finish(report=False)

    clock.run(story())


def test_a_kill_with_alarms_on_their_way_sends_them_again_in_the_next_life(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        service.ack = lambda _topic, _payload: False
        device.delivery.alarm((ALARM % 1) + (CLEAR % 2))
        await asyncio.sleep(1.0)
        await device.kill()
        service.ack = lambda _topic, _payload: True
        await device.begin()
        device.delivery.alarm(ALARM % 3)
        await asyncio.sleep(1.0)
        assert values(service) == [1, 2, 3]
        assert len({alarm["alarm_id"] for alarm in service.alarms()}) == 3
        await device.finish(report=False)

    clock.run(story())


@pytest.mark.parametrize("code", sorted(HOPELESS))
def test_what_no_later_attempt_changes_is_dropped_and_counted(
    clock: Clock, service: Service, device: Device, code: int
) -> None:
    async def story() -> None:
        await device.begin()
        refusal = refuse(code)
        service.ack = lambda topic, payload: refusal(topic, payload) if b'"value":1,' in payload else True
        device.delivery.alarm(b"".join(ALARM % number for number in range(3)))
        await asyncio.sleep(600.0)
        assert values(service) == [0, 2]
        assert device.dropped == [1]
        status = device.delivery.status()
        assert (status["alarms"]["refused"], status["alarms"]["delivered"]) == (1, 2)
        assert status["spool"]["dropped"] == {"alarm": 1}
        assert len([text for text in device.troubles if f"refused with {code}" in text]) == 1
        await device.finish(report=False)

    clock.run(story())


@pytest.mark.parametrize("code", [128, 131, 135, 151])
def test_what_a_policy_or_a_quota_refuses_is_tried_again_less_and_less_often(
    clock: Clock, service: Service, device: Device, code: int
) -> None:
    async def story() -> None:
        await device.begin()
        tried: list[float] = []

        def refusing(topic: str, _payload: bytes) -> Exception | bool:
            if topic != ALARMS:
                return True
            tried.append(clock.time())
            return Refused(f"refused with {code}", code)

        service.ack = refusing
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(INTERVAL_S / 2)
        waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert waits[0] <= 1.0
        assert 150.0 <= waits[-1] <= 300.0
        assert len(tried) < 20
        assert device.dropped == []
        service.ack = lambda _topic, _payload: True
        await asyncio.sleep(301.0)
        assert values(service) == [1]
        assert len([text for text in device.troubles if f"refused with {code}" in text]) == 1
        await device.finish(report=False)

    clock.run(story())


def test_a_storm_of_alarms_is_a_burst_and_one_message_a_second(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        for number in range(5 * BURST):
            device.delivery.alarm(ALARM % number)
            await asyncio.sleep(0.01)
        device.delivery.alarm(CLEAR % -1)
        await asyncio.sleep(10.0)
        alarms = service.alarms()
        assert BURST <= len(alarms) <= BURST + 5 * BURST * 0.01 + 2
        assert sum(1 + alarm.get("merged", 0) for alarm in alarms) == 5 * BURST + 1
        assert (alarms[-1]["event"], alarms[-1]["value"]) == ("clear", -1)
        await device.finish(report=False)

    clock.run(story())


def test_a_word_that_comes_while_the_merged_one_is_on_its_way_is_not_lost_with_it(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        device.delivery.alarm(b"".join(ALARM % number for number in range(BURST)))
        await asyncio.sleep(0.01)
        service.ack = lambda topic, _payload: topic != ALARMS
        device.delivery.alarm(ALARM % BURST)
        await asyncio.sleep(1.5)  # it has left and nobody has said yet that it arrived
        device.delivery.alarm(CLEAR % -1)
        service.ack = lambda _topic, _payload: True
        for future in service._unanswered:
            future.set_result(None)
        await asyncio.sleep(5.0)
        assert values(service)[-1] == -1
        assert device.spool.sizes().alarms == 0
        await device.finish(report=False)

    clock.run(story())


# -------- event lines --------


def test_event_lines_wait_for_company_and_leave_as_one_batch(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        sink = device.delivery.event_sink()
        assert sink is not None
        for number in range(5):
            sink.write(b"%d\n" % number)
            await asyncio.sleep(1.0)
        assert events(service) == []
        await asyncio.sleep(2 * EVENTS_S)
        assert events(service) == [b"0\n1\n2\n3\n4\n"]
        assert device.delivery.status()["events"]["delivered"] == 1
        await device.finish(report=False)

    clock.run(story())


def test_batches_are_bounded_and_nothing_is_lost_or_out_of_order(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        sink = device.delivery.event_sink()
        assert sink is not None
        lines = [b"%03d" % number + b"x" * (number % 97) + b"\n" for number in range(500)]
        for line in lines:
            sink.write(line)
            await asyncio.sleep(0.01)
        await asyncio.sleep(3 * EVENTS_S)
        assert b"".join(events(service)) == b"".join(lines)
        assert max(map(len, events(service))) <= 1024
        assert min(map(len, events(service)[:-2])) > 512
        await device.finish(report=False)

    clock.run(story())


def test_a_batch_may_be_packed(clock: Clock, service: Service) -> None:
    device = Device(clock, service, events_topic=EVENTS, events_s=1, events_gzip=True)

    async def story() -> None:
        await device.begin()
        sink = device.delivery.event_sink()
        assert sink is not None
        sink.write(b"a\nb\n")
        await asyncio.sleep(5.0)
        assert [gzip.decompress(batch) for batch in events(service)] == [b"a\nb\n"]
        await device.finish(report=False)

    clock.run(story())


def test_lines_before_the_loop_runs_are_kept_like_any_other(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        delivery = device.open()
        sink = delivery.event_sink()
        assert sink is not None
        sink.write(b"early\n")
        await device.go()
        assert device.spool.sizes().events == 1
        sink.write(b"later\n")
        await asyncio.sleep(3 * EVENTS_S)
        assert events(service) == [b"early\nlater\n"]
        await device.finish(report=False)

    clock.run(story())


def test_without_a_topic_there_is_no_sink(clock: Clock, service: Service) -> None:
    device = Device(clock, service)
    assert device.open().event_sink() is None
    device.spool.close()


def test_refused_batches_do_not_hold_alarms_back(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        service.ack = lambda topic, _payload: Refused("no", 135) if topic == EVENTS else True
        sink = device.delivery.event_sink()
        assert sink is not None
        sink.write(b"x\n")
        await asyncio.sleep(3 * EVENTS_S)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(0.1)
        assert values(service) == [1]
        assert device.delivery.status()["events"]["refused"] > 0
        await device.finish(report=False)

    clock.run(story())


# -------- connections --------


def test_a_session_that_was_forgotten_is_subscribed_again_and_one_that_was_kept_is_not(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        assert len(service.subscribed) == 1
        for resumed, count in ((True, 1), (False, 2), (True, 2)):
            service.disconnect()
            await asyncio.sleep(5.0)
            service.connect(resumed=resumed)
            await asyncio.sleep(1.0)
            assert len(service.subscribed) == count
            assert device.delivery.status()["connected"] is True
        assert device.delivery.status()["connections"] == 4
        await device.finish(report=False)

    clock.run(story())


class Companion:
    """Somebody else on the connection, who wants one topic."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def filters(self, thing: str) -> list[str]:
        """Its topic."""
        return [f"shadow/{thing}"]

    def connected(self, thing: str) -> None:
        """Note it."""
        self.heard.append(thing)

    def received(self, name: str, payload: bytes) -> bool:
        """Nothing is for it."""
        del name, payload
        return False

    async def run(self) -> None:
        """Do nothing."""

    def status(self) -> dict[str, Any]:
        """Say nothing."""
        return {}


def test_a_connection_that_breaks_between_two_subscriptions_leaves_nobody_without_his(
    clock: Clock, service: Service, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    companion, subscribe = Companion(), service.subscribe

    async def breaks(filters: Sequence[str]) -> None:
        if filters == companion.filters(THING):
            service.disconnect()
            raise Unreachable("it broke")
        await subscribe(filters)

    async def story() -> None:
        monkeypatch.setattr(service, "subscribe", breaks)
        device.open().accompany(companion)
        await device.go()
        assert companion.heard == []
        monkeypatch.setattr(service, "subscribe", subscribe)
        service.connect(resumed=True)
        await asyncio.sleep(1.0)
        assert service.subscribed[-1] == companion.filters(THING)
        assert companion.heard == [THING]
        await device.finish(report=False)

    clock.run(story())


def test_a_session_of_another_thing_is_subscribed_again(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        service.disconnect()
        settings = device.delivery._settings
        device.delivery.identify(msgspec.structs.replace(settings, thing="another"))
        service.connect(resumed=True)
        await asyncio.sleep(1.0)
        assert all("/another/" in name for name in service.subscribed[-1])
        await device.finish(report=False)

    clock.run(story())


def test_the_first_connection_of_a_life_subscribes_though_the_broker_kept_the_session(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        service.up = False
        await device.begin()
        service.connect(resumed=True)
        await asyncio.sleep(1.0)
        assert len(service.subscribed) == 1
        await device.finish(report=False)

    clock.run(story())


def test_a_broken_connection_is_said_once_and_its_return_too(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        for _ in range(3):
            service.disconnect("no route")
            await asyncio.sleep(1.0)
        assert device.delivery.status()["trouble"] == "no route"
        service.connect()
        await asyncio.sleep(1.0)
        assert len(device.troubles) == 2
        assert "no connection to example.org: no route" in device.troubles[0]
        assert device.troubles[1] == "connected again"
        assert "trouble" not in device.delivery.status()
        await device.finish(report=False)

    clock.run(story())


def test_status_tells_what_became_of_everything(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(1.0)
        service.disconnect("no route")
        device.delivery.alarm(CLEAR % 2)
        status = device.delivery.status()
        json.dumps(status)
        assert (status["endpoint"], status["thing"], status["connected"]) == ("example.org:8883", "mything1", False)
        assert status["next_report_in_s"] == pytest.approx(INTERVAL_S, abs=2)
        assert (status["reports"]["sent"], status["reports"]["accepted"]) == (1, 1)
        assert status["alarms"] == {"delivered": 1, "refused": 0, "undelivered": 0, "taken": 2, "merged": 0}
        assert status["spool"]["alarms"] == 1
        await device.finish(report=False)

    clock.run(story())
