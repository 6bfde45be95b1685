"""Who may have broken a behavior of numbers of processes: the watch's descendants that live when its window ends.

Owns the choice among live kin. Refuses to know windows and verdicts. A process that came and went within the window is
not among them: of it the log has its own lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from monitor.detect.clocks import owner
from monitor.engine.lines import Ancestor
from monitor.judging.kin import kin_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from monitor.judging.kin import Kin

SHOWN: Final = 16
"""Most process ids of an alarm."""
LINEAGE_SHOWN: Final = 64
"""Most processes in a lineage, as of the engine's alarms; the nearest ancestors are kept."""


class Culprits(NamedTuple):
    """Of an alarm."""

    process_ids: tuple[str, ...] = ()
    """The youngest first, at most SHOWN."""
    lineage: tuple[Ancestor, ...] = ()
    """From the root down to the youngest."""


def counted_watch(metric: str, watches: Collection[str]) -> str:
    """The watch whose descendants a metric counts; "" for other metrics."""
    what, watch = owner(metric, watches)
    return watch if what == "num_child_procs" or what.startswith("child_procs_") else ""


def culprits(tree: bytes, watch: str) -> Culprits:
    """Choose from live kin. `tree`: as Engine.tree. Nobody, when no descendant lives any more."""
    kin: dict[str, Kin] = {}
    descendants = []
    for one, place in kin_of(tree, watch):
        kin[one.process_id] = one
        if not place.root:
            descendants.append(one)
    if not descendants:
        return Culprits()
    # Many start within one tick; the engine names parents before children, so the later line is the younger one.
    descendants.reverse()
    youngest = sorted(descendants, key=lambda one: -one.started)[:SHOWN]
    return Culprits(tuple(one.process_id for one in youngest), _lineage(youngest[0], watch, kin))


def _lineage(process: Kin, watch: str, kin: dict[str, Kin]) -> tuple[Ancestor, ...]:
    """From the root down; ancestors that ended are missing, and a root that did is told by its id alone."""
    root = next((place.root_process_id for place in process.watches if place.watch == watch), "")
    found: list[Ancestor] = []
    at: Kin | None = process
    while at is not None and at.process_id != root and len(found) < LINEAGE_SHOWN - 1:
        found.append(_ancestor(at))
        at = kin.get(at.parent_process_id)
    if root in kin:
        found.append(_ancestor(kin[root]))
    elif root:
        found.append(Ancestor(process_id=root, pid=int(root.partition("-")[0])))
    return tuple(reversed(found))


def _ancestor(one: Kin) -> Ancestor:
    return Ancestor(process_id=one.process_id, pid=one.pid, comm=one.comm, exe=one.exe)
