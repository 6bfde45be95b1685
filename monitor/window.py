"""One reader's window: from its last accepted report to now.

Owns the baseline, the report ids, the one report that is pending, and what of it survives a restart. Refuses to know
when a report is due, where it goes and where its own state is kept: whoever takes a report says whether it was
accepted, and only then does the window end.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

import msgspec

from monitor.defender.report import document, fit, next_report_id
from monitor.detect.device import DeviceReading, blocks, device_metrics
from monitor.detect.metrics import Metric, merged, window_metrics
from monitor.detect.snapshot import Snapshot  # noqa: TC001 - msgspec reads the fields' types
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from monitor.capture import Capture
    from monitor.defender.report import Format, Names
    from monitor.engine import Engine


class Store(Protocol):
    """A place for the state of a window."""

    def load(self) -> bytes | None:
        """What was saved last; None: nothing."""

    def save(self, state: bytes) -> None:
        """Keep it, all or nothing, over a power cut too. OSError: it could not be."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A report that was made and is not accepted yet."""

    report_id: int
    metrics: tuple[Metric, ...]
    snapshot: Snapshot
    reading: DeviceReading
    payload: bytes = b""
    """b"": it was made in an earlier life and is only remembered."""
    dropped: dict[str, int] = {}
    """Entries left out of lists for its size, by list; the totals beside them are true."""
    mark: int = 0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a window has come to, as yet without a document."""

    metrics: tuple[Metric, ...]
    snapshot: Snapshot
    reading: DeviceReading
    before: DeviceReading | None
    """The device at the window's begin; None: unknown."""
    mark: int


class _Kept(msgspec.Struct, kw_only=True):
    """What a restart needs."""

    generation: int
    """Of the capture's counters: of another life they mean nothing."""
    last_report_id: int = 0
    began_wall_ns: int = 0
    baseline: Snapshot | None = None
    reading: DeviceReading | None = None
    peaks: dict[str, int] = {}
    """Highest peak by watch of windows that were begun in the kernel and not accepted yet."""
    pending: Report | None = None
    """The last report, while it is not accepted."""
    carried: tuple[Metric, ...] = ()
    """Metrics of windows that no report brought to an end before what they were made of went away."""


class Window:
    """The window of one reader of a capture."""

    def __init__(  # noqa: PLR0913 - what it reads from, and where it keeps what it read
        self,
        capture: Capture,
        engine: Engine,
        reader: int,
        read_device: Callable[[], DeviceReading],
        *,
        store: Store | None = None,
        generation: int = 0,
    ) -> None:
        """`store`: where its state lives; None: only here. Raises ConfigInvalid when that cannot be written."""
        self._capture, self._engine, self._reader, self._read_device = capture, engine, reader, read_device
        self._store = store
        self._mark = 0
        self._kept = _Kept(generation=generation)
        if store is not None:
            self._load(store, generation)

    @property
    def began_wall_ns(self) -> int:
        """CLOCK_REALTIME when the window began; 0: with the capture."""
        return self._kept.began_wall_ns

    @property
    def pending(self) -> Report | None:
        """The last report, while it is not accepted."""
        return self._kept.pending

    def begin(self) -> None:
        """Note the state of the device now, if no earlier report did."""
        if self._kept.reading is None:
            self._kept.reading = self._read_device()

    def report(self, now_s: int, names: Names = "long", encoding: Format = "json") -> Report:
        """Write the report of the window so far. The window goes on until `accept`."""
        look = self.look()
        report_id = next_report_id(self._kept.last_report_id, now_s)
        fitted = fit(document(report_id, look.metrics, blocks(look.before, look.reading), names), encoding)
        report = Report(
            report_id=report_id,
            metrics=look.metrics,
            snapshot=_without_lists(look.snapshot),
            reading=look.reading,
            payload=fitted.payload,
            dropped=dict(fitted.dropped),
            mark=look.mark,
        )
        self._kept.last_report_id = report_id
        self._kept.pending = msgspec.structs.replace(report, payload=b"", dropped={})
        self._save()
        return report

    def look(self) -> Look:
        """Take the metrics of the window so far. The window goes on until `accept`."""
        reading = self._read_device()
        mark = self._engine.mark()
        snapshot = self._with_peaks(self._capture.snapshot(self._reader, self._mark))
        before = self._kept.reading
        of_window = window_metrics(self._kept.baseline, snapshot) + device_metrics(before, reading)
        metrics = tuple(merged(self._kept.carried, of_window))
        self._kept.peaks = {watch.name: watch.window_peak for watch in snapshot.watches}
        return Look(metrics=metrics, snapshot=snapshot, reading=reading, before=before, mark=mark)

    def accept(self, report: Report | Look) -> None:
        """The report arrived: its window is over, the next one begins where it ended."""
        self._mark = report.mark
        self._kept.peaks = {}
        self._kept.pending = None
        self._kept.carried = ()
        self._kept.began_wall_ns = report.snapshot.wall_ns
        self._kept.baseline = _without_lists(report.snapshot)
        self._kept.reading = report.reading
        self._save()

    def _with_peaks(self, snapshot: Snapshot) -> Snapshot:
        """The kernel began a new peak at every snapshot; the window's peak is the highest of them."""
        peaks = self._kept.peaks
        watches = tuple(
            msgspec.structs.replace(w, window_peak=max(w.window_peak, peaks.get(w.name, 0))) for w in snapshot.watches
        )
        return msgspec.structs.replace(snapshot, watches=watches)

    def _load(self, store: Store, generation: int) -> None:
        kept = self._kept
        try:
            state = store.load()
            if state is not None:
                kept = msgspec.json.decode(state, type=_Kept)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            pass  # torn or foreign: a window that begins with the counters is right, if long
        if kept.generation != generation:
            # The counters are new; what the last report said of the old ones, and nobody accepted, goes on.
            kept = _Kept(
                generation=generation,
                last_report_id=kept.last_report_id,
                began_wall_ns=kept.began_wall_ns,
                reading=kept.reading,
                carried=kept.pending.metrics if kept.pending else kept.carried,
            )
        elif kept.pending is not None:
            # The counters go on, but lists are in the engine's memory, and its marks mean nothing to another one.
            numbers = [metric for metric in kept.carried if not isinstance(metric.value, tuple)]
            lists = [metric for metric in kept.pending.metrics if isinstance(metric.value, tuple)]
            kept.carried = (*numbers, *lists)
            kept.pending = msgspec.structs.replace(kept.pending, mark=0)
        self._kept = kept
        try:
            store.save(msgspec.json.encode(kept))
        except OSError as error:
            msg = f"daemon.state_dir: its state cannot be written ({error.strerror or error}); name another directory"
            raise ConfigInvalid(msg) from error

    def _save(self) -> None:
        if self._store is not None:
            with contextlib.suppress(OSError):  # a full disk costs the memory of a restart, not the report
                self._store.save(msgspec.json.encode(self._kept))


def _without_lists(snapshot: Snapshot) -> Snapshot:
    """A baseline needs counters only."""
    return msgspec.structs.replace(
        snapshot,
        watches=tuple(
            msgspec.structs.replace(watch, exes=(), remotes=(), listening_ports=()) for watch in snapshot.watches
        ),
    )


class FileStore:
    """State in a file of its own."""

    def __init__(self, path: Path) -> None:
        """Its directory is made when something is saved."""
        self._path = path

    def load(self) -> bytes | None:
        """Read the file."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, state: bytes) -> None:
        """All or nothing: a new file, on the disk before it takes the old one's name."""
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(state)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.rename(self._path)
