"""The record that `kinwatch learn` learns from: a capture of its own, for so long, into a file.

Owns the begin and the end of that capture. Refuses to know what is made of the record.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path  # noqa: TC003 - msgspec reads the fields' types
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.capture.choose import decide
from monitor.capture.recordfile import recorder
from monitor.engine import Engine, records
from monitor.errors import ConfigInvalid
from monitor.expect import Expect
from monitor.launch import open_capture
from monitor.sinks.text import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from monitor.capture import LiveCapture
    from monitor.capture.choose import Choice
    from monitor.config import Config

NETWORK: Final = frozenset({"destinations", "listening_ports"})


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded, before anything is made of it."""

    path: Path
    capture: str
    unknown: frozenset[str] | None = None
    """Expectations that the capture could not see broken; None: the file does not say, what it holds has to."""
    lost: Mapping[str, int] = {}


def record(settings: Config, path: Path, duration_s: float) -> Run:
    """Keep what a capture of its own sees, for so long or until SIGINT. Meanwhile nothing is expected, nobody killed.

    Raises ConfigInvalid when the file cannot be written, CaptureUnavailable.
    """
    watches = tuple(msgspec.structs.replace(watch, expect=Expect(), enforce="off") for watch in settings.watches)
    quiet = msgspec.structs.replace(settings, watches=watches)
    choice = decide(settings.capture)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with Engine(settings.capture.max_processes) as engine:
            choice, capture = open_capture(choice, engine, quiet, pins="", fresh=False)
            try:
                return _recorded(capture, engine, choice, path, (ended, duration_s))
            finally:
                capture.close(keep=False)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _recorded(
    capture: LiveCapture, engine: Engine, choice: Choice, path: Path, until: tuple[threading.Event, float]
) -> Run:
    engine.record(on=True)
    _mark_time(engine)
    capture.start()
    failures: list[BaseException] = []
    ended, duration_s = until
    with recorder(path, capture.watches) as writer:

        def keep() -> None:
            try:
                writer.append(engine.take().records)
                while capture.poll():
                    writer.append(engine.take().records)
                    capture.commit()
            except BaseException as error:  # noqa: BLE001 - raised in the main thread
                failures.append(error)
                ended.set()

        thread = threading.Thread(target=keep, name="capture")
        thread.start()
        say(f"watching for {duration_s:g} s (capture={choice.kind})")
        ended.wait(duration_s)
        capture.stop()
        thread.join()
        if failures:
            raise ConfigInvalid(f"the record {path} could not be kept: {failures[0]}") from failures[0]
        capture.drain()
        _mark_time(engine)
        writer.append(engine.take().records)
    snapshot = capture.snapshot(None, 0)
    unknown = NETWORK if "remotes" in snapshot.unknown else frozenset()
    if choice.kind in {"bcc", "netlink", "poll"}:
        unknown |= {"temporary"}
    losses = engine.losses()
    lost = {stage: max(count, snapshot.lost.get(stage, 0)) for stage, count in losses.items()}
    return Run(path=path, capture=choice.kind, unknown=unknown, lost=lost)


def _mark_time(engine: Engine) -> None:
    """The record spans the time that was watched, whatever happened in it."""
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    engine.ingest(records.clock_record(time_ns=boot_ns, wall_ns=time.time_ns() - boot_ns))
