"""What is normal, as AWS writes it, and which metrics of a window are not.

Owns the expansion of an expectation into behaviors of a profile. Refuses to know configuration files, clocks, how a
value is judged and how an alarm is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitor.detect.evaluator import Evaluator
from monitor.detect.profile import Behavior, Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from monitor.detect.evaluator import Verdict
    from monitor.detect.metrics import Metric


def expected(
    watch: str,
    child_processes: int | None,
    destinations: tuple[str, ...] | None = None,
    listening_ports: tuple[int, ...] | None = None,
) -> tuple[Behavior, ...]:
    """Behaviors that `expect` of a watch stands for; None: nothing of that kind is expected."""
    kinds: tuple[tuple[object, str, str, dict[str, Any]], ...] = (
        (
            child_processes,
            "child_processes",
            "num_child_procs",
            {"operator": "less-than-equals", "number": child_processes},
        ),
        (destinations, "destinations", "destination_ips", {"operator": "in-cidr-set", "texts": destinations}),
        (listening_ports, "listening_ports", "listening_ports", {"operator": "in-set", "numbers": listening_ports}),
    )
    return tuple(
        Behavior(name=f"{name}_{watch}", metric=f"{metric}_{watch}", **criteria)
        for value, name, metric, criteria in kinds
        if value is not None
    )


def aws_form(behavior: Behavior) -> dict[str, Any]:
    """Write it as a behavior of CreateSecurityProfile, alarming on and cleared by a single datapoint."""
    datapoints = {"consecutiveDatapointsToAlarm": 1, "consecutiveDatapointsToClear": 1}
    return {"name": behavior.name, "metric": behavior.metric, "criteria": behavior.criteria() | datapoints}


def violated(behaviors: Sequence[Behavior], metrics: Iterable[Metric]) -> list[Verdict]:
    """Violations among the metrics of one window, in the order of the behaviors. An absent metric is not judged."""
    judge = Evaluator(Profile(name="", behaviors=tuple(behaviors), elsewhere=()))
    return judge.observe({metric.name: metric.value for metric in metrics}, 0.0)
