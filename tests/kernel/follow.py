"""Everything a core capture tells and counts while something happens: the capture in this process, unpinned."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from monitor.capture.core import CoreCapture
from monitor.engine import Engine
from monitor.engine.lines import decode
from monitor.schema import Capture as CaptureTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.detect.snapshot import WatchSnapshot
    from monitor.engine.lines import Line
    from monitor.watch import Watch


def poll(capture: CoreCapture, engine: Engine, lines: list[bytes]) -> None:
    """The capture thread: lines until the capture is stopped."""
    while capture.poll():
        lines += engine.take().lines.splitlines()
        capture.commit()


def follow(watches: Sequence[Watch], act: Callable[[], object]) -> tuple[list[Line], WatchSnapshot]:
    """Lines, and the counters of the first watch, from before `act()` to its end. Asserts that nothing was lost."""
    lines: list[bytes] = []
    with Engine() as engine:
        capture = CoreCapture(engine, watches, CaptureTable())
        try:
            capture.start()
            thread = threading.Thread(target=poll, args=(capture, engine, lines))
            thread.start()
            try:
                act()
            finally:
                capture.stop()
                thread.join()
            capture.drain()
            lines += engine.take().lines.splitlines()
            snapshot = capture.snapshot(None, 0)
        finally:
            capture.close(keep=False)
    assert snapshot.lost == dict.fromkeys(snapshot.lost, 0)
    return [decode(line) for line in lines], snapshot.watches[0]
