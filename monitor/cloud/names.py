"""The names and AWS types of the custom metrics that a configuration can report.

Owns the question which metrics can be in a report at all. Refuses to know their meaning: detect.metrics is asked, with
a moment at which everything was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.detect.metrics import CPU_USAGE, window_metrics
from monitor.detect.snapshot import Snapshot, WatchSnapshot
from monitor.judging.plan import unreported_fields

if TYPE_CHECKING:
    from monitor.config import Config
    from monitor.detect.metrics import MetricKind
    from monitor.watch import Watch


def reported(config: Config) -> dict[str, MetricKind]:
    """Type of each custom metric that reports of this configuration may hold, by its name.

    What the capture of a device turns out not to know stands here all the same; it is never reported.
    """
    everything = Snapshot(
        wall_ns=0,
        boot_ns=0,
        watches=tuple(_seen(watch) for watch in config.watches),
        lost={},
        unknown=unreported_fields(config),
    )
    names: dict[str, MetricKind] = {metric.name: metric.kind for metric in window_metrics(None, everything)}
    if config.report.cpu_usage:
        names[CPU_USAGE] = "number"
    return names


def _seen(watch: Watch) -> WatchSnapshot:
    """Counters of a watch, all of them known."""
    acted = None if watch.enforce == "off" else 0
    return WatchSnapshot(
        name=watch.name,
        roots=0,
        alive=0,
        peak=0,
        spawned=0,
        adopted=0,
        execs=0,
        exits=0,
        root_starts=0,
        root_exits=0,
        enforced=acted,
        would_enforce=acted,
        window_peak=0,
    )
