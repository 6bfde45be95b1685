"""Event lines on their way into the spool: none is lost or torn, and a batch is what the log says.

Owns lines of every length. Refuses to know the broker.
"""

from __future__ import annotations

import gzip
import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.defender.batches import EventSink, chunks, joined
from monitor.defender.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 64
WALL_S = 2e9
WHOLE_LINES = st.lists(st.binary(max_size=3 * CHUNK).map(lambda text: text.replace(b"\n", b" ") + b"\n"), max_size=40)


@pytest.fixture(name="spool")
def in_memory() -> Iterator[Spool]:
    """A spool without a file."""
    spool = Spool(None, max_bytes=1 << 30, max_age_s=1e9)
    yield spool
    spool.close()


def sink_of(spool: Spool, asked: list[str] | None = None) -> EventSink:
    """A sink; `asked` grows whenever it asks to be flushed later."""
    return EventSink(spool, CHUNK, lambda: WALL_S, lambda: asked.append("flush") if asked is not None else None)


def kept(spool: Spool) -> list[bytes]:
    """The chunks in the spool."""
    return [entry.payload for entry in spool.waiting("events", WALL_S, 100_000)]


@given(WHOLE_LINES)
def test_chunks_are_whole_lines_within_bounds_and_nothing_is_lost(lines: list[bytes]) -> None:
    pieces = chunks(b"".join(lines), CHUNK)
    assert b"".join(pieces) == b"".join(lines)
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= CHUNK or piece.count(b"\n") == 1 for piece in pieces)


@given(WHOLE_LINES)
def test_no_chunk_has_room_for_the_line_behind_it(lines: list[bytes]) -> None:
    pieces = chunks(b"".join(lines), CHUNK)
    for piece, following in itertools.pairwise(pieces):
        assert len(piece) + following.index(b"\n") + 1 > CHUNK


def test_a_line_longer_than_a_chunk_is_one_of_its_own() -> None:
    long = b"x" * (2 * CHUNK) + b"\n"
    assert chunks(b"a\n" + long + b"b\n", CHUNK) == [b"a\n", long, b"b\n"]


@given(st.lists(WHOLE_LINES.map(b"".join).filter(bool)))
def test_every_line_that_was_written_is_in_the_spool_in_order(writes: list[bytes]) -> None:
    spool = Spool(None, max_bytes=1 << 30, max_age_s=1e9)
    try:
        sink = sink_of(spool)
        assert [sink.write(lines) for lines in writes] == [0] * len(writes)
        sink.close()
        assert b"".join(kept(spool)) == b"".join(writes)
        entries = spool.waiting("events", WALL_S, 100_000)
        assert sum(entry.lines for entry in entries) == b"".join(writes).count(b"\n")
        assert {entry.created_s for entry in entries} <= {WALL_S}
    finally:
        spool.close()


def test_a_flush_is_asked_for_once_until_it_comes(spool: Spool) -> None:
    asked: list[str] = []
    sink = sink_of(spool, asked)
    sink.write(b"a\n")
    sink.write(b"b\n")
    assert (asked, kept(spool)) == (["flush"], [])
    sink.flush()
    assert kept(spool) == [b"a\nb\n"]
    sink.write(b"c\n")
    assert asked == ["flush", "flush"]


def test_a_full_chunk_does_not_wait(spool: Spool) -> None:
    sink = sink_of(spool)
    sink.write(b"x" * CHUNK + b"\n")
    assert len(kept(spool)) == 1


def test_a_flush_of_nothing_puts_nothing(spool: Spool) -> None:
    sink = sink_of(spool)
    sink.flush()
    sink.close()
    assert kept(spool) == []


def test_what_the_spool_gives_up_the_sink_does_not_count_a_second_time() -> None:
    given_up: list[int] = []
    spool = Spool(None, max_bytes=1024, max_age_s=1e9, on_drop=given_up.append)
    try:
        sink = sink_of(spool)
        assert sum(sink.write(b"%06d" % number + b"x" * CHUNK + b"\n") for number in range(100)) == 0
        sink.close()
        assert sum(given_up) + sum(entry.lines for entry in spool.waiting("events", WALL_S, 1000)) == 100
        assert given_up
    finally:
        spool.close()


def test_writers_and_flushes_at_once_lose_nothing(spool: Spool) -> None:
    sink = sink_of(spool)
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            sink.flush()

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        written = [b"%d\n" % number for number in range(2000)]
        for line in written:
            sink.write(line)
    finally:
        ended.set()
        thread.join()
    sink.close()
    assert b"".join(kept(spool)) == b"".join(written)


@given(WHOLE_LINES)
def test_a_batch_is_the_log_and_gzip_gives_it_back(lines: list[bytes]) -> None:
    spool = Spool(None, max_bytes=1 << 30, max_age_s=1e9)
    try:
        spool.put("events", chunks(b"".join(lines), CHUNK), WALL_S)
        entries = spool.waiting("events", WALL_S, 100_000)
        assert joined(entries, compress=False) == b"".join(lines)
        packed = joined(entries, compress=True)
        assert gzip.decompress(packed) == b"".join(lines)
        assert packed == joined(entries, compress=True)  # the same batch sent again is the same message
    finally:
        spool.close()
