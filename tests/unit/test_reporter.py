"""Reports: one at a time, never too close, and only an accepted one ends its window.

Owns what a service may do to reports, in memory and in no time. Refuses to know alarms' own messages.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.defender.link import Refused, Unreachable
from tests.unit.service import (
    ALARM,
    ANSWER_S,
    INTERVAL_S,
    METRICS,
    SPACING_S,
    THING,
    Clock,
    Device,
    Service,
    refuse,
    report_id,
    spawned,
)

if TYPE_CHECKING:
    from collections.abc import Callable

A_WHILE_S: Final = SPACING_S + ANSWER_S + 1.0
"""After this a report that was wanted has left, and it is known what became of it."""


@pytest.fixture(name="device")
def the_device(clock: Clock, service: Service, tmp_path: Path) -> Device:
    """A device that has not begun."""
    return Device(clock, service, tmp_path / "spool.db")


async def alarm(device: Device) -> None:
    """An alarm, and time enough for its report."""
    device.delivery.alarm(ALARM % 1)
    await asyncio.sleep(A_WHILE_S)


def gaps(service: Service) -> list[float]:
    """Seconds between reports."""
    return [later - earlier for earlier, later in itertools.pairwise(service.moments())]


def break_connection(service: Service) -> Callable[[str, bytes], Exception | bool]:
    """The connection breaks with the report on its way, and comes back."""

    def ack(topic: str, _payload: bytes) -> Exception | bool:
        if topic.startswith(METRICS):
            service._clock.call_soon(service.disconnect)
            service._clock.call_later(1.0, service.connect)
            return False
        return True

    return ack


def another_id(number: int) -> list[tuple[float, str, dict[str, Any]]]:
    """Accept a report that nobody sent."""
    return [(0.0, "accepted", {"thingName": THING, "reportId": number + 1, "status": "ACCEPTED"})]


def garbage(number: int) -> list[tuple[float, str, Any]]:
    """Answer with something else."""
    del number
    return [(0.0, "accepted", 7)]


FAILURES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "rejected": ("answer", {"rejected": {"InvalidPayload": 1}}),
    "silent": ("answer", {"unanswered": 1}),
    "another id": ("answer", {"unanswered": 1, "foreign_answers": 1}),
    "garbage": ("answer", {"unanswered": 1, "unreadable_answers": 1}),
    "not authorized": ("ack", {"refused": 1}),
    "broken": ("ack", {"undelivered": 1}),
    "unacknowledged": ("ack", {"unanswered": 1}),
}


def fail(service: Service, how: str) -> None:
    """Let every further report fail this way."""
    ways: dict[str, Any] = {
        "rejected": Service.reject,
        "silent": Service.silent,
        "another id": another_id,
        "garbage": garbage,
        "not authorized": refuse(135),
        "broken": break_connection(service),
        "unacknowledged": lambda _topic, _payload: False,
    }
    setattr(service, FAILURES[how][0], ways[how])


def heal(service: Service) -> None:
    """Let everything succeed again."""
    service.answer, service.ack = Service.accept, lambda _topic, _payload: True


# -------- the ordinary life --------


def test_an_accepted_report_ends_its_window(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        for count in (3, 0, 2):
            device.spawn(count)
            await alarm(device)
        assert [spawned(report) for report in service.reports()] == [3, 0, 2]
        counts = device.delivery.reporter.counts
        assert (counts.sent, counts.accepted, counts.foreign_answers) == (3, 3, 0)
        assert device.troubles == []
        await device.finish(report=False)

    clock.run(story())


def test_without_alarms_reports_come_every_interval(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        began_s = clock.time()
        await device.begin()
        await asyncio.sleep(5 * INTERVAL_S)
        assert 0.5 * INTERVAL_S <= service.moments()[0] - began_s < 1.5 * INTERVAL_S
        assert gaps(service) == pytest.approx([INTERVAL_S] * (len(service.reports()) - 1), abs=0.1)
        assert len(service.reports()) >= 4
        await device.finish(report=False)

    clock.run(story())


def test_the_first_alarm_is_reported_at_once_and_the_next_after_the_spacing(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        wanted_s = clock.time()
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(10.0)
        device.delivery.alarm(ALARM % 2)
        device.delivery.alarm(ALARM % 3)
        await asyncio.sleep(INTERVAL_S / 2)
        assert service.moments() == pytest.approx([wanted_s, wanted_s + SPACING_S], abs=0.1)
        await device.finish(report=False)

    clock.run(story())


def test_an_alarm_while_a_report_is_made_or_flies_has_a_report_of_its_own(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        clock.thread_s = 4.0
        service.answer = lambda number: [(4.0, *Service.accept(number)[0][1:])]
        await device.begin()
        await asyncio.sleep(5.0)
        for delay_s in (1.0, 3.0, 6.0):
            device.delivery.alarm(ALARM % 1)
            await asyncio.sleep(delay_s)  # being made, made, on its way
            device.spawn(1)
            device.delivery.alarm(ALARM % 2)
            before = len(service.reports())
            await asyncio.sleep(A_WHILE_S * 2)
            assert len(service.reports()) - before in (1, 2)
        assert sum(spawned(report) for report in service.reports()) == 3
        assert min(gaps(service)) >= SPACING_S - 0.001
        clock.thread_s = 0.0
        await device.finish(report=False)

    clock.run(story())


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_reports_and_answers_have_the_configured_format(clock: Clock, service: Service, form: str) -> None:
    device = Device(clock, service, format=form)

    async def story() -> None:
        await device.begin()
        device.spawn(3)
        await alarm(device)
        assert service.subscribed == [[f"{METRICS}/{form}/accepted", f"{METRICS}/{form}/rejected"]]
        assert [spawned(report) for report in service.reports(form)] == [3]
        assert device.delivery.reporter.counts.accepted == 1
        await device.finish(report=False)

    clock.run(story())


# -------- what may go wrong --------


@pytest.mark.parametrize("how", FAILURES)
def test_what_was_not_accepted_is_in_the_next_report_under_a_larger_id(
    clock: Clock, service: Service, device: Device, how: str
) -> None:
    async def story() -> None:
        await device.begin()
        fail(service, how)
        device.spawn(3)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(A_WHILE_S - SPACING_S)
        counts = device.delivery.reporter.counts
        seen = {field: getattr(counts, field) for field in counts.__struct_fields__ if getattr(counts, field)}
        assert seen == {"sent": 1} | FAILURES[how][1]
        assert device.delivery.reporter._window.pending is not None
        heal(service)
        device.spawn(2)
        await asyncio.sleep(A_WHILE_S)  # without another alarm: it has to be made up for
        assert counts.accepted == 1
        assert spawned(service.reports()[-1]) == 5
        assert device.delivery.reporter._window.pending is None
        device.spawn(7)
        await alarm(device)
        assert spawned(service.reports()[-1]) == 7
        ids = [report_id(report) for report in service.reports()]
        assert ids == sorted(set(ids))
        assert all(gap >= SPACING_S - 0.001 for gap in gaps(service))
        await device.finish(report=False)

    clock.run(story())


def test_a_trouble_is_said_once_until_a_report_is_accepted(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        fail(service, "rejected")
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(5 * INTERVAL_S)
        assert len(service.reports()) > 3
        assert len(device.troubles) == 1
        assert "rejected: InvalidPayload Malformed metrics report" in device.troubles[0]
        heal(service)
        await asyncio.sleep(INTERVAL_S + A_WHILE_S)
        fail(service, "rejected")
        await asyncio.sleep(2 * INTERVAL_S)
        assert len(device.troubles) == 2
        await device.finish(report=False)

    clock.run(story())


def late(after_s: float) -> Callable[[int], list[tuple[float, str, dict[str, Any]]]]:
    """Accept so late."""
    return lambda number: [(after_s, "accepted", {"reportId": number})]


def test_a_late_acceptance_ends_the_window_all_the_same(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        service.answer = late(ANSWER_S + 20.0)
        device.spawn(3)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(ANSWER_S + 21.0)
        counts = device.delivery.reporter.counts
        assert (counts.unanswered, counts.accepted) == (1, 1)
        heal(service)
        device.spawn(2)
        await asyncio.sleep(SPACING_S)
        assert len(service.reports()) == 1  # nothing has to be made up for any more
        await alarm(device)
        assert [spawned(report) for report in service.reports()] == [3, 2]
        await device.finish(report=False)

    clock.run(story())


def test_an_acceptance_that_comes_after_the_next_report_left_changes_nothing(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        await device.begin()
        service.answer = late(SPACING_S + ANSWER_S / 2)
        device.spawn(3)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(SPACING_S + 1.0)
        service.answer = Service.silent
        await asyncio.sleep(ANSWER_S)
        counts = device.delivery.reporter.counts
        assert (counts.sent, counts.accepted, counts.foreign_answers) == (2, 0, 1)
        heal(service)
        device.spawn(2)
        await asyncio.sleep(A_WHILE_S)
        assert spawned(service.reports()[-1]) == 5
        await device.finish(report=False)

    clock.run(story())


@pytest.mark.parametrize("after_s", [-1.5, -0.5, 0.5, 1.5, 2.5])
def test_an_acceptance_that_comes_while_the_next_report_is_made_does_not_tear_the_window(
    clock: Clock, service: Service, device: Device, after_s: float
) -> None:
    async def story() -> None:
        await device.begin()
        clock.thread_s = 2.0
        service.answer = late(SPACING_S + after_s)
        device.spawn(3)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(SPACING_S / 2)
        service.answer = Service.silent
        await asyncio.sleep(SPACING_S / 2 + ANSWER_S + 10.0)
        heal(service)
        device.spawn(2)
        await alarm(device)
        await alarm(device)
        # Either it ended its window in time, or all of it was said again.
        assert [spawned(report) for report in service.reports()][-2:] in ([5, 0], [2, 0])
        assert device.delivery.reporter.counts.foreign_answers + device.delivery.reporter.counts.accepted >= 3
        clock.thread_s = 0.0
        await device.finish(report=False)

    clock.run(story())


def test_answers_that_come_twice_count_once(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        document = {"thingName": THING, "status": "ACCEPTED"}
        service.answer = lambda number: [
            (delay_s, "accepted", document | {"reportId": number}) for delay_s in (0.0, 0.0, 1.0, 1.0)
        ]
        device.spawn(3)
        await alarm(device)
        assert device.delivery.reporter.counts.accepted == 1
        # The same when both are late.
        service.answer = lambda number: [
            (ANSWER_S + 5.0, "accepted", document | {"reportId": number}) for _ in range(2)
        ]
        device.spawn(4)
        await alarm(device)
        assert device.delivery.reporter.counts.accepted == 2
        heal(service)
        await alarm(device)
        assert [spawned(report) for report in service.reports()] == [3, 4, 0]
        await device.finish(report=False)

    clock.run(story())


def test_an_answer_without_an_id_is_about_the_report_on_its_way(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        service.answer = lambda number: [(0.0, "accepted", {"12334567": number, "status": "ACCEPTED"})]
        device.spawn(3)
        await alarm(device)
        assert device.delivery.reporter.counts.accepted == 1
        service.say(f"{METRICS}/json/accepted", b'{"status":"ACCEPTED"}')  # and when there is none, about none
        assert device.delivery.reporter.counts.foreign_answers == 1
        await device.finish(report=False)

    clock.run(story())


def test_without_a_connection_reports_wait_and_then_one_says_it_all(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        service.up = False
        await device.begin()
        for _ in range(5):
            device.spawn(1)
            await alarm(device)
        assert device.delivery.reporter.counts.sent == 0
        service.connect()
        await asyncio.sleep(1.0)
        assert [spawned(report) for report in service.reports()] == [5]
        await device.finish(report=False)

    clock.run(story())


def test_a_refused_subscription_does_not_keep_reports_from_leaving(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        service.deny_subscriptions = Refused("subscribing was refused with 135", 135)
        await device.begin()
        await alarm(device)
        assert len(service.reports()) >= 1
        assert "no answer will come" in device.troubles[0]
        await device.finish(report=False)

    clock.run(story())


def test_a_subscription_that_breaks_off_waits_for_the_next_connection(
    clock: Clock, service: Service, device: Device
) -> None:
    async def story() -> None:
        service.deny_subscriptions = Unreachable("broken")
        await device.begin()
        await alarm(device)
        assert service.reports() == []
        service.deny_subscriptions = None
        service.connect()
        await asyncio.sleep(1.0)
        assert len(service.reports()) == 1
        await device.finish(report=False)

    clock.run(story())


# -------- over restarts --------


def test_ids_ascend_over_restarts_though_the_clock_goes_back(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        for back_s in (0.0, 1e6, 0.0, -1e5):
            clock.wall_s -= back_s
            await device.begin()
            await alarm(device)
            await device.kill()
        ids = [report_id(report) for report in service.reports()]
        assert len(ids) == 4
        assert ids == sorted(set(ids))

    clock.run(story())


def test_a_crash_loop_keeps_the_spacing(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        for _ in range(100):
            await device.begin()
            device.delivery.alarm(ALARM % 1)
            await asyncio.sleep(37.0)
            await device.kill()
        assert len(service.reports()) == pytest.approx(100 * 37.0 / SPACING_S, abs=2)
        assert min(gaps(service)) >= SPACING_S - 0.001

    clock.run(story())


def test_a_crash_with_a_report_on_its_way_says_all_of_it_again(clock: Clock, service: Service, device: Device) -> None:
    async def story() -> None:
        await device.begin()
        service.answer = Service.silent
        device.spawn(3)
        device.delivery.alarm(ALARM % 1)
        await asyncio.sleep(1.0)
        await device.kill()
        heal(service)
        device.spawn(2)
        await device.begin()
        await alarm(device)
        assert [spawned(report) for report in service.reports()] == [3, 5]
        await device.finish(report=False)

    clock.run(story())


WAYS = st.sampled_from(["accept", "rejected", "silent", "another id", "not authorized", "broken", "unacknowledged"])
STEPS = st.one_of(
    st.tuples(st.just("spawn"), st.integers(1, 9)),
    st.tuples(st.just("alarm"), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 20.0, ANSWER_S + 5.0, SPACING_S, INTERVAL_S])),
    st.tuples(st.just("way"), WAYS),
    st.tuples(st.just("crash"), st.just(0)),
    st.tuples(st.just("finish"), st.just(0)),
    st.tuples(st.just("date"), st.sampled_from([-1e6, 1e6])),
)


@settings(max_examples=60)
@given(st.lists(STEPS, min_size=3, max_size=25))
def test_in_any_life_every_child_is_in_exactly_one_accepted_report(  # noqa: C901 - a branch for each kind of step
    steps: list[tuple[str, Any]],
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        clock.rule(patch)
        service = Service(clock)
        device = Device(clock, service, Path(folder) / "spool.db")
        accepted: list[int] = []

        def accept(number: int) -> Any:  # noqa: ANN401 - as Service.accept
            accepted.append(number)
            return Service.accept(number)

        async def story() -> None:
            service.answer = accept
            await device.begin()
            for what, value in steps:
                if what == "spawn":
                    device.spawn(value)
                elif what == "alarm":
                    device.delivery.alarm(ALARM % 1)
                elif what == "wait":
                    await asyncio.sleep(value)
                elif what == "way":
                    heal(service)
                    service.answer = accept
                    if value != "accept":
                        fail(service, value)
                elif what == "date":
                    clock.wall_s += value
                elif what == "crash":
                    await asyncio.sleep(0.01)  # an answer on its way has arrived
                    await device.kill()
                    await device.begin()
                else:
                    await device.finish()
                    await device.begin()
            heal(service)
            service.answer = accept
            if not service.up:
                service.connect()
            device.delivery.alarm(ALARM % 1)
            await asyncio.sleep(2 * INTERVAL_S + A_WHILE_S)
            await device.kill()

        try:
            clock.run(story())
            reports = {report_id(report): spawned(report) for report in service.reports()}
            assert sum(reports[number] for number in accepted) == device.counters.spawned
            assert list(reports) == sorted(reports)
            assert all(gap >= SPACING_S - 0.01 for gap in gaps(service))
        finally:
            clock.close()
