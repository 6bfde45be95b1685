"""The replay capture: a record file through the engine, as fast as it reads.

Owns the order of a replay: clock, watches, records. Refuses to know what records mean and the machine it runs on: all
times and counts are the file's.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

import msgspec

from monitor.capture.recordfile import RecordReader
from monitor.capture.rules import define
from monitor.detect.snapshot import NETWORK, Snapshot, WatchSnapshot
from monitor.engine import records

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from monitor.capture.recordfile import RecordedWatch
    from monitor.engine import Engine
    from monitor.expect import Expect


class ReplayCapture:
    """Feeds the records of one file.

    Raises RecordFileInvalid: at once for a foreign file, from poll() for a torn one, after all whole records went in.
    """

    kind: ClassVar[str] = "replay"

    def __init__(self, engine: Engine, path: Path, expects: Mapping[str, Expect] | None = None) -> None:
        """`expects`: by watch name, what to judge by instead of what was recorded."""
        self._engine = engine
        self._reader = RecordReader(path)
        self._chunks = self._reader.chunks()
        self._expects = dict(expects or {})
        self._stopped = threading.Event()

    @property
    def watches(self) -> tuple[RecordedWatch, ...]:
        """The watches of the recorded run."""
        return self._reader.watches

    @property
    def seconds(self) -> float:
        """From the first record to the last that was fed."""
        return max(0, self._reader.last_boot_ns - self._reader.first_boot_ns) / 1e9

    def start(self) -> None:
        """Tell the engine the file's clock and watches."""
        self._engine.ingest(records.clock_record(time_ns=0, wall_ns=self._reader.wall_ns))
        for watch in self.watches:
            expect = self._expects.get(watch.name)
            if expect is None:
                define(self._engine, watch.slot, watch, watch.files)
            else:  # the files of this machine need not be those of the recorded one: their paths are compared
                define(self._engine, watch.slot, msgspec.structs.replace(watch, expect=expect), None)

    def poll(self) -> bool:
        """Feed the next chunk; False at the end of the file or after stop()."""
        chunk = None if self._stopped.is_set() else next(self._chunks, None)
        if chunk is None:
            return False
        self._engine.ingest(chunk)
        return True

    def commit(self) -> None:
        """The file stays as it is."""

    def stop(self) -> None:
        """Make poll() return False; any thread may call."""
        self._stopped.set()

    def snapshot(self, reader: int | None, mark: int) -> Snapshot:
        """The counters as of the last record, and its time by the clock the file began with.

        Of the network records tell what happened and not how much, nor which hooks were live: its counters are unknown.
        """
        boot_ns = self._reader.last_boot_ns
        return Snapshot(
            wall_ns=boot_ns + self._reader.wall_ns,
            boot_ns=boot_ns,
            watches=tuple(self._watch_snapshot(watch, reader, mark) for watch in self.watches),
            lost=self._engine.losses(),
            unknown=NETWORK,
        )

    def close(self, *, keep: bool) -> None:
        """Close the file; there is nothing to keep."""
        del keep
        self._reader.close()

    def _watch_snapshot(self, watch: RecordedWatch, reader: int | None, mark: int) -> WatchSnapshot:
        fields = msgspec.structs.asdict(self._engine.counters(watch.slot, reader))
        if watch.enforce == "off":
            fields |= {"enforced": None, "would_enforce": None}
        exes, missed = self._engine.exes(watch.slot, mark)
        return WatchSnapshot(name=watch.name, exes=exes, exes_missed=missed, **fields)
