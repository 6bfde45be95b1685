"""What is normal, as AWS writes it, and which metrics of a window are not.

Owns the expansion of an expectation into a behavior and the judgement of numbers. Refuses to know configuration files,
clocks and how an alarm is told.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from monitor.detect.metrics import Metric

Comparison = Literal["less-than", "less-than-equals", "greater-than", "greater-than-equals"]

_COMPARE: Final[dict[Comparison, Callable[[float, float], bool]]] = {
    "less-than": operator.lt,
    "less-than-equals": operator.le,
    "greater-than": operator.gt,
    "greater-than-equals": operator.ge,
}


class Behavior(msgspec.Struct, frozen=True, kw_only=True):
    """Normal is: `metric` `comparison_operator` `number`. Everything else is a violation."""

    name: str
    watch: str
    metric: str
    comparison_operator: Comparison
    number: float

    def aws_form(self) -> dict[str, Any]:
        """Write it as a behavior of CreateSecurityProfile, alarming on and cleared by a single datapoint."""
        return {
            "name": f"{self.name}_{self.watch}",
            "metric": self.metric,
            "criteria": {
                "comparisonOperator": self.comparison_operator,
                "value": {"number": self.number},
                "consecutiveDatapointsToAlarm": 1,
                "consecutiveDatapointsToClear": 1,
            },
        }


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A behavior and the value that broke it."""

    behavior: Behavior
    value: float


def expected(watch: str, child_processes: int | None) -> tuple[Behavior, ...]:
    """Behaviors that `expect` of a watch stands for; child_processes None: nothing is expected."""
    if child_processes is None:
        return ()
    return (
        Behavior(
            name="child_processes",
            watch=watch,
            metric=f"num_child_procs_{watch}",
            comparison_operator="less-than-equals",
            number=child_processes,
        ),
    )


def violated(behaviors: Iterable[Behavior], metrics: Iterable[Metric]) -> list[Violation]:
    """Violations among the metrics of one window, in the order of the behaviors. An absent metric is not judged."""
    values = {metric.name: metric.value for metric in metrics if metric.kind == "number"}
    found = []
    for behavior in behaviors:
        value = values.get(behavior.metric)
        if isinstance(value, int | float) and not _COMPARE[behavior.comparison_operator](value, behavior.number):
            found.append(Violation(behavior=behavior, value=value))
    return found
