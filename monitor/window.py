"""One reader's window: from its last accepted report to now.

Owns the baseline, the report ids and their file in the state directory, so that both survive a restart. Refuses to know
when a report is due and where it goes: whoever takes it says whether it was accepted, and only then does the window
end.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from monitor.defender.report import document, fit, next_report_id
from monitor.detect.device import DeviceReading, blocks
from monitor.detect.metrics import window_metrics
from monitor.detect.snapshot import Snapshot  # noqa: TC001 - msgspec reads the fields' types
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from monitor.capture import Capture
    from monitor.defender.report import Format, Names
    from monitor.detect.metrics import Metric
    from monitor.engine import Engine


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


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A report that was made and is not accepted yet."""

    payload: bytes
    metrics: tuple[Metric, ...]
    dropped: dict[str, int]
    """Entries left out of lists for its size, by list; the totals beside them are true."""
    snapshot: Snapshot
    reading: DeviceReading
    mark: int
    report_id: int


class Window:
    """The window of one reader of a capture."""

    def __init__(  # noqa: PLR0913 - what it reads from, and where it keeps what it read
        self,
        capture: Capture,
        engine: Engine,
        reader: int,
        read_device: Callable[[], DeviceReading],
        *,
        file: Path | None = None,
        generation: int = 0,
    ) -> None:
        """`file`: where baseline and ids live; None: only here. Raises ConfigInvalid when it cannot be written."""
        self._capture, self._engine, self._reader, self._read_device = capture, engine, reader, read_device
        self._file = file
        self._mark = 0
        self._kept = _Kept(generation=generation)
        if file is not None:
            self._load(file, generation)

    @property
    def began_wall_ns(self) -> int:
        """CLOCK_REALTIME when the window began; 0: with the capture."""
        return self._kept.began_wall_ns

    def begin(self) -> None:
        """Note the state of the device now, if no earlier report did."""
        if self._kept.reading is None:
            self._kept.reading = self._read_device()

    def report(self, now_s: int, names: Names = "long", encoding: Format = "json") -> Report:
        """Write the report of the window so far. The window goes on until `accept`."""
        reading = self._read_device()
        mark = self._engine.mark()
        snapshot = self._with_peaks(self._capture.snapshot(self._reader, self._mark))
        metrics = tuple(window_metrics(self._kept.baseline, snapshot))
        report_id = next_report_id(self._kept.last_report_id, now_s)
        fitted = fit(document(report_id, metrics, blocks(self._kept.reading, reading), names), encoding)
        self._kept.last_report_id = report_id
        self._kept.peaks = {watch.name: watch.window_peak for watch in snapshot.watches}
        self._save()
        return Report(
            payload=fitted.payload,
            metrics=metrics,
            dropped=dict(fitted.dropped),
            snapshot=snapshot,
            reading=reading,
            mark=mark,
            report_id=report_id,
        )

    def accept(self, report: Report) -> None:
        """The report arrived: its window is over, the next one begins where it ended."""
        self._mark = report.mark
        self._kept.peaks = {}
        self._kept.began_wall_ns = report.snapshot.wall_ns
        self._kept.baseline = msgspec.structs.replace(
            report.snapshot, watches=tuple(msgspec.structs.replace(w, exes=()) for w in report.snapshot.watches)
        )
        self._kept.reading = report.reading
        self._save()

    def _with_peaks(self, snapshot: Snapshot) -> Snapshot:
        """The kernel began a new peak at every snapshot; the window's peak is the highest of them."""
        peaks = self._kept.peaks
        watches = tuple(
            msgspec.structs.replace(w, window_peak=max(w.window_peak, peaks.get(w.name, 0))) for w in snapshot.watches
        )
        return msgspec.structs.replace(snapshot, watches=watches)

    def _load(self, file: Path, generation: int) -> None:
        try:
            kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            kept = self._kept
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            kept = self._kept  # torn or foreign: a window that begins with the counters is right, if long
        if kept.generation != generation:
            kept = _Kept(generation=generation, last_report_id=kept.last_report_id)
        self._kept = kept
        try:
            file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._write(file)
        except OSError as error:
            msg = f"daemon.state_dir: {file} cannot be written ({error.strerror or error}); name another directory"
            raise ConfigInvalid(msg) from error

    def _save(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk costs the memory of a restart, not the report
                self._write(self._file)

    def _write(self, file: Path) -> None:
        """All or nothing: a new file, on the disk before it takes the old one's name."""
        fresh = file.with_name(f".{file.name}.new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(msgspec.json.encode(self._kept))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.rename(file)
