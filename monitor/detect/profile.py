"""A security profile as the AWS API writes it: what is in it, what is wrong with it, what one device can judge of it.

Owns the rules of CreateSecurityProfile, as far as they are about behaviors. Refuses to know files, clocks, reports and
values of metrics: `monitor.detect.evaluator` judges those. The figures are those of botocore's model of the API
(1.44.8) and of the Device Defender quotas; which operator goes with which metric is told by the developer guide's pages
on device-side, cloud-side and custom metrics.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from monitor.detect.fields import Wrong, api_name, either, flag, integer, object_of, one_of, refuse, shown
from monitor.detect.metrics import NAME as CUSTOM_NAME
from monitor.errors import ConfigInvalid
from monitor.expect import ImpossibleValue, networks

if TYPE_CHECKING:
    from collections.abc import Callable

Operator = Literal[
    "less-than",
    "less-than-equals",
    "greater-than",
    "greater-than-equals",
    "in-cidr-set",
    "not-in-cidr-set",
    "in-port-set",
    "not-in-port-set",
    "in-set",
    "not-in-set",
]

MAX_BEHAVIORS: Final = 100
MAX_ELEMENTS: Final = 1000
"""Counts, addresses, ports and so on in all the criteria of a profile."""
MAX_DATAPOINTS: Final = 10
DURATIONS_S: Final = (300, 600, 900, 1800, 3600)

SUMMED: Final = frozenset({"aws:all-bytes-out", "aws:all-bytes-in", "aws:all-packets-out", "aws:all-packets-in"})
"""Metrics that a report gives as the growth since the report before, so that durationSeconds adds them up."""
DEVICE_SIDE: Final = SUMMED | {
    *("aws:num-listening-tcp-ports", "aws:num-listening-udp-ports", "aws:num-established-tcp-connections"),
    *("aws:destination-ip-addresses", "aws:listening-tcp-ports", "aws:listening-udp-ports"),
}
CLOUD_SIDE: Final = frozenset(
    {
        *("aws:message-byte-size", "aws:num-messages-sent", "aws:num-messages-received", "aws:source-ip-address"),
        *("aws:num-authorization-failures", "aws:num-connection-attempts", "aws:num-disconnects"),
        "aws:disconnect-duration",
    }
)

_SCALAR: Final = ("less-than", "less-than-equals", "greater-than", "greater-than-equals")
_CIDR: Final = ("in-cidr-set", "not-in-cidr-set")
_PORT: Final = ("in-port-set", "not-in-port-set")
_SET: Final = ("in-set", "not-in-set")
_OPERATORS: Final = (*_SCALAR, *_CIDR, *_PORT, *_SET)
_ADDRESSES: Final = frozenset({"aws:destination-ip-addresses", "aws:source-ip-address"})
_PORTS: Final = frozenset({"aws:listening-tcp-ports", "aws:listening-udp-ports"})
_PERCENTILES: Final = (
    *("p0", "p0.1", "p0.01", "p1", "p10", "p50", "p90", "p99", "p99.9", "p99.99", "p100"),
    "Average",  # CloudFormation's schema has it
)
_MAX_COUNT: Final = (1 << 63) - 1
_MAX_BITS: Final = 1023  # beyond, an integer is no double
_SIGNS: Final = {"less-than": "<", "less-than-equals": "<=", "greater-than": ">", "greater-than-equals": ">="}


class Behavior(msgspec.Struct, frozen=True, kw_only=True):
    """What is normal for one metric, in a form that one device can judge."""

    name: str
    metric: str
    operator: Operator
    number: float | None = None
    """What a number is compared with."""
    numbers: tuple[float, ...] = ()
    """The set of in-set, not-in-set and the port operators, when it is one of numbers."""
    texts: tuple[str, ...] = ()
    """The set of in-set and not-in-set when it is one of strings; the networks of the CIDR operators."""
    duration_s: int | None = None
    to_alarm: int = 1
    """Datapoints in violation, one after the other, that raise the alarm."""
    to_clear: int = 1
    """Datapoints that conform, one after the other, that clear it."""
    suppressed: bool = False
    """suppressAlerts: judged all the same, but nobody wants to be woken."""

    def normal(self) -> str:
        """Say what is normal, for people: "<= 0", "in 10.0.0.0/8", "not in 22, 23"."""
        if self.number is not None:
            return f"{_SIGNS[self.operator]} {plain(self.number)}"
        members = ", ".join((*map(plain, self.numbers), *self.texts)) or "nothing"
        return f"{'not in' if self.operator.startswith('not-in') else 'in'} {members}"

    def criteria(self) -> dict[str, Any]:
        """Write operator and value as the API does."""
        if self.number is not None:
            value: dict[str, Any] = {"count" if self.metric.startswith("aws:") else "number": self.number}
        elif self.operator in _CIDR:
            value = {"cidrs": self.texts}
        elif self.operator in _PORT:
            value = {"ports": self.numbers}
        else:
            value = {"strings": self.texts} if self.texts else {"numbers": self.numbers}
        return {"comparisonOperator": self.operator, "value": value}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile that was found right."""

    name: str
    """ "" when the file does not say."""
    behaviors: tuple[Behavior, ...]
    """Those that one device can judge."""
    elsewhere: tuple[tuple[str, str], ...]
    """Name of each other behavior, and why it cannot be judged here."""


def load(data: bytes, source: str = "security profile") -> Profile:
    """Read the JSON of `aws iot describe-security-profile` or `create-security-profile --cli-input-json`.

    Keys of the profile that are not about behaviors are passed over; unknown keys within a behavior are not. Raises
    ConfigInvalid: `source`, the place, what was expected there and what was found.
    """
    try:
        decoded = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigInvalid(
            f"{source}: this is not JSON ({error}); write it with 'aws iot describe-security-profile --output json'"
        ) from None
    try:
        return _profile(decoded)
    except Wrong as wrong:
        raise ConfigInvalid(f"{source}: {wrong}") from None


def _profile(found: object) -> Profile:
    if not isinstance(found, dict) or not isinstance(found.get("behaviors"), list):
        other = isinstance(found, dict) and ("Behaviors" in found or "Properties" in found)
        hint = "; this looks like CloudFormation's spelling, the API's begins with small letters" if other else ""
        inner = found.get("behaviors", found) if isinstance(found, dict) else found
        refuse("", f"expected an object with the key 'behaviors', a list, found {shown(inner)}{hint}")
    name = found.get("securityProfileName", "")
    if "securityProfileName" in found:
        api_name(name, "securityProfileName")
    entries = found["behaviors"]
    if len(entries) > MAX_BEHAVIORS:
        refuse("behaviors", f"expected at most {MAX_BEHAVIORS}, found {len(entries)}; split the profile")
    behaviors: list[Behavior] = []
    elsewhere: list[tuple[str, str]] = []
    names: set[str] = set()
    elements = 0
    for index, entry in enumerate(entries):
        where = f"behaviors[{index}]"
        result, size = _behavior(entry, where)
        elements += size
        called = result.name if isinstance(result, Behavior) else result[0]
        if called in names:
            refuse(f"{where}.name", f"{called!r} names an earlier behavior as well; names in a profile are unique")
        names.add(called)
        if isinstance(result, Behavior):
            behaviors.append(result)
        else:
            elsewhere.append(result)
    if elements > MAX_ELEMENTS:
        refuse("behaviors", f"expected at most {MAX_ELEMENTS} values in all criteria together, found {elements}")
    return Profile(name=name, behaviors=tuple(behaviors), elsewhere=tuple(elsewhere))


_BEHAVIOR_KEYS: Final = ("name", "metric", "metricDimension", "criteria", "suppressAlerts", "exportMetric")
_CRITERIA_KEYS: Final = (
    *("comparisonOperator", "value", "durationSeconds", "consecutiveDatapointsToAlarm"),
    *("consecutiveDatapointsToClear", "statisticalThreshold", "mlDetectionConfig"),
)


def _behavior(entry: object, where: str) -> tuple[Behavior | tuple[str, str], int]:
    """One behavior, or its name and why it cannot be judged here; and how many values its criteria hold."""
    fields = object_of(entry, where, _BEHAVIOR_KEYS, required="name")
    name = api_name(fields["name"], f"{where}.name")
    suppressed = flag(fields, "suppressAlerts", where)
    flag(fields, "exportMetric", where)
    metric = fields.get("metric")
    if metric is None and "metric" not in fields:
        return (name, "it names no metric"), 0
    if not isinstance(metric, str) or not (metric.startswith("aws:") or CUSTOM_NAME.match(metric)):
        refuse(f"{where}.metric", f"expected aws:... or a name of [a-zA-Z0-9:_-], 1 to 128, found {shown(metric)}")
    if "metricDimension" in fields:
        _dimension(fields["metricDimension"], metric, f"{where}.metricDimension")
    if "criteria" not in fields:
        return (name, "it has no criteria: its metric is retained, not judged"), 0
    behavior, size, reason = _criteria(fields["criteria"], name, metric, f"{where}.criteria")
    if metric in CLOUD_SIDE:
        reason = f"{metric} is measured in the cloud"
    elif metric.startswith("aws:") and metric not in DEVICE_SIDE:
        reason = f"{shown(metric)} is not among the device-side metrics known here"
    elif "metricDimension" in fields:
        reason = "a dimension narrows its metric down, and reports are not divided by dimensions"
    if behavior is None or reason:
        return (name, reason), size
    return msgspec.structs.replace(behavior, suppressed=suppressed), size


def _criteria(entry: object, name: str, metric: str, where: str) -> tuple[Behavior | None, int, str]:
    """The behavior, how many values it holds, and why it cannot be judged here ("": it can)."""
    fields = object_of(entry, where, _CRITERIA_KEYS)
    kinds = [kind for kind in ("value", "statisticalThreshold", "mlDetectionConfig") if kind in fields]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        refuse(where, f"expected one of value, statisticalThreshold and mlDetectionConfig, found {found}")
    datapoints: dict[str, Any] = {
        field: integer(fields.get(key, 1), f"{where}.{key}", 1, MAX_DATAPOINTS)
        for field, key in (("to_alarm", "consecutiveDatapointsToAlarm"), ("to_clear", "consecutiveDatapointsToClear"))
    }
    duration_s = fields.get("durationSeconds")
    if "durationSeconds" in fields:
        one_of(duration_s, f"{where}.durationSeconds", DURATIONS_S)
    if kinds == ["mlDetectionConfig"]:
        learnt = object_of(
            fields["mlDetectionConfig"], f"{where}.mlDetectionConfig", ("confidenceLevel",), "confidenceLevel"
        )
        one_of(learnt["confidenceLevel"], f"{where}.mlDetectionConfig.confidenceLevel", ("LOW", "MEDIUM", "HIGH"))
        return None, 0, "what is normal is learnt in the cloud (ML Detect)"
    operator = _operator(fields, metric, where)
    if duration_s is not None and operator not in _SCALAR:
        refuse(f"{where}.durationSeconds", f"{operator} judges a list, and durationSeconds goes with numbers only")
    if kinds == ["statisticalThreshold"]:
        if operator not in _SCALAR:
            refuse(f"{where}.comparisonOperator", f"a statisticalThreshold goes with {either(_SCALAR)}")
        ranked = object_of(fields["statisticalThreshold"], f"{where}.statisticalThreshold", ("statistic",), "statistic")
        one_of(ranked["statistic"], f"{where}.statisticalThreshold.statistic", _PERCENTILES)
        return None, 0, "its threshold is a percentile over all devices, which one device cannot know"
    value = _value(fields["value"], operator, metric, f"{where}.value")
    size = len(value.get("numbers", ())) + len(value.get("texts", ())) + ("number" in value)
    return (
        Behavior(name=name, metric=metric, operator=operator, duration_s=duration_s, **datapoints, **value),
        size,
        "",
    )


def _operator(fields: dict[str, Any], metric: str, where: str) -> Operator:
    operator: Operator = one_of(fields.get("comparisonOperator"), f"{where}.comparisonOperator", _OPERATORS)
    if metric in _ADDRESSES:
        allowed: tuple[str, ...] = _CIDR
    elif metric in _PORTS:
        allowed = _PORT
    elif metric in DEVICE_SIDE | CLOUD_SIDE:
        allowed = _SCALAR
    elif metric.startswith("aws:"):
        allowed = _OPERATORS
    else:
        allowed = (*_SCALAR, *_CIDR, *_SET)
    if operator not in allowed:
        refuse(f"{where}.comparisonOperator", f"{shown(metric)} goes with {either(allowed)}, found {operator!r}")
    return operator


def _value(entry: object, operator: Operator, metric: str, where: str) -> dict[str, Any]:
    """Fields of Behavior."""
    fields = object_of(entry, where, ("count", "cidrs", "ports", "number", "numbers", "strings"))
    if operator in _SCALAR:
        wanted: tuple[str, ...] = ("count",) if metric.startswith("aws:") else ("number",)
    elif operator in _CIDR:
        wanted = ("cidrs",)
    elif operator in _PORT:
        wanted = ("ports",)
    else:
        wanted = ("numbers", "strings")
    if len(fields) != 1 or next(iter(fields)) not in wanted:
        found = ", ".join(fields) or "none"
        refuse(where, f"{operator} of {shown(metric)} goes with exactly one of {either(wanted)}, found {found}")
    ((key, value),) = fields.items()
    where = f"{where}.{key}"
    if key == "count":
        return {"number": integer(value, where, 0, _MAX_COUNT)}
    if key == "number":
        return {"number": _number(value, where)}
    if not isinstance(value, list):
        refuse(where, f"expected a list, found {shown(value)}")
    return {
        "numbers" if key in {"ports", "numbers"} else "texts": tuple(
            _MEMBERS[key](member, f"{where}[{index}]") for index, member in enumerate(value)
        )
    }


def _port(value: object, where: str) -> int:
    return integer(value, where, 0, 65_535)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        refuse(where, f"expected text, found {shown(value)}")
    return value


def _cidr(value: object, where: str) -> str:
    """A network; what stands beyond its prefix is ignored."""
    try:
        return networks((value if isinstance(value, str) else "",))[0]
    except ImpossibleValue:
        refuse(where, f"expected a network such as 10.0.0.0/8 or fd00::/8, found {shown(value)}")


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(where, f"expected a number, found {shown(value)}")
    if value.bit_length() > _MAX_BITS if isinstance(value, int) else not math.isfinite(value):
        refuse(where, "expected a finite number")
    return float(value) if abs(value) > _MAX_COUNT else value


_MEMBERS: Final[dict[str, Callable[[object, str], Any]]] = {
    "cidrs": _cidr,
    "ports": _port,
    "numbers": _number,
    "strings": _text,
}


def _dimension(entry: object, metric: str, where: str) -> None:
    if not metric.startswith("aws:"):
        refuse(where, "a custom metric has no dimensions; take it out")
    fields = object_of(entry, where, ("dimensionName", "operator"), required="dimensionName")
    api_name(fields["dimensionName"], f"{where}.dimensionName")
    if "operator" in fields:
        one_of(fields["operator"], f"{where}.operator", ("IN", "NOT_IN"))


def plain(value: float) -> str:
    """Write a number for people: without the .0 of a whole one."""
    return str(int(value)) if abs(value) < 1 << 53 and value == int(value) else str(value)
