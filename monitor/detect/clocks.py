"""Which clock judges a behavior of a profile on this device: the event, the window, or none; and why.

Owns which behaviors say the same as an expectation of a watch. Refuses to know files, captures and how a behavior is
judged: the engine judges expectations, `monitor.detect.evaluator` windows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor.detect.metrics import CPU_USAGE, EVENTS_LOST, FIELDS
from monitor.detect.profile import DEVICE_SIDE, Behavior
from monitor.expect import MAX_EXECUTABLES, MAX_PORTS, MAX_PREFIXES, ImpossibleValue, executables, ports
from monitor.watch import MAX_PID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from monitor.detect.profile import Profile
    from monitor.watch import Watch

Clock = Literal["instant", "window", "none"]
Key = tuple[str, str]
"""Name of a watch, key of its `expect`."""

MAX_PORT: Final = 65_535


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A behavior of the profile and its clock."""

    name: str
    clock: Clock
    why: str
    """Of the window clock, why not at the event; of none, why not here; of the instant clock, by which expectation."""
    behavior: Behavior | None = None
    """None: one device cannot judge it."""
    watch: str = ""
    """The watch that its metric is about; "": none."""
    key: str = ""
    """Of the instant clock: the key of the watch's `expect` that stands for it."""
    added: bool = False
    """The watch does not expect that by itself."""


def owner(metric: str, watches: Iterable[str]) -> tuple[str, str]:
    """The metric of FIELDS and the name of the watch that a custom metric is made of; "" for what it is not."""
    for what in FIELDS:
        name = metric.removeprefix(f"{what}_")
        if name != metric and name in watches:
            return what, name
    return "", ""


def clocks(
    profile: Profile, watches: Sequence[Watch], *, unknown: Collection[str] = (), cpu_usage: bool = False
) -> tuple[Judged, ...]:
    """Give every behavior of the profile its clock, in order; last those that cannot be judged on one device.

    `unknown`: fields of WatchSnapshot that this capture does not know. `cpu_usage`: it is reported.
    """
    expected: dict[Key, object] = {
        (watch.name, key): value
        for watch in watches
        for key, value in msgspec.structs.asdict(watch.expect).items()
        if value is not None
    }
    # Names widen what is expected: no behavior says the same.
    expected |= {(watch.name, "destinations"): None for watch in watches if watch.expect.destination_names is not None}
    own = set(expected)
    judged = [
        _clock(behavior, expected, own, {watch.name for watch in watches}, frozenset(unknown), cpu_usage=cpu_usage)
        for behavior in profile.behaviors
    ]
    return (*judged, *(Judged(name=name, clock="none", why=why) for name, why in profile.elsewhere))


def expecting(watches: Sequence[Watch], judged: Sequence[Judged]) -> tuple[Watch, ...]:
    """The watches, with what the behaviors of the instant clock add to their expectations."""
    added: dict[str, dict[str, object]] = {}
    for one in judged:
        if one.added and one.behavior is not None:
            said = instant(one.behavior, owner(one.behavior.metric, {one.watch})[0])
            if not isinstance(said, str):
                added.setdefault(one.watch, {})[one.key] = said[1]
    return tuple(
        msgspec.structs.replace(watch, expect=msgspec.structs.replace(watch.expect, **added.get(watch.name, {})))
        for watch in watches
    )


def instant(behavior: Behavior, what: str) -> tuple[str, object] | str:
    """The key of `expect` and its value that say the same at the event; else why none does."""
    if what not in _SAME:
        return "its metric is one of a whole window"
    if behavior.suppressed:
        return "its alerts are suppressed, and those of the event are not"
    if (behavior.to_alarm, behavior.to_clear) != (1, 1):
        return "it asks for consecutive datapoints"
    return _SAME[what](behavior)


def _clock(  # noqa: PLR0913 - what it depends on
    behavior: Behavior,
    expected: dict[Key, object],
    own: set[Key],
    names: set[str],
    unknown: frozenset[str],
    *,
    cpu_usage: bool,
) -> Judged:
    what, watch = owner(behavior.metric, names)
    missing = _missing(behavior.metric, what, unknown, cpu_usage=cpu_usage)
    if missing:
        return Judged(name=behavior.name, clock="none", why=missing, behavior=behavior, watch=watch)
    said = instant(behavior, what)
    if isinstance(said, str):
        return Judged(name=behavior.name, clock="window", why=said, behavior=behavior, watch=watch)
    key, value = said
    same = f"as expect.{key} of watch {watch}"
    if (watch, key) not in expected:
        expected[watch, key] = value
        return Judged(
            name=behavior.name, clock="instant", why=same, behavior=behavior, watch=watch, key=key, added=True
        )
    if (watch, key) in own and expected[watch, key] == value:
        return Judged(name=behavior.name, clock="instant", why=same, behavior=behavior, watch=watch, key=key)
    other = f"expect.{key} of watch {watch} is taken"
    return Judged(name=behavior.name, clock="window", why=other, behavior=behavior, watch=watch)


def _missing(metric: str, what: str, unknown: frozenset[str], *, cpu_usage: bool) -> str:
    """Why no window has the metric; "": it has."""
    if what:
        return "" if unknown.isdisjoint(FIELDS[what]) else f"{metric} is not known with this capture and configuration"
    if metric in DEVICE_SIDE or metric == EVENTS_LOST:
        return ""
    if metric == CPU_USAGE:
        return "" if cpu_usage else f"{metric} needs report.cpu_usage = true"
    like = [known for known in FIELDS if metric.startswith(f"{known}_")]
    if like:
        return f"no watch is called {metric.removeprefix(f'{max(like, key=len)}_')}"
    return f"{metric} is no metric of kinwatch"


def _most(behavior: Behavior) -> int | None:
    """The most that a number may be; None: it has no such limit, or one that no watch can have."""
    if behavior.number is None or not behavior.operator.startswith("less-than"):
        return None
    strict = behavior.operator == "less-than"
    most = math.ceil(behavior.number) - 1 if strict else math.floor(behavior.number)
    return most if 0 <= most <= MAX_PID else None


def _of_all(behavior: Behavior) -> tuple[str, object] | str:
    most = _most(behavior)
    if most is None:
        return "it is no limit on descendants"
    # Two that come one after the other are two of the window and one at any moment; only of none it is the same.
    return ("child_processes", 0) if most == 0 else "it counts all of a window, the event those that live at once"


def _of_peak(behavior: Behavior) -> tuple[str, object] | str:
    most = _most(behavior)
    return "it is no limit on descendants" if most is None else ("child_processes", most)


def _of_destinations(behavior: Behavior) -> tuple[str, object] | str:
    if behavior.operator != "in-cidr-set":
        return "it does not say which destinations are expected"
    if len(behavior.texts) > MAX_PREFIXES:
        return f"it names more than {MAX_PREFIXES} networks"
    return "destinations", tuple(dict.fromkeys(behavior.texts))


def _of_ports(behavior: Behavior) -> tuple[str, object] | str:
    if behavior.operator != "in-set" or behavior.texts:
        return "it does not say which ports are expected"
    found = {int(number) for number in behavior.numbers if number == int(number) and 1 <= number <= MAX_PORT}
    if len(found) > MAX_PORTS:
        return f"it names more than {MAX_PORTS} ports"
    return "listening_ports", ports(found)


def _of_executables(behavior: Behavior) -> tuple[str, object] | str:
    if behavior.operator != "in-set" or behavior.numbers:
        return "it does not say which executables are expected"
    if len(behavior.texts) > MAX_EXECUTABLES:
        return f"it names more than {MAX_EXECUTABLES} executables"
    try:
        return "executables", executables(behavior.texts)
    except ImpossibleValue as wrong:
        return f"its texts are no executables: {wrong.what}"


_SAME: Final[dict[str, Callable[[Behavior], tuple[str, object] | str]]] = {
    "num_child_procs": _of_all,
    "child_procs_peak": _of_peak,
    "child_exes": _of_executables,
    "destination_ips": _of_destinations,
    "listening_ports": _of_ports,
}
"""By metric: which behaviors over it say the same as a key of `expect`."""
