"""What is normal, as behaviors of a CloudFormation security profile: of the expectations and of the profile's file.

Owns their spelling and the limits of one profile. Refuses to know the rest of a template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from monitor.cloud.parts import Json, logical, ref
from monitor.defender.report import reduced
from monitor.detect.behaviors import expected
from monitor.detect.metrics import NAME
from monitor.detect.profile import MAX_BEHAVIORS, MAX_ELEMENTS
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from monitor.config import Config
    from monitor.detect.metrics import MetricKind
    from monitor.detect.profile import Behavior

METRIC: Final = "Metric"
"""Kind of the logical ids of custom metrics."""
METRIC_TYPE: Final = "AWS::IoT::CustomMetric"
_VALUES: Final[dict[MetricKind, str]] = {
    "number-list": "Numbers",
    "string-list": "Strings",
    "ip-address-list": "Cidrs",
}


def of_config(
    config: Config, kinds: Mapping[str, MetricKind], profile: Json, defined: Container[str]
) -> tuple[list[Json], list[str]]:
    """Return behaviors, those of the file first, and notes on what is not as one might think, a sentence each.

    `kinds`: of the metrics that are reported. `profile`: the file's object, found right; {}: there is none. `defined`:
    metrics of the same template. Raises ConfigInvalid: what the API would refuse.
    """
    notes: list[str] = []
    found: dict[str, Json] = {}
    for written in profile.get("behaviors", ()):
        behavior = _of_file(written, kinds, defined)
        name = written["name"]
        if " " in name:
            raise ConfigInvalid(f"{config.origin}: behavior {name!r}: the API takes no spaces in names; rename it")
        metric = written.get("metric", "")
        if NAME.match(metric) and metric not in kinds:
            notes.append(
                f"behavior {name} judges {metric}, which this configuration does not report: define it elsewhere"
            )
        found[name] = behavior
    for watch in config.watches:
        for one in expected(watch.name, watch.expect):
            if one.metric not in kinds:
                notes.append(f"{one.name} is judged on the device alone: {one.metric} is not reported")
                continue
            behavior = _of_expectation(one, kinds[one.metric], defined)
            if found.setdefault(one.name, behavior) != behavior:
                notes.append(f"{one.name} is as the profile's file has it, not as expect of watch {watch.name}")
    behaviors = list(found.values())
    _limits(config.origin, behaviors)
    return behaviors, notes


def reference(metric: str, defined: Container[str]) -> str | Json:
    """The name of a metric; of one in the same template a reference, so that it is made first."""
    return ref(logical(METRIC, metric)) if metric in defined else metric


def _of_expectation(behavior: Behavior, kind: MetricKind, defined: Container[str]) -> Json:
    if kind == "number":
        value: Json = {"Number": behavior.number}
    elif kind == "string-list":
        value = {"Strings": list(dict.fromkeys(map(reduced, behavior.texts)))}
    else:
        value = {_VALUES[kind]: list(behavior.numbers or behavior.texts)}
    return {
        "Name": behavior.name,
        "Metric": reference(behavior.metric, defined),
        "Criteria": {
            "ComparisonOperator": behavior.operator,
            "Value": value,
            "ConsecutiveDatapointsToAlarm": behavior.to_alarm,
            "ConsecutiveDatapointsToClear": behavior.to_clear,
        },
    }


def _of_file(written: Json, kinds: Mapping[str, MetricKind], defined: Container[str]) -> Json:
    """The API's spelling as CloudFormation's."""
    behavior: Json = _pascal(written)
    metric = written.get("metric")
    if metric is not None:
        behavior["Metric"] = reference(metric, defined)
    value = behavior.get("Criteria", {}).get("Value", {})
    if "Count" in value:
        value["Count"] = str(value["Count"])  # CloudFormation has it as text
    if "Strings" in value and metric in kinds:
        value["Strings"] = [reduced(text) for text in value["Strings"]]
    for key, members in value.items():
        if isinstance(members, list):
            value[key] = list(dict.fromkeys(members))
    return behavior


def _pascal(node: Any) -> Any:  # noqa: ANN401 - what JSON has
    if isinstance(node, dict):
        return {key[0].upper() + key[1:]: _pascal(value) for key, value in node.items()}
    return node


def _limits(origin: str, behaviors: list[Json]) -> None:
    if len(behaviors) > MAX_BEHAVIORS:
        what = f"{len(behaviors)} behaviors, and a security profile has at most {MAX_BEHAVIORS}"
        raise ConfigInvalid(f"{origin}: {what}; expect less, or make a configuration for each part of the fleet")
    values = [value for one in behaviors for value in one.get("Criteria", {}).get("Value", {}).values()]
    elements = sum(len(value) if isinstance(value, list) else 1 for value in values)
    if elements > MAX_ELEMENTS:
        what = f"{elements} values in all criteria together, and a security profile has at most {MAX_ELEMENTS}"
        raise ConfigInvalid(f"{origin}: {what}; join networks, or expect less")
