"""The spool: what has not been accepted yet, durable, bounded, in order (SQLite, write-ahead log).

Owns two queues, alarms and batches of event lines, and a few named values (report state). Refuses to know what is in a
message, who sends it and the clock: moments are told, seconds since the epoch.

What survives. A put is in the file's log when it returns: a kill -9 loses nothing. Against a power cut `sync` writes
the log to the disk; whoever puts an alarm sends it first and syncs right afterwards, so that no alarm waits for a disk.
A `save` is on the disk when it returns. A `done` is not: after a power cut a message may be sent again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.defender import spoolfile
from monitor.publishing import CLOCK_SET_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Kind = Literal["alarm", "events"]
_Row = tuple[int, Kind, float, float, int, int, bytes]

ROW_BYTES: Final = 64
"""What a row costs beside its payload, in the file and its index; part of the sum that `max_bytes` bounds."""
MEMORY_ROWS: Final = 1000
"""Most messages kept in memory while the file takes none (a full disk)."""
MEMORY_BYTES: Final = 16 << 20
"""Most bytes of them."""
_MEMORY_GAP: Final = 1 << 32
"""Ids of messages in memory begin this far above the file's, and a random bit more: no later life gives them again."""
_INSERT: Final = "insert into queue values (?, ?, ?, ?, ?, ?, ?)"
_OLD: Final = "select id from queue where created_s between ? and ?"
_COUNT_DROPPED: Final = (
    "insert into dropped values (?, ?) on conflict (kind) do update set lines = lines + excluded.lines"
)
_SOON_S: Final = 60.0
"""No message is held back longer; one that seems to be was put before the clock was set back."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits."""

    id: int
    """Grows with time and is never given twice, not by a restart either."""
    lines: int
    """Event lines in it."""
    merged: int
    """Further lines that it stands for."""
    created_s: float
    payload: bytes


class _Held(msgspec.Struct, frozen=True):
    """A message in memory."""

    kind: Kind
    ready_s: float
    entry: Entry

    @property
    def row(self) -> _Row:
        """As the file has it."""
        entry = self.entry
        return entry.id, self.kind, entry.created_s, self.ready_s, entry.lines, entry.merged, entry.payload


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How full it is."""

    bytes: int
    alarms: int
    """Messages."""
    events: int
    """Messages."""
    oldest_s: float | None
    """When the oldest message came, seconds since the epoch."""
    dropped: dict[str, int]
    """Lines given up for good since the spool was made, by kind."""


class Spool:
    """An open spool. Its methods may be called from any thread.

    A file that fails (a full disk) costs no message at once: up to MEMORY_ROWS are kept in memory meanwhile, and what
    has arrived but cannot be deleted is not sent again in this life.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int,
        max_age_s: float,
        on_drop: Callable[[int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Open or make it; None: in memory only.

        `on_drop(lines)`: told whenever lines are given up for good, from the thread that found out. `say(text)`: a
        failure in words, once until it is over. Raises ConfigInvalid when the file cannot be used, AlreadyRunning when
        another process has it open.
        """
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self._on_drop, self._say = on_drop, say
        self._lock = threading.RLock()
        self._disk = threading.Lock()  # held while somebody waits for the disk; nobody takes the other one then
        self._file = path
        self._locked = spoolfile.lock(path) if path is not None else -1
        self._memory: dict[int, _Held] = {}
        self._memory_bytes = 0
        self._uncounted: dict[str, int] = {}  # dropped, and not in the file's count yet
        self._leaving: dict[int, bool] = {}  # still in the file, which would not let them go; True: dropped
        self._given: set[int] = set()  # to a sender, who may have sent them
        self._troubled = False
        try:
            self._rows = spoolfile.opened(path)
            self._syncing = None if path is None else spoolfile.connect(path)
        except BaseException:
            self._unlock()
            raise
        (self._bytes,) = self._rows.execute(
            f"select coalesce(sum(length(payload) + {ROW_BYTES}), 0) from queue"  # noqa: S608 - a number of ours
        ).fetchone()
        (self._last_id,) = self._rows.execute(
            "select coalesce(max(seq), 0) from sqlite_sequence where name = 'queue'"
        ).fetchone()
        name = self.load("name")
        if name is None:
            name = secrets.token_hex(4).encode()
            self.save("name", name)
        self.name = name.decode()
        """Of this spool; with the id of a message, a name of that message in the whole world."""

    # -------- the queues --------

    def put(self, kind: Kind, payloads: Sequence[bytes], now_s: float, *, lines: int = 1, ready_s: float = 0.0) -> int:
        """Append messages of `lines` lines each, not to be sent before `ready_s`; returns the id of the last one."""
        with self._lock:
            held = [
                _Held(kind, ready_s, Entry(id=number, lines=lines, merged=0, created_s=now_s, payload=payload))
                for number, payload in enumerate(payloads, self._last_id + 1)
            ]
            # What came first goes first, so nothing goes into the file past what is in memory.
            if not self._flush_memory() or not self._append(held):
                self._remember(held)
            else:
                self._last_id += len(held)
            return int(self._last_id)

    def merge(self, entry_id: int, payload: bytes, lines: int) -> bool:
        """Let a message that still waits stand for `lines` more, with a newer payload.

        False: it waits no more. A sender who got it from `waiting` may have sent it, and would end it by its id.
        """
        with self._lock:
            if entry_id in self._given:
                return False
            held = self._memory.get(entry_id)
            if held is not None:
                entry = msgspec.structs.replace(held.entry, merged=held.entry.merged + lines, payload=payload)
                self._memory[entry_id] = msgspec.structs.replace(held, entry=entry)
                self._memory_bytes += len(payload) - len(held.entry.payload)
                return True
            try:
                grown = self._merge_in_file(entry_id, payload, lines)
            except sqlite3.Error as error:
                self._complain(error)
                return False
            if grown is None:
                return False
            self._bytes += grown
            self._shrink()
        return True

    def _merge_in_file(self, entry_id: int, payload: bytes, lines: int) -> int | None:
        """By how many bytes it grew; None: it is not there."""
        with spoolfile.transaction(self._rows):
            old = self._rows.execute("select length(payload) from queue where id = ?", (entry_id,)).fetchone()
            if old is None:
                return None
            self._rows.execute(
                "update queue set merged = merged + ?, payload = ? where id = ?", (lines, payload, entry_id)
            )
        return len(payload) - int(old[0])

    def waiting(self, kind: Kind, now_s: float, limit: int, most_bytes: int = 1 << 30) -> list[Entry]:
        """The oldest messages that may be sent now, in order: at most `limit`, and `most_bytes` but for the first."""
        found: list[Entry] = []
        total = 0
        with self._lock:
            for entry in self._all_waiting(kind, now_s):
                total += len(entry.payload)
                if len(found) == limit or (found and total > most_bytes):
                    break
                found.append(entry)
            self._given.update(entry.id for entry in found)
        return found

    def _all_waiting(self, kind: Kind, now_s: float) -> Iterator[Entry]:
        """In the file, then in memory; a file that cannot be read has none."""
        with contextlib.closing(self._rows.cursor()) as rows:
            try:
                rows.execute(
                    "select id, lines, merged, created_s, payload from queue"
                    " where kind = ? and (ready_s <= ? or ready_s > ?) order by id",
                    (kind, now_s, now_s + _SOON_S),
                )
                for number, lines, merged, created_s, payload in rows:
                    if number not in self._leaving:
                        yield Entry(id=number, lines=lines, merged=merged, created_s=created_s, payload=payload)
            except sqlite3.Error as error:
                self._complain(error)
        for held in self._memory.values():
            if held.kind == kind and not now_s < held.ready_s <= now_s + _SOON_S:
                yield held.entry

    def ready_s(self, kind: Kind) -> float | None:
        """When the next message may be sent; None: there is none."""
        moments: list[float] = []
        with self._lock:
            try:
                if self._leaving:
                    rows = self._rows.execute("select id, ready_s from queue where kind = ?", (kind,))
                    moments = [ready_s for number, ready_s in rows if number not in self._leaving]
                else:
                    rows = self._rows.execute("select min(ready_s) from queue where kind = ?", (kind,))
                    moments = [ready_s for (ready_s,) in rows if ready_s is not None]
            except sqlite3.Error as error:
                self._complain(error)
            moments += [held.ready_s for held in self._memory.values() if held.kind == kind]
        return min(moments, default=None)

    def done(self, ids: Sequence[int]) -> None:
        """These messages have arrived."""
        self._remove(ids, dropped=False)

    def drop(self, ids: Sequence[int]) -> None:
        """These messages will never be taken; they are counted as dropped."""
        self._remove(ids, dropped=True)

    def expire(self, now_s: float) -> int:
        """Drop what is older than `max_age_s`; returns how many lines that were.

        A message from the future, or from before the clock was set, has an unknown age and stays.
        """
        old = (CLOCK_SET_S, now_s - self._max_age_s)
        with self._lock:
            ids = [number for number, held in self._memory.items() if old[0] <= held.entry.created_s <= old[1]]
            try:
                ids += [number for (number,) in self._rows.execute(_OLD, old).fetchall()]
            except sqlite3.Error as error:
                self._complain(error)
            return self._remove(ids, dropped=True)

    def sizes(self) -> Sizes:
        """How full it is now."""
        with self._lock:
            rows: dict[str, int] = {}
            dropped: dict[str, int] = {}
            oldest_s: float | None = None
            try:
                rows = dict(self._rows.execute("select kind, count(*) from queue group by kind"))
                (oldest_s,) = self._rows.execute("select min(created_s) from queue").fetchone()
                dropped = dict(self._rows.execute("select kind, lines from dropped"))
            except sqlite3.Error as error:
                self._complain(error)
            for kind, lines in self._uncounted.items():
                dropped[kind] = dropped.get(kind, 0) + lines
            for held in self._memory.values():
                rows[held.kind] = rows.get(held.kind, 0) + 1
                oldest_s = held.entry.created_s if oldest_s is None else min(oldest_s, held.entry.created_s)
            return Sizes(
                bytes=self._bytes,
                alarms=rows.get("alarm", 0),
                events=rows.get("events", 0),
                oldest_s=oldest_s,
                dropped=dropped,
            )

    # -------- named values --------

    def load(self, name: str) -> bytes | None:
        """The value of that name; None: there is none."""
        with self._lock:
            row = self._rows.execute("select value from state where name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def save(self, name: str, value: bytes) -> None:
        """Keep a value; it is on the disk when this returns. OSError: it is not."""
        with self._lock:
            try:
                with spoolfile.transaction(self._rows):
                    self._rows.execute(
                        "insert into state values (?, ?) on conflict (name) do update set value = excluded.value",
                        (name, value),
                    )
            except sqlite3.Error as error:
                self._complain(error)
                raise OSError(f"spool: {error}") from error
        self._sync()

    # -------- the file --------

    def sync(self) -> None:
        """Write everything put so far to the disk. Nobody waits for it but the caller."""
        try:
            self._sync()
        except OSError as error:
            self._complain(error)

    def _sync(self) -> None:
        if self._file is not None and self._syncing is not None:
            with self._disk:
                spoolfile.sync(self._file, self._syncing)

    def close(self) -> None:
        """Close it. What is only in memory, because the file took nothing, gets a last chance and is dropped then."""
        with self._lock:
            self._flush_memory()
            self._tell_dropped(sum(self._forget(number) for number in list(self._memory)))
            self._rows.close()
            if self._syncing is not None:
                self._syncing.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._locked >= 0:
            os.close(self._locked)
            self._locked = -1

    def _append(self, held: Sequence[_Held]) -> bool:
        """Write messages into the file; False: it took none of them."""
        try:
            with spoolfile.transaction(self._rows):
                self._rows.executemany(_INSERT, [one.row for one in held])
                self._rows.executemany(_COUNT_DROPPED, list(self._uncounted.items()))
        except sqlite3.Error as error:
            self._complain(error)
            return False
        self._uncounted.clear()
        self._troubled = False
        self._bytes += sum(len(one.entry.payload) + ROW_BYTES for one in held)
        self._shrink()
        return True

    # -------- while the file takes nothing --------

    def _remember(self, held: Sequence[_Held]) -> None:
        """Keep them in memory; beyond its bounds the oldest batches of events are dropped first, alarms last."""
        for one in held:
            self._last_id += 1 if self._memory else _MEMORY_GAP + secrets.randbits(40)
            entry = msgspec.structs.replace(one.entry, id=self._last_id)
            self._memory[entry.id] = msgspec.structs.replace(one, entry=entry)
            self._memory_bytes += len(entry.payload)
        lost = 0
        while len(self._memory) > MEMORY_ROWS or (self._memory_bytes > MEMORY_BYTES and len(self._memory) > 1):
            events = (number for number, one in self._memory.items() if one.kind == "events")
            lost += self._forget(next(events, next(iter(self._memory))))
        self._tell_dropped(lost)

    def _forget(self, number: int) -> int:
        """Drop a message from memory; returns how many lines it stood for."""
        held = self._memory.pop(number)
        self._memory_bytes -= len(held.entry.payload)
        self._given.discard(number)
        lines = held.entry.lines + held.entry.merged
        self._uncounted[held.kind] = self._uncounted.get(held.kind, 0) + lines
        return lines

    def _flush_memory(self) -> bool:
        """Write what is in memory into the file, in order; True: nothing is left there."""
        while self._memory:
            number, held = next(iter(self._memory.items()))
            if not self._append([held]):
                return False
            del self._memory[number]
            self._memory_bytes -= len(held.entry.payload)
        return True

    # -------- out --------

    def _shrink(self) -> None:
        """Make room, if there is too little: the oldest batches of events first, alarms last."""
        spare = self._bytes - self._max_bytes
        if spare <= 0:
            return
        ids: list[int] = []
        try:
            rows = self._rows.execute("select id, length(payload) from queue order by kind = 'alarm', id")
            for number, size in rows:  # one by one: it may be a long queue, and few have to go
                ids.append(number)
                spare -= size + ROW_BYTES
                if spare <= 0:
                    break
            rows.close()
        except sqlite3.Error as error:
            self._complain(error)
            return
        self._leave(ids, dropped=True)

    def _remove(self, ids: Sequence[int], *, dropped: bool) -> int:
        """Take messages away; returns how many lines were dropped."""
        with self._lock:
            lost = 0
            filed: list[int] = []
            for number in ids:
                held = self._memory.get(number)
                if held is None:
                    filed.append(number)
                elif dropped:
                    lost += self._forget(number)
                else:
                    del self._memory[number]
                    self._memory_bytes -= len(held.entry.payload)
            self._tell_dropped(lost)
            self._given.difference_update(ids)
            lost += self._leave(filed, dropped=dropped)
            self._flush_memory()
        return lost

    def _leave(self, ids: Sequence[int], *, dropped: bool) -> int:
        """Delete them from the file, and what it would not let go earlier; returns how many lines were dropped."""
        for number in ids:
            self._leaving.setdefault(number, dropped)
        lost = 0
        for fate in (False, True):
            marks = [(number,) for number, of_fate in self._leaving.items() if of_fate == fate]
            if not marks:
                continue
            try:
                lines = self._delete(marks, dropped=fate)
            except sqlite3.Error as error:
                self._complain(error)
                continue
            for (number,) in marks:
                del self._leaving[number]
                self._given.discard(number)
            lost += lines if fate else 0
        self._tell_dropped(lost)
        return lost

    def _delete(self, marks: Sequence[tuple[int]], *, dropped: bool) -> int:
        """Returns how many lines they stood for."""
        lines = size = 0
        with spoolfile.transaction(self._rows):
            for mark in marks:
                row = self._rows.execute(
                    "delete from queue where id = ? returning kind, lines + merged, length(payload)", mark
                ).fetchone()
                if row is None:
                    continue
                kind, of_lines, length = row
                lines += of_lines
                size += length + ROW_BYTES
                if dropped:
                    self._rows.execute(_COUNT_DROPPED, (kind, of_lines))
        self._bytes -= size
        return lines

    # -------- words --------

    def _tell_dropped(self, lines: int) -> None:
        if lines and self._on_drop is not None:
            self._on_drop(lines)

    def _complain(self, error: Exception) -> None:
        if not self._troubled and self._say is not None:
            self._say(f"spool: {error}; what it does not take is kept in memory until it does")
        self._troubled = True
