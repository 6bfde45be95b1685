"""The end in good order, whatever the broker does: in its time, and nothing is lost.

Owns the states in which a daemon may be told to stop, and a run of one report. Refuses to know MQTT and real clocks.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

import pytest

from monitor.defender.alarms import BURST
from monitor.defender.delivery import LAST_S
from tests.unit.service import (
    ALARM,
    ANSWER_S,
    CLEAR,
    METRICS,
    SPACING_S,
    Clock,
    Device,
    Service,
    events,
    refuse,
    spawned,
    values,
)

FINISH_S: Final = 5.0


def connected(_: Service) -> None:
    """All is well."""


def away(service: Service) -> None:
    """There is no connection."""
    service.disconnect()


def silent_broker(service: Service) -> None:
    """Nothing is acknowledged."""
    service.ack = lambda _topic, _payload: False


def silent_service(service: Service) -> None:
    """Everything is taken, no report is answered."""
    service.answer = Service.silent


def refusing(service: Service) -> None:
    """A policy allows nothing."""
    service.ack = refuse(135)


def rejecting(service: Service) -> None:
    """No report is right."""
    service.answer = Service.reject


STATES: Final = [connected, away, silent_broker, silent_service, refusing, rejecting]


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("in_flight", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_the_end_comes_in_its_time_and_nothing_is_lost_in_any_state(  # noqa: PLR0913, PLR0917 - fixtures and parameters
    clock: Clock,
    service: Service,
    device: Device,
    state: Any,  # noqa: ANN401 - one of STATES
    in_flight: bool,  # noqa: FBT001 - pytest gives it by name
    report: bool,  # noqa: FBT001 - the same
) -> None:
    async def story() -> None:
        await device.begin()
        sink = device.delivery.event_sink()
        assert sink is not None
        await asyncio.sleep(1.0)
        state(service)
        if in_flight:
            device.spawn(3)
            device.delivery.alarm(ALARM % 1)
            await asyncio.sleep(0.1)
        device.spawn(2)
        device.delivery.alarm(CLEAR % 2)
        sink.write(b"the last line\n")
        began_s = clock.time()
        accepted = await device.finish(FINISH_S, report=report)
        assert service.stopped_s is not None
        assert service.stopped_s - began_s <= FINISH_S + LAST_S + 0.01
        assert clock.time() - began_s <= FINISH_S + LAST_S + 0.01
        # What had not arrived comes in the next life, in order, and the reports say everything.
        service.ack, service.answer = lambda _topic, _payload: True, Service.accept
        before = [spawned(made) for made in service.reports()] if state is connected else []
        service.up = True
        await device.begin()
        device.delivery.alarm(ALARM % 9)
        await asyncio.sleep(SPACING_S + ANSWER_S)
        assert values(service) == [*([1] if in_flight else []), 2, 9]
        assert b"".join(events(service)) == b"the last line\n"
        told = sum(before) + sum(spawned(made) for made in service.reports()[len(before) :][-1:])
        assert told == device.counters.spawned
        assert not accepted or state is connected
        await device.finish(report=False)

    clock.run(story())


def test_in_good_order_the_end_sends_everything_and_a_last_report(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        sink = device.delivery.event_sink()
        assert sink is not None
        device.spawn(4)
        device.delivery.alarm(CLEAR % 1)
        sink.write(b"the last line\n")
        began_s = clock.time()
        assert await device.finish(FINISH_S)
        assert clock.time() - began_s < 1.0
        assert values(service) == [1]
        assert events(service) == [b"the last line\n"]
        assert [spawned(report) for report in service.reports()] == [4]

    clock.run(story())


def test_the_last_word_of_a_storm_is_not_held_back_at_the_end(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        for number in range(BURST + 50):
            device.delivery.alarm(ALARM % number)
        device.delivery.alarm(CLEAR % -1)
        await device.finish(FINISH_S)
        assert service.alarms()[-1]["value"] == -1
        assert sum(1 + alarm.get("merged", 0) for alarm in service.alarms()) == BURST + 51

    clock.run(story())


def test_a_report_that_nobody_answers_does_not_keep_the_last_lines_from_leaving(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        sink = device.delivery.event_sink()
        assert sink is not None
        service.answer = Service.silent
        sink.write(b"the last line\n")
        device.delivery.alarm(CLEAR % 1)
        assert not await device.finish(FINISH_S)
        assert len(service.reports()) == 1
        assert (values(service), events(service)) == ([1], [b"the last line\n"])

    clock.run(story())


def test_a_last_report_within_the_spacing_is_not_sent_but_kept(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        device.spawn(1)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(1.0)
        device.spawn(2)
        assert not await device.finish(FINISH_S)
        assert len(service.reports()) == 1
        # Even when the counters are gone with the capture.
        device.counters.spawned, device.generation = 4, 2
        await device.begin()
        device.delivery.alarm(ALARM % 2)
        await asyncio.sleep(SPACING_S)
        assert [spawned(report) for report in service.reports()] == [1, 2 + 4]
        await device.finish(report=False)

    clock.run(story())


@pytest.mark.parametrize("answer_after_s", [None, 2.0])
def test_what_came_after_a_report_on_its_way_is_kept_though_the_counters_go(
    clock: Clock, service: Service, device: Device, answer_after_s: float | None
) -> None:
    async def story() -> None:
        await device.begin()
        service.answer = (
            Service.silent
            if answer_after_s is None
            else lambda number: [(answer_after_s, "accepted", {"reportId": number})]
        )
        device.spawn(1)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(0.5)
        device.spawn(2)
        await device.finish(FINISH_S)
        device.counters.spawned, device.generation = 4, 2
        service.answer = Service.accept
        await device.begin()
        device.delivery.alarm(ALARM % 2)
        await asyncio.sleep(SPACING_S)
        unaccepted = 1 if answer_after_s is None else 0
        assert [spawned(report) for report in service.reports()] == [1, unaccepted + 2 + 4]
        await device.finish(report=False)

    clock.run(story())


def test_the_last_report_of_all_does_not_draw_another_one_after_it(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        clock.thread_s = 1.0
        service.answer = Service.silent
        await device.begin()
        await asyncio.sleep(2.0)
        finishing = asyncio.create_task(device.delivery.finish(60.0, report=True))
        await asyncio.sleep(0.2)
        device.delivery.alarm(ALARM % 1)  # the reporter itself wakes while the last report is being made
        await finishing
        await device.running
        device.spool.close()
        moments = service.moments(f"{METRICS}/json")
        assert all(later - earlier >= SPACING_S for earlier, later in itertools.pairwise(moments))

    clock.run(story())


def test_what_comes_during_the_farewell_does_no_harm(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        service.answer = lambda number: [(ANSWER_S + 7.0, "accepted", {"reportId": number})]
        device.spawn(3)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(ANSWER_S + 5.0)
        service.disconnect()
        clock.call_later(1.0, service.connect)
        assert not await device.finish(0.0)  # the farewell takes a second, and the connection comes back meanwhile
        await asyncio.sleep(5.0)
        service.answer = Service.accept
        await device.begin()
        device.delivery.alarm(ALARM % 2)
        await asyncio.sleep(SPACING_S)
        assert [spawned(report) for report in service.reports()] == [3, 3]
        await device.finish(report=False)

    clock.run(story())


# -------- a run of one report --------


def test_a_first_report_is_sent_at_once_and_tells_what_became_of_it(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        assert await device.delivery.first_report()
        assert len(service.reports()) == 1
        await device.finish(report=False)

    clock.run(story())


def test_without_a_connection_a_first_report_is_given_up_in_time(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        service.up = False
        await device.begin()
        assert not await device.delivery.first_report()
        await device.finish(report=False)

    clock.run(story())


def test_a_first_report_that_is_rejected_is_not_accepted(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        service.answer = Service.reject
        await device.begin()
        assert not await device.delivery.first_report()
        await device.finish(report=False)

    clock.run(story())
