"""When reports leave: never closer than the spacing, whatever happens; an alarm at the earliest moment that allows.

Owns a model of what the service sees of one device. Refuses to know how the schedule keeps its promise.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.defender.schedule import RETRY_S, Moment, Schedule, phase, since

INTERVAL_S: Final = 3600.0
SPACING_S: Final = 300.0
BOOT: Final = "one"


def at(boot_s: float, wall_s: float = 2e9, boot_id: str = BOOT) -> Moment:
    """A moment of the first boot, unless said otherwise."""
    return Moment(wall_s=wall_s, boot_s=boot_s, boot_id=boot_id)


def schedule(sent: Moment | None = None, now: Moment | None = None, spacing_s: float = SPACING_S) -> Schedule:
    """A schedule of one thing; its last report left a moment ago unless said otherwise."""
    return Schedule("mything1", INTERVAL_S, spacing_s, sent, now or at(0.0))


class Life(RuleBasedStateMachine):
    """A device that reports, crashes, reboots and has its clock set; the model only notes when reports left."""

    def __init__(self) -> None:
        super().__init__()
        self.true_s, self.boot_offset_s, self.date_offset_s, self.boots = 0.0, 0.0, 2e9, 0
        self.saved: bytes | None = None
        self.left: list[float] = []
        self.date_known = True
        self.flying = False
        self.alarmed_s: float | None = None
        self.troubled = False
        self.schedule = schedule(None, self.now())

    def now(self) -> Moment:
        """What the device's clocks show."""
        return Moment(
            wall_s=self.true_s + self.date_offset_s, boot_s=self.true_s - self.boot_offset_s, boot_id=str(self.boots)
        )

    def wake(self) -> None:
        """Send if it is due."""
        now = self.now()
        if self.schedule.due_s <= now.boot_s:
            self.schedule.making()
            self.saved = msgspec.json.encode(now)
            self.schedule.sent(now.boot_s)
            self.left.append(self.true_s)
            self.flying, self.alarmed_s = True, None

    @rule(seconds=st.floats(0.0, 2 * INTERVAL_S))
    def wait(self, seconds: float) -> None:
        """Time passes; the device looks now and then, and at every moment that it named itself."""
        end_s = self.true_s + seconds
        while (due_s := self.schedule.due_s + self.boot_offset_s) <= end_s:
            self.true_s = max(self.true_s, due_s)
            before = len(self.left)
            self.wake()
            if len(self.left) == before:  # a rounding away from its moment
                self.true_s += 1e-3
        self.true_s = max(self.true_s, end_s)

    @rule()
    def alarm(self) -> None:
        """An alarm."""
        self.schedule.want()
        if self.alarmed_s is None:
            self.alarmed_s = self.true_s
        if not self.troubled:
            allowed_s = max(self.true_s, self.left[-1] + SPACING_S) if self.left else self.true_s
            due_s = max(self.true_s, self.schedule.due_s + self.boot_offset_s)
            # After a reboot with a wrong date the device cannot know how much has passed: late is allowed, never early.
            assert due_s == pytest.approx(allowed_s, abs=1e-3) or (not self.date_known and due_s >= allowed_s - 1e-3)
        self.wake()

    @precondition(lambda self: self.flying)
    @rule()
    def accepted(self) -> None:
        """The answer."""
        self.schedule.accepted()
        self.flying = self.troubled = False

    @precondition(lambda self: self.flying)
    @rule()
    def failed(self) -> None:
        """No answer, or a bad one. It is never asked twice about one report."""
        self.schedule.failed()
        self.flying, self.troubled = False, True

    @rule()
    def crash(self) -> None:
        """The process ends and another begins; it knows what was saved."""
        self.begin_life()

    def begin_life(self) -> None:
        """Begin from what is saved."""
        sent = None if self.saved is None else msgspec.json.decode(self.saved, type=Moment)
        self.schedule = schedule(sent, self.now())
        self.flying = self.troubled = False
        self.alarmed_s = None

    @rule(off_s=st.floats(0.0, 1000.0), back_s=st.floats(0.0, 1e9))
    def reboot(self, off_s: float, back_s: float) -> None:
        """Off for a while; the date is right afterwards or has gone back."""
        self.true_s += off_s
        self.boot_offset_s = self.true_s
        self.date_offset_s -= back_s
        self.date_known = self.date_known and back_s == 0.0
        self.boots += 1
        self.begin_life()

    @rule(by_s=st.floats(-1e9, 1e9))
    def set_date(self, by_s: float) -> None:
        """Somebody sets the clock; what a later reboot then makes of the date is nobody's promise."""
        saved = None if self.saved is None else msgspec.json.decode(self.saved, type=Moment)
        self.date_offset_s += by_s
        self.date_known = False
        if saved is not None and by_s > 0:  # a date set forward is only harmless within the boot
            self.saved = msgspec.json.encode(msgspec.structs.replace(saved, wall_s=saved.wall_s + by_s))

    @invariant()
    def never_closer_than_the_spacing(self) -> None:
        """What the service sees."""
        assert all(
            later - earlier >= SPACING_S - 1e-3 for earlier, later in zip(self.left, self.left[1:], strict=False)
        )

    @invariant()
    def never_silent_for_good(self) -> None:
        """There is always a next report, within an interval and a half or the longest back-off."""
        ahead_s = self.schedule.due_s + self.boot_offset_s - self.true_s
        assert ahead_s <= 1.5 * INTERVAL_S + SPACING_S


test_no_life_of_a_device_breaks_the_spacing = Life.TestCase


def test_an_alarm_after_the_spacing_leaves_at_once() -> None:
    made = schedule(at(0.0))
    made.want()
    assert made.due_s == SPACING_S


def test_without_an_alarm_the_next_report_leaves_after_the_interval() -> None:
    made = schedule(at(0.0))
    assert made.due_s == INTERVAL_S
    made.sent(INTERVAL_S)
    made.accepted()
    assert made.due_s == 2 * INTERVAL_S


def test_an_alarm_begins_the_period_anew() -> None:
    made = schedule(at(0.0))
    made.want()
    made.making()
    made.sent(1000.0)
    assert made.due_s == 1000.0 + INTERVAL_S


def test_the_first_alarm_of_a_new_device_waits_for_nothing() -> None:
    made = schedule(None, at(50.0))
    made.want()
    assert made.due_s == 50.0


def test_a_restart_keeps_the_spacing_and_a_crash_loop_too() -> None:
    sent = at(1000.0)
    for restarted_s in (1001.0, 1100.0, 1299.0):
        made = schedule(sent, at(restarted_s))
        made.want()
        assert made.due_s == pytest.approx(1300.0)
    made = schedule(sent, at(1000.0 + 10 * INTERVAL_S))
    assert made.due_s <= 1000.0 + 10 * INTERVAL_S


def test_a_date_that_is_set_within_a_boot_changes_nothing() -> None:
    assert since(at(100.0, wall_s=5e9), at(160.0, wall_s=1.0)) == 60.0


def test_over_a_reboot_the_date_says_how_much_has_passed() -> None:
    sent = at(5000.0, wall_s=2e9)
    made = schedule(sent, at(10.0, wall_s=2e9 + 100.0, boot_id="two"))
    made.want()
    assert made.due_s == pytest.approx(10.0 + SPACING_S - 100.0)


def test_a_reboot_with_the_date_gone_back_waits_the_whole_spacing() -> None:
    sent = at(5000.0, wall_s=2e9)
    made = schedule(sent, at(10.0, wall_s=0.0, boot_id="two"))
    made.want()
    assert made.due_s == 10.0 + SPACING_S


@given(st.floats(0.0, 1e6), st.floats(0.0, 2e9), st.floats(0.0, 1e6), st.floats(0.0, 2e9), st.booleans())
def test_time_never_runs_backwards(boot_1: float, wall_1: float, boot_2: float, wall_2: float, same: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    assert since(at(boot_1, wall_1), at(boot_2, wall_2, BOOT if same else "two")) >= 0.0


def test_the_first_reports_of_ten_thousand_things_spread_evenly_over_an_interval() -> None:
    things = [f"sensor-{number:05d}" for number in range(10_000)]
    tenths = Counter(int(phase(thing) * 10) for thing in things)
    assert set(tenths) == set(range(10))
    # Of a fair draw a tenth is 1000 +- 30; five of those is beyond any doubt.
    assert all(abs(count - 1000) < 150 for count in tenths.values()), tenths
    dues = [Schedule(thing, INTERVAL_S, SPACING_S, None, at(0.0)).due_s for thing in things]
    assert min(dues) >= 0.5 * INTERVAL_S
    assert max(dues) < 1.5 * INTERVAL_S


def test_a_thing_that_learns_its_name_late_reports_first_when_it_would_have_with_it() -> None:
    made = Schedule("", INTERVAL_S, SPACING_S, None, at(0.0))
    made.identify("mything1")
    assert made.due_s == pytest.approx(schedule(None).due_s)
    made.sent(100.0)
    made.identify("mything2")
    assert made.due_s == 100.0 + INTERVAL_S, "after a report the period counts from there"


def test_a_thing_has_the_same_phase_for_ever() -> None:
    assert phase("mything1") == phase("mything1") != phase("mything2")


@pytest.mark.parametrize("spacing_s", [0.0, 3.0, SPACING_S])
def test_failures_wait_twice_as_long_each_time_up_to_the_interval(spacing_s: float) -> None:
    made, now_s, waits = schedule(at(0.0), spacing_s=spacing_s), 0.0, []
    for _ in range(20):
        made.failed()
        waits.append(made.due_s - now_s)
        now_s = made.due_s
        made.making()
        made.sent(now_s)
    expected = [max(spacing_s, min(RETRY_S * 2**failures, INTERVAL_S)) for failures in range(20)]
    assert waits == pytest.approx(expected)


def test_what_failed_goes_with_the_next_report_as_soon_as_the_spacing_allows() -> None:
    made = schedule(at(0.0))
    made.failed()
    assert made.due_s == SPACING_S


def test_a_late_acceptance_ends_the_back_off() -> None:
    made, now_s = schedule(at(0.0)), 0.0
    for _ in range(12):
        made.failed()
        now_s = made.due_s
        made.making()
        made.sent(now_s)
    made.failed()
    made.accepted()
    assert made.due_s == now_s + INTERVAL_S
    made.want()
    assert made.due_s == now_s + SPACING_S
    made.making()
    made.sent(now_s + SPACING_S)
    made.failed()
    assert made.due_s == now_s + 2 * SPACING_S


def test_an_alarm_of_the_moment_in_which_a_report_is_made_is_not_forgotten() -> None:
    made = schedule(at(0.0))
    made.making()
    made.want()  # the report may have been made just before
    made.sent(400.0)
    assert made.due_s == 400.0 + SPACING_S


def test_a_report_that_carries_the_alarm_is_enough() -> None:
    made = schedule(at(0.0))
    made.want()
    made.making()
    made.sent(400.0)
    assert made.due_s == 400.0 + INTERVAL_S


def test_new_settings_count_from_the_last_report_on() -> None:
    made = schedule(at(1000.0), at(1000.0))
    made.change(600.0, 60.0)
    assert made.due_s == 1600.0
    made.want()
    assert made.due_s == 1060.0
