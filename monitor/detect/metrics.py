"""The metrics of a window, from two snapshots: names, types, arithmetic.

Owns what each metric of a watch means. Refuses to know clocks, captures, documents and thresholds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.detect.snapshot import TRAFFIC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.detect.snapshot import Snapshot, WatchSnapshot

MetricKind = Literal["number", "number-list", "string-list", "ip-address-list"]
"""The metric types of the AWS API."""

NAME: Final = re.compile(r"(?!aws:)[a-zA-Z0-9:_-]{1,128}\Z")
"""What AWS allows as the name of a custom metric (CreateCustomMetric, metricName)."""

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "num_child_procs": ("alive", "spawned", "adopted"),
    "child_procs_alive": ("alive",),
    "child_procs_peak": ("window_peak",),
    "child_procs_spawned": ("spawned",),
    "child_execs": ("execs",),
    "child_exes": ("exes",),
    "roots": ("roots",),
    "enforced": ("enforced",),
    "would_enforce": ("would_enforce",),
    "bytes_in": ("bytes_in",),
    "bytes_out": ("bytes_out",),
    "wire_bytes_in": ("wire_bytes_in",),
    "wire_bytes_out": ("wire_bytes_out",),
    "packets_in": ("packets_in",),
    "packets_out": ("packets_out",),
    "connections_out": ("connections_out",),
    "connections_in": ("connections_in",),
    "connections_failed": ("connections_failed",),
    "listening_ports": ("listening_ports",),
    "destination_ports": ("remotes",),
    "destination_ips": ("remotes",),
}
"""Each metric of a watch (its name is `<this>_<watch>`) and the fields of WatchSnapshot it is made of."""

CPU_USAGE: Final = "cpu_usage"
"""How busy the processors of the device were, percent of their time (detect/device.py)."""

_MISSED: Final = {
    "child_exes": "exes_missed",
    "listening_ports": "listening_missed",
    "destination_ports": "remotes_missed",
    "destination_ips": "remotes_missed",
}
"""What counts the entries that a bounded list has no room for."""

_STATES: Final = frozenset({"child_procs_alive", "roots", CPU_USAGE})
_PEAKS: Final = frozenset({"child_procs_peak"})

EVENTS_LOST: Final = "events_lost"
"""Belongs to no watch: details lost in the window, all stages."""


class Metric(msgspec.Struct, frozen=True):
    """A named, typed value. Raises ValueError for a name AWS would refuse."""

    name: str
    kind: MetricKind
    value: float | tuple[float | str, ...]

    def __post_init__(self) -> None:
        """Check the name, once, where it is born."""
        if not NAME.match(self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a metric")


def window_metrics(baseline: Snapshot | None, now: Snapshot) -> list[Metric]:
    """Metrics of the window from `baseline` (None: since the beginning) to `now`, in the order of the watches.

    What `now` or `baseline` marks unknown is left out, as is what enforcement did where there is none; lower bounds are
    sent, `lower_bound_metrics` names them. A watch that the baseline does not have, or whose counters began anew since,
    counts from zero. FIELDS says where each number comes from.
    """
    before = {watch.name: watch for watch in baseline.watches} if baseline else {}
    unknown = now.unknown | (baseline.unknown if baseline else frozenset())
    metrics: list[Metric] = []
    for watch in now.watches:
        earlier = before.get(watch.name)
        if earlier is not None and _began_anew(earlier, watch):
            earlier = None
        metrics += [
            metric
            for what, metric in zip(FIELDS, _watch_metrics(earlier, watch, unknown), strict=True)
            if unknown.isdisjoint(FIELDS[what]) and all(getattr(watch, field) is not None for field in FIELDS[what])
        ]
    if now.watches:  # who watches nobody loses nothing
        metrics.append(Metric(EVENTS_LOST, "number", _lost_since(baseline.lost if baseline else {}, now.lost)))
    return metrics


def merged(earlier: Sequence[Metric], now: Sequence[Metric]) -> list[Metric]:
    """Join the metrics of a window that was never accepted with those of the window of another life of the capture.

    Counts add up, peaks take the higher, states the later one, lists the union; a metric of only one side stays. Of the
    descendants of the second window those already alive at its begin were counted in the first, as far as it ended with
    that many.
    """
    before = {metric.name: metric for metric in earlier}
    joined = [_joined(before.pop(metric.name, None), metric, earlier) for metric in now]
    return joined + [metric for metric in earlier if metric.name in before]


def _joined(earlier: Metric | None, now: Metric, all_earlier: Sequence[Metric]) -> Metric:
    if earlier is None or earlier.kind != now.kind:
        return now
    if isinstance(earlier.value, tuple) and isinstance(now.value, tuple):
        return Metric(now.name, now.kind, tuple(dict.fromkeys((*earlier.value, *now.value))))
    what = next((name for name in FIELDS if now.name.startswith(f"{name}_")), now.name)
    if isinstance(earlier.value, tuple) or isinstance(now.value, tuple) or what in _STATES:
        return now
    if what in _PEAKS:
        return Metric(now.name, now.kind, max(earlier.value, now.value))
    counted_twice: float = 0
    if what == "num_child_procs":
        alive_name = now.name.replace(what, "child_procs_alive", 1)
        alive = next((metric.value for metric in all_earlier if metric.name == alive_name), 0)
        counted_twice = min(alive if isinstance(alive, int | float) else 0, now.value)
    return Metric(now.name, now.kind, earlier.value + now.value - counted_twice)


def lower_bound_metrics(snapshot: Snapshot) -> list[str]:
    """Names of the metrics that may be too low in a window that ends with `snapshot`."""
    return [
        f"{what}_{watch.name}"
        for watch in snapshot.watches
        for what, fields in FIELDS.items()
        if snapshot.unknown.isdisjoint(fields)
        and all(getattr(watch, field) is not None for field in fields)
        and (not snapshot.lower_bounds.isdisjoint(fields) or (what in _MISSED and getattr(watch, _MISSED[what])))
    ]


def _watch_metrics(earlier: WatchSnapshot | None, now: WatchSnapshot, unknown: frozenset[str]) -> tuple[Metric, ...]:
    spawned = now.spawned - (earlier.spawned if earlier else 0)
    adopted = now.adopted - (earlier.adopted if earlier else 0)
    execs = now.execs - (earlier.execs if earlier else 0)
    alive_then = earlier.alive if earlier else 0
    return (
        Metric(f"num_child_procs_{now.name}", "number", alive_then + spawned + adopted),
        Metric(f"child_procs_alive_{now.name}", "number", now.alive),
        Metric(f"child_procs_peak_{now.name}", "number", now.window_peak),
        Metric(f"child_procs_spawned_{now.name}", "number", spawned),
        Metric(f"child_execs_{now.name}", "number", execs),
        Metric(f"child_exes_{now.name}", "string-list", now.exes),
        Metric(f"roots_{now.name}", "number", now.roots),
        *(
            Metric(f"{what}_{now.name}", "number", (getattr(now, what) or 0) - (getattr(earlier, what, None) or 0))
            for what in ("enforced", "would_enforce")
        ),
        *_network_metrics(earlier, now, unknown),
    )


def _network_metrics(earlier: WatchSnapshot | None, now: WatchSnapshot, unknown: frozenset[str]) -> list[Metric]:
    """The hooks of the network may begin anew by themselves; a known counter that fell says so for all of them."""
    known = [field for field in TRAFFIC if field not in unknown]
    if earlier is not None and any(getattr(now, field) < getattr(earlier, field) for field in known):
        earlier = None
    grown = {field: getattr(now, field) - (getattr(earlier, field) if earlier else 0) for field in TRAFFIC}
    destinations = [remote for remote in now.remotes if not remote.incoming]
    return [
        *(Metric(f"{field}_{now.name}", "number", grown[field]) for field in TRAFFIC if field in FIELDS),
        Metric(f"listening_ports_{now.name}", "number-list", now.listening_ports),
        Metric(
            f"destination_ports_{now.name}", "number-list", tuple(dict.fromkeys(remote.port for remote in destinations))
        ),
        Metric(
            f"destination_ips_{now.name}",
            "ip-address-list",
            tuple(dict.fromkeys(remote.address for remote in destinations)),
        ),
    ]


def _began_anew(earlier: WatchSnapshot, now: WatchSnapshot) -> bool:
    """Counters only grow, so one that fell is a new watch of the same name."""
    return any(
        getattr(now, field) < getattr(earlier, field)
        for field in ("spawned", "adopted", "execs", "exits", "root_starts", "root_exits")
    )


def _lost_since(earlier: dict[str, int], now: dict[str, int]) -> int:
    deltas = ((count, count - earlier.get(stage, 0)) for stage, count in now.items())
    return sum(delta if delta >= 0 else count for count, delta in deltas)
