"""Alarms as messages: at once, one each, until there are too many; then the last word still is the last.

Owns alarm lines and the clock they come by. Refuses to know the broker: what waits in the spool is what would be sent.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.defender.alarms import BURST, PER_S, AlarmQueue, alarm_lines
from monitor.defender.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW_S = 2e9


@pytest.fixture(name="spool")
def in_memory() -> Iterator[Spool]:
    """A spool without a file."""
    spool = Spool(None, max_bytes=1 << 30, max_age_s=1e9)
    yield spool
    spool.close()


def line(number: int, behavior: str = "child_processes", event: str = "alarm", watch: str = "myapp") -> bytes:
    """An event line as the engine writes it."""
    return b'{"time":"2033-05-18T03:33:20.000000000Z","event":"%s","watch":"%s","behavior":"%s","value":%d}\n' % (
        event.encode(),
        watch.encode(),
        behavior.encode(),
        number,
    )


FORK = b'{"time":"2033-05-18T03:33:20.000000000Z","event":"fork","watch":"myapp","comm":"\\"event\\":\\"alarm\\""}\n'


class Receiver:
    """Takes what may be sent, as a broker that is always there."""

    def __init__(self, spool: Spool, queue: AlarmQueue) -> None:
        self._spool, self._queue = spool, queue
        self.messages: list[dict[str, Any]] = []

    def take(self, now_s: float) -> list[dict[str, Any]]:
        """Take everything that may be sent now."""
        entries = self._spool.waiting("alarm", now_s, 10_000)
        taken: list[dict[str, Any]] = [json.loads(self._queue.message(entry)) for entry in entries]
        self._spool.done([entry.id for entry in entries])
        self.messages += taken
        return taken


def test_alarms_and_clears_are_found_among_event_lines_and_nothing_else() -> None:
    lines = FORK + line(1) + FORK + FORK + line(0, event="clear") + line(2)
    assert alarm_lines(lines) == [line(1)[:-1], line(0, event="clear")[:-1], line(2)[:-1]]
    assert alarm_lines(b"") == alarm_lines(FORK) == []


def test_an_alarm_is_a_message_of_its_own_with_the_line_the_thing_and_an_id(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    assert queue.put(FORK + line(7) + FORK, NOW_S, 0.0) == 1
    (entry,) = spool.waiting("alarm", NOW_S, 9)
    message = json.loads(queue.message(entry))
    assert message == json.loads(line(7)) | {"thing": "mything1", "alarm_id": f"{spool.name}-{entry.id}"}


def test_a_message_that_is_sent_again_is_the_same_and_a_new_one_has_another_id(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    queue.put(line(1) + line(1), NOW_S, 0.0)
    first, second = spool.waiting("alarm", NOW_S, 9)
    assert queue.message(first) == queue.message(spool.waiting("alarm", NOW_S, 1)[0])
    assert json.loads(queue.message(first))["alarm_id"] != json.loads(queue.message(second))["alarm_id"]


@given(st.text())
def test_a_message_is_json_whatever_the_thing_is_called(thing: str) -> None:
    thing = thing.encode(errors="replace").decode()
    spool = Spool(None, max_bytes=1 << 20, max_age_s=1e9)
    try:
        queue = AlarmQueue(spool, thing)
        queue.put(line(1), NOW_S, 0.0)
        assert json.loads(queue.message(spool.waiting("alarm", NOW_S, 1)[0]))["thing"] == thing
    finally:
        spool.close()


def test_a_burst_leaves_at_once_message_by_message(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    queue.put(b"".join(line(number) for number in range(BURST)), NOW_S, 0.0)
    taken = Receiver(spool, queue).take(NOW_S)
    assert [message["value"] for message in taken] == list(range(BURST))
    assert (queue.put_lines, queue.merged_lines) == (BURST, 0)


def test_beyond_a_burst_one_message_a_second_stands_for_all(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    receiver = Receiver(spool, queue)
    for number in range(BURST + 50):
        queue.put(line(number), NOW_S, 0.0)
    assert len(receiver.take(NOW_S)) == BURST
    assert spool.ready_s("alarm") == NOW_S + 1 / PER_S
    assert receiver.take(NOW_S + 0.99 / PER_S) == []
    (last,) = receiver.take(NOW_S + 1 / PER_S)
    assert (last["value"], last["merged"]) == (BURST + 49, 49)
    assert (queue.put_lines, queue.merged_lines) == (BURST + 50, 49)


def test_a_message_that_stands_for_itself_alone_does_not_say_merged(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    queue.put(b"".join(line(number) for number in range(BURST + 1)), NOW_S, 0.0)
    taken = Receiver(spool, queue).take(NOW_S + 1 / PER_S)
    assert len(taken) == BURST + 1
    assert not [message for message in taken if "merged" in message]


def test_a_quiet_time_refills_the_burst_and_no_more(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    receiver = Receiver(spool, queue)
    taken = []
    for steady_s in (0.0, 1e6):
        queue.put(b"".join(line(number) for number in range(BURST + 5)), NOW_S + steady_s, steady_s)
        taken.append(len(receiver.take(NOW_S + steady_s)))
        receiver.take(NOW_S + steady_s + 10 / PER_S)
    assert taken == [BURST, BURST]
    assert sum(1 + message.get("merged", 0) for message in receiver.messages) == 2 * (BURST + 5)


def test_what_comes_while_the_merged_one_is_on_its_way_is_another_message(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    queue.put(b"".join(line(number) for number in range(BURST + 1)), NOW_S, 0.0)
    later_s = NOW_S + 1 / PER_S
    on_the_way = spool.waiting("alarm", later_s, 10_000)
    assert len(on_the_way) == BURST + 1
    queue.put(line(-1, event="clear"), later_s, 0.5)
    spool.done([entry.id for entry in on_the_way])  # only now the broker says that it has them
    (last,) = Receiver(spool, queue).take(NOW_S + 100.0)
    assert (last["event"], last["value"]) == ("clear", -1)


def test_a_storm_of_one_behavior_does_not_hold_another_one_back(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    queue.put(b"".join(line(number) for number in range(10 * BURST)), NOW_S, 0.0)
    others = [("child_processes", "other"), ("executables", "myapp")]
    for behavior, watch in others:
        queue.put(line(-1, behavior, watch=watch), NOW_S, 0.0)
    taken = Receiver(spool, queue).take(NOW_S)
    assert [(message["behavior"], message["watch"]) for message in taken if message["value"] == -1] == others


def test_a_behavior_without_a_watch_has_a_burst_of_its_own(spool: Spool) -> None:
    queue = AlarmQueue(spool, "mything1")
    queue.put(b"".join(line(number) for number in range(10 * BURST)), NOW_S, 0.0)
    queue.put(b'{"event":"alarm","behavior":"device","value":-1}\n', NOW_S, 0.0)
    assert Receiver(spool, queue).take(NOW_S)[-1]["behavior"] == "device"


@given(st.data())
def test_in_any_storm_every_line_is_counted_and_the_last_word_of_each_behavior_is_the_last(data: st.DataObject) -> None:
    spool = Spool(None, max_bytes=1 << 30, max_age_s=1e9)
    try:
        queue = AlarmQueue(spool, "mything1")
        receiver = Receiver(spool, queue)
        put: dict[str, list[int]] = {"a": [], "b": []}
        elapsed_s, number = 0.0, 0
        for _ in range(data.draw(st.integers(1, 12), "batches")):
            lines = b""
            for behavior, count in data.draw(
                st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 150)), max_size=3), "lines"
            ):
                for _ in range(count):
                    number += 1
                    put[behavior].append(number)
                    lines += line(
                        number, behavior, data.draw(st.sampled_from(["alarm", "clear"])) if count < 3 else "alarm"
                    )
            queue.put(lines, NOW_S + elapsed_s, elapsed_s)
            if data.draw(st.booleans(), "connected"):
                receiver.take(NOW_S + elapsed_s)
            elapsed_s += data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.5, 50.0, 1000.0]), "seconds")
        receiver.take(NOW_S + elapsed_s + 2 / PER_S)
        assert spool.waiting("alarm", NOW_S + elapsed_s + 1e6, 9) == []
        stood_for: Counter[str] = Counter()
        for message in receiver.messages:
            stood_for[message["behavior"]] += 1 + message.get("merged", 0)
        assert stood_for == Counter({behavior: len(numbers) for behavior, numbers in put.items() if numbers})
        for behavior, numbers in put.items():
            seen = [message["value"] for message in receiver.messages if message["behavior"] == behavior]
            assert seen == sorted(seen)
            assert seen[-1:] == numbers[-1:]
            # A burst, then what the time allows, then the one that may wait.
            assert len(seen) <= BURST + elapsed_s * PER_S + 2
        assert queue.put_lines == number
        assert queue.merged_lines == number - len(receiver.messages)
    finally:
        spool.close()


def test_a_restart_does_not_touch_what_waits(spool: Spool) -> None:
    before = AlarmQueue(spool, "mything1")
    before.put(b"".join(line(number) for number in range(BURST + 5)), NOW_S, 0.0)
    after = AlarmQueue(spool, "mything1")
    after.put(line(-1, event="clear"), NOW_S, 0.0)
    taken = Receiver(spool, after).take(NOW_S + 1 / PER_S)
    assert [message["value"] for message in taken] == [*range(BURST), BURST + 4, -1]
