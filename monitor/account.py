"""What a run says of itself: when it is ready, and to whoever asks for its status.

Owns the words, and what of the counters is shown. Refuses to say anything: it returns lines and keys.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor import __version__
from monitor.capture.core import CoreCapture
from monitor.config import expectation_notes
from monitor.detect.metrics import lower_bound_metrics
from monitor.detect.snapshot import NETWORK, destinations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.capture import LiveCapture
    from monitor.capture.choose import Choice
    from monitor.config import Config
    from monitor.detect.snapshot import Snapshot
    from monitor.judging.plan import Plan

_HIDDEN: Final = {"name", "window_peak", "exes", "exes_missed", "remotes", "remotes_missed", "listening_missed"}
"""Of a watch's counters."""


def ready(capture: LiveCapture, choice: Choice, config: Config, plan: Plan, *, waits: bool) -> Iterator[str]:
    """Lines for the start: what is watched, by what, what of it cannot be. `waits`: a watch may find its own later."""
    snapshot = capture.snapshot(None, 0)
    roots = sum(watch.roots for watch in snapshot.watches)
    took_ms = (time.clock_gettime(time.CLOCK_BOOTTIME) - _started_boot_s()) * 1000
    origin = capture.origin if isinstance(capture, CoreCapture) else "new"
    extra = "" if origin == "new" else f", {origin}"
    yield f"watching (capture={capture.kind}, roots={roots}{extra}, ready in {took_ms:.0f} ms)"
    if choice.kind != "core":
        yield choice.reason
    judged = any(watch.expect.somewhere or watch.expect.listening_ports is not None for watch in config.watches)
    if judged and not {"remotes", "listening_ports"}.isdisjoint(snapshot.unknown):
        extent = "are not judged" if snapshot.unknown >= NETWORK else "are judged in part"
        yield f"expected destinations and ports {extent}: 'kinwatch doctor' says why"
    elif "wire_bytes_in" in snapshot.unknown and any(watch.expect.destination_names for watch in config.watches):
        yield "expected destination names are not known, so what only they allow alarms: 'kinwatch doctor' says why"
    yield from expectation_notes(config)
    yield from plan.notes()
    yield from plan.unreported(snapshot.unknown)
    for watch in snapshot.watches:
        if not watch.roots and waits:
            yield f"watch {watch.name} matches nothing yet"


def status(capture: LiveCapture, snapshot: Snapshot, choice: Choice, since_ns: int) -> dict[str, object]:
    """What the capture has to tell of a status. `since_ns`: since the epoch, when its counters began."""
    counters = [
        {"name": watch.name}
        | {
            field: getattr(watch, field)
            for field in watch.__struct_fields__
            if field not in _HIDDEN | snapshot.unknown and getattr(watch, field) is not None
        }
        | ({} if "remotes" in snapshot.unknown else destinations(watch))
        for watch in snapshot.watches
    ]
    told: dict[str, object] = {
        "capture": capture.kind,
        "reason": choice.reason,
        "since": datetime.fromtimestamp(since_ns / 1e9, UTC).isoformat().replace("+00:00", "Z"),
        "pid": os.getpid(),
        "version": __version__,
        "watches": counters,
        "lost": snapshot.lost,
        "lower_bounds": sorted(snapshot.lower_bounds - _HIDDEN),
        "lower_bound_metrics": lower_bound_metrics(snapshot),
        "unknown": sorted(snapshot.unknown - _HIDDEN),
    }
    if isinstance(capture, CoreCapture):
        told |= {"origin": capture.origin, "kernel": capture.facts()}
        told["enforcement"] = capture.enforcement_state()
        told["network"] = {name: reason or "live" for name, reason in capture.net_hooks().items()}
    return told


def _started_boot_s() -> float:
    """When this process started, seconds since boot (proc(5): starttime in clock ticks)."""
    text = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
