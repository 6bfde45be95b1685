"""The two queues of the spool: order, bounds, ids and counts, in memory and over a reopened file.

Owns small spools and what goes through them. Refuses to know files that fail: that is test_spool_file.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from monitor.defender.spool import ROW_BYTES, Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW_S = 2e9
"""In 2033: a date that a device has after it learned it."""


@pytest.fixture(name="dropped")
def what_was_dropped() -> list[int]:
    """Lines, as the spool told them."""
    return []


@pytest.fixture(name="open_spool", params=["file", "memory"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, dropped: list[int]) -> Iterator[Callable[..., Spool]]:
    """Open the spool; what is still open in the end is closed."""
    opened: list[Spool] = []

    def open_it(max_bytes: int = 1 << 20, max_age_s: float = 1000.0) -> Spool:
        path = tmp_path / "state" / "spool.db" if request.param == "file" else None
        opened.append(Spool(path, max_bytes=max_bytes, max_age_s=max_age_s, on_drop=dropped.append))
        return opened[-1]

    yield open_it
    for spool in opened:
        spool.close()


def file_spool(path: Path) -> Spool:
    """A spool in a file, with room."""
    return Spool(path, max_bytes=1 << 20, max_age_s=1000.0)


def alarms(spool: Spool, now_s: float = NOW_S) -> list[bytes]:
    """Payloads of the alarms that may be sent."""
    return [entry.payload for entry in spool.waiting("alarm", now_s, 1000)]


def test_messages_wait_in_the_order_they_came_each_kind_by_itself(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    spool.put("alarm", [b"1", b"2"], NOW_S)
    spool.put("events", [b"a"], NOW_S, lines=3)
    spool.put("alarm", [b"3"], NOW_S - 500.0)  # the clock was set back meanwhile
    assert alarms(spool) == [b"1", b"2", b"3"]
    (batch,) = spool.waiting("events", NOW_S, 1000)
    assert (batch.payload, batch.lines, batch.merged, batch.created_s) == (b"a", 3, 0, NOW_S)


def test_waiting_messages_stay_until_they_are_done(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    last = spool.put("alarm", [b"1", b"2", b"3"], NOW_S)
    assert alarms(spool) == alarms(spool) == [b"1", b"2", b"3"]
    spool.done([last - 1])
    assert alarms(spool) == [b"1", b"3"]
    spool.done([last - 1, last - 2, last, last + 7])
    assert alarms(spool) == []
    assert (spool.sizes().bytes, spool.sizes().oldest_s) == (0, None)


def test_a_sender_gets_no_more_than_it_asks_for_but_always_one(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    spool.put("events", [b"x" * 10, b"y" * 10, b"z" * 10], NOW_S)
    assert len(spool.waiting("events", NOW_S, 2)) == 2
    assert [entry.payload[:1] for entry in spool.waiting("events", NOW_S, 9, 20)] == [b"x", b"y"]
    assert [entry.payload[:1] for entry in spool.waiting("events", NOW_S, 9, 3)] == [b"x"]


def test_a_held_message_waits_for_its_moment_and_not_for_a_clock_that_was_set_back(
    open_spool: Callable[..., Spool],
) -> None:
    spool = open_spool()
    spool.put("alarm", [b"held"], NOW_S, ready_s=NOW_S + 2.0)
    spool.put("alarm", [b"free"], NOW_S)
    assert alarms(spool) == [b"free"]
    assert alarms(spool, NOW_S + 2.0) == [b"held", b"free"]
    assert alarms(spool, NOW_S - 1e6) == [b"held", b"free"]
    assert spool.ready_s("alarm") == 0.0
    assert spool.ready_s("events") is None


def test_a_merged_message_has_the_newest_payload_and_counts_the_others(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    held = spool.put("alarm", [b"first"], NOW_S, ready_s=NOW_S + 1.0)
    assert spool.merge(held, b"the second", 1)
    assert spool.merge(held, b"last", 2)
    (entry,) = spool.waiting("alarm", NOW_S + 1.0, 9)
    assert (entry.id, entry.payload, entry.lines, entry.merged) == (held, b"last", 1, 3)
    assert spool.sizes().bytes == len(b"last") + ROW_BYTES


def test_nothing_is_merged_into_a_message_that_has_gone_or_may_be_on_its_way(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    held = spool.put("alarm", [b"first"], NOW_S)
    spool.waiting("alarm", NOW_S, 9)
    assert not spool.merge(held, b"second", 1)
    assert alarms(spool) == [b"first"]
    spool.done([held])
    assert not spool.merge(held, b"second", 1)
    assert not spool.merge(held + 100, b"second", 1)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_the_oldest_batches_go_first_and_alarms_last(
    open_spool: Callable[..., Spool], dropped: list[int], kept: int
) -> None:
    size = 100 + ROW_BYTES
    spool = open_spool(max_bytes=(2 + kept) * size)
    spool.put("alarm", [b"A" * 100], NOW_S)
    for number in range(5):
        spool.put("events", [b"%d" % number * 100], NOW_S, lines=10)
    spool.put("alarm", [b"B" * 100], NOW_S)
    assert [payload[:1] for payload in alarms(spool)] == [b"A", b"B"]
    batches = [entry.payload[:1] for entry in spool.waiting("events", NOW_S, 9)]
    assert batches == [b"%d" % number for number in range(5 - kept, 5)]
    assert sum(dropped) == 10 * (5 - kept)
    assert spool.sizes().dropped == ({"events": sum(dropped)} if dropped else {})


def test_of_alarms_alone_the_oldest_goes_first(open_spool: Callable[..., Spool], dropped: list[int]) -> None:
    spool = open_spool(max_bytes=3 * (100 + ROW_BYTES))
    spool.put("alarm", [b"%d" % number * 100 for number in range(5)], NOW_S)
    assert [payload[:1] for payload in alarms(spool)] == [b"2", b"3", b"4"]
    assert (sum(dropped), spool.sizes().dropped) == (2, {"alarm": 2})


def test_a_message_that_grows_by_merging_stays_within_the_bound(
    open_spool: Callable[..., Spool], dropped: list[int]
) -> None:
    spool = open_spool(max_bytes=2 * (100 + ROW_BYTES))
    spool.put("alarm", [b"A" * 100], NOW_S)
    held = spool.put("alarm", [b"B"], NOW_S, ready_s=NOW_S + 1.0)
    assert spool.merge(held, b"B" * 150, 1)
    assert spool.sizes().bytes <= 2 * (100 + ROW_BYTES)
    assert sum(dropped) == 1
    assert alarms(spool, NOW_S + 1.0) == [b"B" * 150]


def test_what_is_too_old_is_dropped_and_counted(open_spool: Callable[..., Spool], dropped: list[int]) -> None:
    spool = open_spool(max_age_s=1000.0)
    spool.put("events", [b"old"], NOW_S, lines=7)
    spool.put("alarm", [b"old"], NOW_S + 1.0)
    spool.put("alarm", [b"new"], NOW_S + 999.0)
    assert spool.expire(NOW_S + 1000.0) == 7
    assert spool.expire(NOW_S + 1500.0) == 1
    assert alarms(spool) == [b"new"]
    assert dropped == [7, 1]
    assert spool.sizes().dropped == {"events": 7, "alarm": 1}


@pytest.mark.parametrize("created_s", [0.0, 1e9, NOW_S + 1.0])
def test_what_came_before_the_clock_was_set_or_from_the_future_has_no_age(
    open_spool: Callable[..., Spool], created_s: float
) -> None:
    spool = open_spool(max_age_s=1.0)
    spool.put("alarm", [b"x"], created_s)
    assert spool.expire(NOW_S) == 0
    assert alarms(spool) == [b"x"]


def test_what_will_never_be_taken_is_counted_with_all_that_it_stands_for(
    open_spool: Callable[..., Spool], dropped: list[int]
) -> None:
    spool = open_spool()
    held = spool.put("alarm", [b"x"], NOW_S, ready_s=NOW_S + 1.0)
    spool.merge(held, b"y", 4)
    spool.drop([held])
    spool.drop([held])
    assert (dropped, spool.sizes().dropped) == ([5], {"alarm": 5})


def test_nothing_is_an_ordinary_thing_to_put(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    spool.put("alarm", [], NOW_S)
    spool.done([])
    spool.drop([])
    assert alarms(spool) == []


def test_values_are_kept_under_their_names(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    assert spool.load("window") is None
    spool.save("window", b"\x00one")
    spool.save("sent", b"")
    spool.save("window", b"two")
    assert (spool.load("window"), spool.load("sent")) == (b"two", b"")


def test_everything_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = file_spool(path)
    name = spool.name
    spool.put("alarm", [b"1"], NOW_S)
    held = spool.put("alarm", [b"2"], NOW_S, ready_s=NOW_S + 5.0)
    spool.merge(held, b"3", 1)
    spool.put("events", [b"a\nb\n"], NOW_S, lines=2)
    spool.drop([spool.put("events", [b"x"], NOW_S, lines=9)])
    spool.save("sent", b"then")
    before = spool.waiting("alarm", NOW_S + 5.0, 9), spool.waiting("events", NOW_S, 9), spool.sizes()
    spool.close()
    spool = file_spool(path)
    try:
        assert (spool.waiting("alarm", NOW_S + 5.0, 9), spool.waiting("events", NOW_S, 9), spool.sizes()) == before
        assert (spool.name, spool.load("sent"), spool.ready_s("alarm")) == (name, b"then", 0.0)
        assert spool.sizes().dropped == {"events": 9}
    finally:
        spool.close()


def test_an_id_is_never_given_twice_though_everything_was_deleted_before_a_restart(tmp_path: Path) -> None:
    path, seen = tmp_path / "spool.db", []
    for _ in range(5):
        spool = file_spool(path)
        try:
            last = spool.put("alarm", [b"x", b"y"], NOW_S)
            seen += [entry.id for entry in spool.waiting("alarm", NOW_S, 9)]
            assert seen[-1] == last
            spool.done(seen)
        finally:
            spool.close()
    assert len(seen) == 10
    assert seen == sorted(set(seen))


def test_spools_have_names_of_their_own(tmp_path: Path) -> None:
    spools = [file_spool(tmp_path / str(number) / "spool.db") for number in range(3)]
    try:
        assert len({spool.name for spool in spools}) == 3
    finally:
        for spool in spools:
            spool.close()


def test_threads_may_put_and_end_at_once(tmp_path: Path, dropped: list[int]) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 24, max_age_s=1e6, on_drop=dropped.append)
    putting = [
        threading.Thread(target=lambda kind=kind: [spool.put(kind, [b"%d" % number], NOW_S) for number in range(100)])
        for kind in ("alarm", "events")
    ]
    seen: list[bytes] = []
    try:
        for thread in putting:
            thread.start()
        while len(seen) < 100:
            entries = spool.waiting("alarm", NOW_S, 10)
            seen += [entry.payload for entry in entries]
            spool.done([entry.id for entry in entries])
        for thread in putting:
            thread.join()
        assert seen == [b"%d" % number for number in range(100)]
        assert [e.payload for e in spool.waiting("events", NOW_S, 1000)] == seen
        assert dropped == []
    finally:
        for thread in putting:
            thread.join()
        spool.close()
