"""What is normal, as AWS writes it, and which metrics of a window are not.

Owns the expansion of an expectation into behaviors of a profile. Refuses to know configuration files, clocks, how a
value is judged and how an alarm is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitor.detect.evaluator import Evaluator
from monitor.detect.profile import Behavior, Profile
from monitor.expect import networks_alone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from monitor.detect.evaluator import Verdict
    from monitor.detect.metrics import Metric
    from monitor.expect import Expect


def expected(watch: str, expect: Expect) -> tuple[Behavior, ...]:
    """Behaviors that `expect` of a watch stands for, of those kinds that AWS can express; see also `rules`."""
    kinds: tuple[tuple[object, str, str, dict[str, Any]], ...] = (
        (
            expect.child_processes,
            "child_processes",
            # So many at once are the peak of a window; only of none is it the same as so many in all of it.
            "child_procs_peak" if expect.child_processes else "num_child_procs",
            {"operator": "less-than-equals", "number": expect.child_processes},
        ),
        (expect.executables, "executables", "child_exes", {"operator": "in-set", "texts": expect.executables}),
        (
            expect.destinations if networks_alone(expect) else None,
            "destinations",
            "destination_ips",
            {"operator": "in-cidr-set", "texts": expect.destinations},
        ),
        (
            expect.listening_ports,
            "listening_ports",
            "listening_ports",
            {"operator": "in-set", "numbers": expect.listening_ports},
        ),
    )
    return tuple(
        Behavior(name=f"{name}_{watch}", metric=f"{metric}_{watch}", **criteria)
        for value, name, metric, criteria in kinds
        if value is not None
    )


def rules(watch: str, expect: Expect) -> tuple[dict[str, Any], ...]:
    """What `expect` of a watch says that no behavior can express: it is judged at the event alone."""
    values: dict[str, Any] = {
        "destinations": None if networks_alone(expect) else expect.destinations,
        "destination_names": expect.destination_names,
        "edges": expect.edges,
        "depth": expect.depth,
        "forks_per_minute": expect.forks_per_minute,
        "uids": expect.uids,
        **{name: False for name in ("memfd", "deleted", "temporary") if getattr(expect, name) is False},
    }
    return tuple({"watch": watch, "rule": name, "value": value} for name, value in values.items() if value is not None)


def aws_form(behavior: Behavior) -> dict[str, Any]:
    """Write it as a behavior of CreateSecurityProfile, alarming on and cleared by a single datapoint."""
    datapoints = {"consecutiveDatapointsToAlarm": 1, "consecutiveDatapointsToClear": 1}
    return {"name": behavior.name, "metric": behavior.metric, "criteria": behavior.criteria() | datapoints}


def violated(behaviors: Sequence[Behavior], metrics: Iterable[Metric]) -> list[Verdict]:
    """Violations among the metrics of one window, in the order of the behaviors. An absent metric is not judged."""
    judge = Evaluator(Profile(name="", behaviors=tuple(behaviors), elsewhere=()))
    return judge.observe({metric.name: metric.value for metric in metrics}, 0.0)
