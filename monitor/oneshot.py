"""Verbs that end by themselves: one report, a replay, taking the pins away.

Owns their order of begin and end. Refuses to know the daemon: that is agent.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.capture import device
from monitor.capture.choose import decide
from monitor.capture.core import PINS, unpin
from monitor.capture.replay import ReplayCapture
from monitor.detect.behaviors import expected, violated
from monitor.engine import Engine
from monitor.judging.names import Names
from monitor.judging.plan import plan
from monitor.launch import only_daemon, open_capture
from monitor.sinks.stream import StreamSink
from monitor.sinks.table import log_sink
from monitor.sinks.text import say
from monitor.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.capture import LiveCapture
    from monitor.config import Config
    from monitor.options import ReportOptions

READER: Final = 1
"""The reader of the capture's windows; there is no other."""


def unenforced(config: Config) -> Config:
    """The same watches, of which nobody dies: whoever asks for a report asks for no more."""
    watches = tuple(msgspec.structs.replace(watch, enforce="off") for watch in config.watches)
    return msgspec.structs.replace(config, watches=watches)


def report(config: Config, options: ReportOptions) -> int:
    """Watch for a while, print one report. Returns 1 when it breaks an expectation."""
    choice = decide(config.capture)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Engine(config.capture.max_processes) as engine:
        choice, capture = open_capture(choice, engine, unenforced(config), pins="", fresh=False)
        try:
            capture.start()
            asked = config.report
            reader = device.DeviceReader(cpu=asked.cpu_usage, namespaces=asked.namespaces, say=say)
            window = Window(capture, engine, READER, reader.read)
            window.begin()
            alarms: list[int] = []
            thread = threading.Thread(target=_count_alarms, args=(capture, engine, alarms), name="capture")
            thread.start()
            ended.wait(options.duration_s)
            capture.stop()
            thread.join()
            capture.drain()
            alarms.append(engine.take().alarms)
            made = window.report(int(time.time()), options.names, options.format)
        finally:
            capture.close(keep=False)
    payload = made.payload + (b"\n" if options.format == "json" else b"")
    if StreamSink.stdout().write(payload):
        raise OSError("stdout is full")
    behaviors = [behavior for watch in config.watches for behavior in expected(watch.name, watch.expect)]
    return 1 if any(alarms) or violated(behaviors, made.metrics) else 0


def _count_alarms(capture: LiveCapture, engine: Engine, alarms: list[int]) -> None:
    """A report alone needs counters, not lines; of these only whether one is an alarm."""
    while capture.poll():
        alarms.append(engine.take().alarms)


def replay(config: Config | None, path: Path, form: str) -> int:
    """A record file through the engine, as lines. Returns 1 when there were alarms."""
    planned = plan(config) if config is not None else None
    expects = {watch.name: watch.expect for watch in planned.config.watches} if planned is not None else {}
    names = Names(planned.names if planned is not None else {})
    alarms = 0
    with Engine() as engine:
        capture = ReplayCapture(engine, path, expects)
        sink = log_sink("-", form, os.environ, watch_column=len(capture.watches) > 1)
        try:
            capture.start()
            try:
                while capture.poll():
                    batch = engine.take()
                    alarms += batch.alarms
                    sink.write(names.named(batch.lines))
            finally:
                batch = engine.take()
                alarms += batch.alarms
                sink.write(names.named(batch.lines))
        finally:
            sink.close()
            capture.close(keep=False)
    return 1 if alarms else 0


def unload() -> int:
    """Remove what a daemon left pinned. AlreadyRunning: a daemon is there and needs it."""
    with only_daemon():
        say(f"removed {PINS}" if unpin() else "nothing was pinned")
    return 0
