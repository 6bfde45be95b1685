"""What kinwatch replaces: psutil, asked again and again for the children of one application.

polling.py NAME PERIOD_MS     until SIGINT or SIGTERM; then prints how many distinct children it saw

It is given the best case: it looks for the application by name only until it has found it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading

import psutil


def main() -> None:
    """Poll until told to end."""
    name, period_s = sys.argv[1], int(sys.argv[2]) / 1000
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    root: psutil.Process | None = None
    seen: set[tuple[int, float]] = set()
    while not ended.wait(period_s):
        if root is None:
            root = next((process for process in psutil.process_iter(["name"]) if process.info["name"] == name), None)
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in root.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    seen.add((child.pid, child.create_time()))
    print(len(seen))


if __name__ == "__main__":
    main()
