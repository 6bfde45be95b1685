"""The spool against a naive one: whatever is put is delivered, waiting or counted as dropped, exactly.

Owns the model and the faults: a full disk, restarts, kills. Refuses to know SQL.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.defender.spool import ROW_BYTES, Spool

if TYPE_CHECKING:
    from monitor.defender.spool import Entry, Kind

MAX_BYTES: Final = 4000
MAX_AGE_S: Final = 1000.0
START_S: Final = 2e9
KINDS = st.sampled_from(["alarm", "events"])


class SpoolOfAnyLife(RuleBasedStateMachine):
    """A spool, and what a list would say."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now_s = START_S
        self.told: list[int] = []
        self.put_lines: Counter[str] = Counter()
        self.done_lines: Counter[str] = Counter()
        self.order: dict[str, list[bytes]] = {"alarm": [], "events": []}
        self.given: dict[int, Entry] = {}
        self.last_id, self.number, self.full = 0, 0, False
        self.held: int | None = None
        self.open()

    def open(self) -> None:
        """Open it, as a process that begins."""
        self.spool = Spool(
            Path(self.folder.name, "spool.db"), max_bytes=MAX_BYTES, max_age_s=MAX_AGE_S, on_drop=self.told.append
        )
        self.full, self.held = False, None
        self.given.clear()

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.spool.close()
        self.folder.cleanup()

    def payload(self, size: int) -> bytes:
        """One that no other message has, in ascending order."""
        self.number += 1
        return b"%08d" % self.number + b"x" * size

    @rule(kind=KINDS, count=st.integers(0, 3), size=st.integers(0, 400), lines=st.integers(1, 5))
    def put(self, kind: Kind, count: int, size: int, lines: int) -> None:
        """Put messages."""
        payloads = [self.payload(size) for _ in range(count)]
        last = self.spool.put(kind, payloads, self.now_s, lines=lines)
        assert last > self.last_id or not payloads
        self.last_id = max(last, self.last_id)
        self.put_lines[kind] += lines * count
        self.order[kind] += payloads

    @rule(size=st.integers(0, 400))
    def hold(self, size: int) -> None:
        """Put one that waits."""
        payload = self.payload(size)
        self.held = self.spool.put("alarm", [payload], self.now_s, ready_s=self.now_s + 5.0)
        assert self.held > self.last_id
        self.last_id = self.held
        self.put_lines["alarm"] += 1
        self.order["alarm"].append(payload)

    @precondition(lambda self: self.held is not None)
    @rule(size=st.integers(0, 400), lines=st.integers(1, 3))
    def merge(self, size: int, lines: int) -> None:
        """Merge into the one that waits."""
        assert self.held is not None
        payload = self.payload(size)
        if self.spool.merge(self.held, payload, lines):
            assert self.held not in self.given
            self.put_lines["alarm"] += lines
            self.order["alarm"].append(payload)
        else:
            self.held = None

    @rule(kind=KINDS, limit=st.integers(1, 5), wait_s=st.sampled_from([0.0, 6.0]))
    def give(self, kind: Kind, limit: int, wait_s: float) -> None:
        """A sender takes some."""
        self.now_s += wait_s
        entries = self.spool.waiting(kind, self.now_s, limit)
        assert len(entries) <= limit
        ids = [entry.id for entry in entries]
        assert ids == sorted(set(ids))
        assert all(entry.payload in self.order[kind] for entry in entries)
        for entry in entries:  # what is given twice is the same message
            assert self.given.setdefault(entry.id, entry) == entry

    @precondition(lambda self: self.given)
    @rule(data=st.data(), dropped=st.booleans())
    def end(self, data: st.DataObject, dropped: bool) -> None:  # noqa: FBT001 - hypothesis gives it by name
        """It has arrived, or never will."""
        number = data.draw(st.sampled_from(sorted(self.given)))
        entry = self.given.pop(number)
        lines = entry.lines + entry.merged
        kind = "alarm" if entry.payload in self.order["alarm"] else "events"
        before, counted = self.waiting_lines()[kind], self.dropped(kind)
        if dropped:
            self.spool.drop([number])
        else:
            self.spool.done([number])
        gone = before - self.waiting_lines()[kind] - (self.dropped(kind) - counted)
        assert gone in (0, 0 if dropped else lines)  # 0: the bound or its age took it first, and counted it
        self.done_lines[kind] += gone

    @rule(seconds=st.sampled_from([1.0, 300.0, 900.0]))
    def age(self, seconds: float) -> None:
        """Time passes, and what is too old goes."""
        self.now_s += seconds
        before = sum(self.told)
        assert self.spool.expire(self.now_s) == sum(self.told) - before
        if not self.full:
            for kind in ("alarm", "events"):
                assert all(entry.created_s > self.now_s - MAX_AGE_S for entry in self.everything(kind))

    @rule()
    def fill_disk(self) -> None:
        """No further page."""
        (pages,) = self.spool._rows.execute("pragma page_count").fetchone()
        self.spool._rows.execute(f"pragma max_page_count = {pages}")
        self.full = True

    @rule()
    def free_disk(self) -> None:
        """Room again."""
        self.spool._rows.execute("pragma max_page_count = 1000000")
        self.full = False

    @rule()
    def restart(self) -> None:
        """A clean one, with room at the end, keeps everything."""
        self.free_disk()
        name = self.spool.name
        self.spool.close()
        self.open()
        assert self.spool.name == name

    def everything(self, kind: Kind) -> list[Entry]:
        """What waits, held or not; looking at it makes no sender of us."""
        with self.spool._lock:
            return list(self.spool._all_waiting(kind, self.now_s + 1e9))

    def dropped(self, kind: str) -> int:
        """Lines counted as dropped."""
        return self.spool.sizes().dropped.get(kind, 0)

    def waiting_lines(self) -> Counter[str]:
        """Lines that wait."""
        kinds: tuple[Kind, ...] = ("alarm", "events")
        return Counter({kind: sum(entry.lines + entry.merged for entry in self.everything(kind)) for kind in kinds})

    @invariant()
    def nothing_is_lost_without_being_counted(self) -> None:
        """What was put is what was delivered, what waits and what was dropped: by kind, and in sum."""
        dropped = self.spool.sizes().dropped
        waiting = self.waiting_lines()
        for kind in ("alarm", "events"):
            assert self.put_lines[kind] == self.done_lines[kind] + waiting[kind] + dropped.get(kind, 0), kind
        assert sum(self.told) == sum(dropped.values())

    @invariant()
    def what_waits_is_in_order(self) -> None:
        """By id, and the newest is the newest."""
        for kind in ("alarm", "events"):
            entries = self.everything(kind)
            assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)
            if kind == "events":
                payloads = [entry.payload for entry in entries]
                assert payloads == sorted(payloads)

    @invariant()
    def the_file_is_within_its_bound(self) -> None:
        """As counted, and as it is."""
        sizes = self.spool.sizes()
        assert sizes.bytes <= MAX_BYTES
        (true_bytes,) = self.spool._rows.execute(
            f"select coalesce(sum(length(payload) + {ROW_BYTES}), 0) from queue"  # noqa: S608 - a number
        ).fetchone()
        assert sizes.bytes == true_bytes


SpoolOfAnyLife.TestCase.settings = settings(stateful_step_count=40)
test_whatever_happens_every_line_is_delivered_waiting_or_counted = SpoolOfAnyLife.TestCase
