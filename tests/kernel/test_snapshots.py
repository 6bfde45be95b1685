"""Windows are begun by their own reader alone, however many others look at the counters meanwhile."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

from monitor.capture.core import CoreCapture
from monitor.engine import Engine
from monitor.schema import Capture as CaptureTable
from monitor.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

WINDOWS = 150
CHILDREN = 3


def test_a_window_keeps_its_peak_while_others_look(tmp_path: Path) -> None:
    """In each window three children live at once and are gone before its end; every window says three."""
    script = tmp_path / "peaks"
    script.write_text("#!/bin/sh\nwhile read word; do cat </dev/null | cat | cat; echo done; done\n")
    script.chmod(0o755)
    over = threading.Event()
    with Engine() as engine:
        capture = CoreCapture(engine, [Watch(name="app", kind="process", value="peaks")], CaptureTable())

        def look() -> None:
            while not over.is_set():
                capture.snapshot(None, 0)

        others = [threading.Thread(target=look) for _ in range(2)]
        try:
            capture.start()
            with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as app:
                assert app.stdin is not None
                assert app.stdout is not None
                capture.snapshot(1, 0)
                for other in others:
                    other.start()
                peaks = []
                for _ in range(WINDOWS):
                    app.stdin.write("go\n")
                    app.stdin.flush()
                    assert app.stdout.readline() == "done\n"
                    row = capture.snapshot(1, 0).watches[0]
                    assert row.alive == 0
                    peaks.append(row.window_peak)
                app.stdin.close()
        finally:
            over.set()
            for other in others:
                other.join()
            capture.close(keep=False)
    assert all(1 <= peak <= CHILDREN for peak in peaks)
