"""What is normal, as AWS writes it, and which metrics of a window are not.

Owns the expansion of an expectation into behaviors. Refuses to know configuration files, clocks, how a value is judged
and how an alarm is told.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from monitor.detect import profile

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
    """Normal is: `metric` `comparison_operator` the one of `number`, `numbers` and `cidrs` that goes with it."""

    name: str
    watch: str
    metric: str
    comparison_operator: Comparison | Literal["in-cidr-set", "in-set"]
    number: float | None = None
    numbers: tuple[int, ...] = ()
    """The set of in-set."""
    cidrs: tuple[str, ...] = ()
    """The networks of in-cidr-set."""

    def aws_form(self) -> dict[str, Any]:
        """Write it as a behavior of CreateSecurityProfile, alarming on and cleared by a single datapoint."""
        judged = self.judged()
        return {
            "name": judged.name,
            "metric": judged.metric,
            "criteria": judged.criteria() | {"consecutiveDatapointsToAlarm": 1, "consecutiveDatapointsToClear": 1},
        }

    def judged(self) -> profile.Behavior:
        """As a behavior of a profile, which one device can judge."""
        return profile.Behavior(
            name=f"{self.name}_{self.watch}",
            metric=self.metric,
            operator=self.comparison_operator,
            number=self.number,
            numbers=self.numbers,
            texts=self.cidrs,
        )


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A behavior and the value that broke it."""

    behavior: Behavior
    value: float | tuple[float | str, ...]


def expected(
    watch: str,
    child_processes: int | None,
    destinations: tuple[str, ...] | None = None,
    listening_ports: tuple[int, ...] | None = None,
) -> tuple[Behavior, ...]:
    """Behaviors that `expect` of a watch stands for; None: nothing of that kind is expected."""
    found = []
    if child_processes is not None:
        found.append(
            Behavior(
                name="child_processes",
                watch=watch,
                metric=f"num_child_procs_{watch}",
                comparison_operator="less-than-equals",
                number=child_processes,
            )
        )
    if destinations is not None:
        found.append(
            Behavior(
                name="destinations",
                watch=watch,
                metric=f"destination_ips_{watch}",
                comparison_operator="in-cidr-set",
                cidrs=destinations,
            )
        )
    if listening_ports is not None:
        found.append(
            Behavior(
                name="listening_ports",
                watch=watch,
                metric=f"listening_ports_{watch}",
                comparison_operator="in-set",
                numbers=listening_ports,
            )
        )
    return tuple(found)


def violated(behaviors: Iterable[Behavior], metrics: Iterable[Metric]) -> list[Violation]:
    """Violations among the metrics of one window, in the order of the behaviors. An absent metric is not judged."""
    from monitor.detect.evaluator import Evaluator  # noqa: PLC0415 - it knows this module's comparisons

    by_name = {behavior.judged().name: behavior for behavior in behaviors}
    judge = Evaluator(
        profile.Profile(name="", behaviors=tuple(behavior.judged() for behavior in by_name.values()), elsewhere=())
    )
    verdicts = judge.observe({metric.name: metric.value for metric in metrics}, 0.0)
    return [Violation(behavior=by_name[verdict.behavior.name], value=verdict.value) for verdict in verdicts]
