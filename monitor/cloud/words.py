"""What is made in an account, and what changes of it, in words for people.

Owns the names of kinds, the lines of a plan and how values are shortened. Pure. Refuses to know where changes were
found.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from monitor.sinks.text import fit, pad, safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from monitor.cloud.parts import Json

Sign = Literal["+", "~", "-/+", "-", "="]

_NAMED: Final = (
    *("MetricName", "SecurityProfileName", "ThingGroupName", "ActionName", "PolicyName", "RuleName", "FunctionName"),
    *("DatabaseInput.Name", "TableInput.Name", "Name", "Endpoint"),
)
_KINDS: Final = {
    "AWS::IoT::TopicRule": "rule",
    "AWS::IAM::Role": "role",
    "AWS::SNS::Topic": "SNS topic",
    "AWS::SNS::Subscription": "subscription",
    "AWS::S3::BucketPolicy": "bucket policy",
    "AWS::CloudWatch::Alarm": "CloudWatch alarm",
    "AWS::Glue::Database": "Athena database",
    "AWS::Glue::Table": "Athena table",
    "AWS::Athena::WorkGroup": "Athena work group",
    "AWS::KinesisFirehose::DeliveryStream": "Firehose stream",
    "AWS::SQS::Queue": "queue",
    "AWS::Lambda::Permission": "permission",
}
_SIGNS: Final[dict[Sign, str]] = {
    "+": "to be made",
    "~": "to be changed",
    "-/+": "to be replaced",
    "-": "to be removed",
    "=": "kept",
}
_LOSES: Final = {
    "AWS::IoT::CustomMetric": "its data of the last 14 days goes with it",
    "AWS::SNS::Topic": "its subscriptions go with it",
    "AWS::IoT::ThingGroup": "what its policies forbid is allowed again",
}
_WIDTH: Final = 60


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing of an account, and what becomes of it."""

    sign: Sign
    type: str
    """CloudFormation's, AWS::...::..."""
    name: str
    details: tuple[str, ...] = ()
    """Of its properties, a line each."""


def kind_of(resource: str) -> str:
    """The word for a type of CloudFormation: custom metric, security profile, role."""
    last = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", resource.rpartition("::")[2])
    return _KINDS.get(resource, last.lower())


def name_of(resources: Mapping[str, Json], logical: str, physical: str = "") -> str:
    """What a resource of a template is called: by its own name, by the one that AWS gave it, or inside the template."""
    properties = resources.get(logical, {}).get("Properties", {})
    for path in _NAMED:
        found: Any = properties
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found
    return physical.rpartition("/")[2].rpartition(":")[2] or logical


def lines(changes: Iterable[Change]) -> list[str]:
    """Write changes as a plan: what is made, changed, replaced, removed, kept, each in a paragraph."""
    every = list(changes)
    width = max((len(kind_of(one.type)) for one in every), default=0)
    written: list[str] = []
    for sign, title in _SIGNS.items():
        group = [one for one in every if one.sign == sign]
        written += [title] if group else []
        for one in group:
            lost = _LOSES.get(one.type, "") if sign in {"-", "-/+"} else ""
            written.append(f"  {sign:3} {pad(kind_of(one.type), width)}  {one.name}{f'  ({lost})' if lost else ''}")
            written += [f"        {detail}" for detail in one.details]
        written += [""] if group else []
    return [safe(line) for line in written]


def counted(changes: Iterable[Change]) -> str:
    """Write how many there are of each: 3 to be made, 1 to be removed."""
    found = Counter(one.sign for one in changes)
    return ", ".join(f"{found[sign]} {title}" for sign, title in _SIGNS.items() if found[sign])


def value(found: Any) -> str:  # noqa: ANN401 - what JSON has
    """Write a value of a property on part of a line."""
    text = found if isinstance(found, str) else json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    return fit(" ".join(text.split()), _WIDTH)


def moved(path: str, before: Any, after: Any) -> str:  # noqa: ANN401 - what JSON has
    """Write that a property has another value. None: there is none."""
    was, now = ("nothing" if one is None else value(one) for one in (before, after))
    return f"{path}: {was} -> {now}"


def resource_changes(found: Iterable[Json], known: Mapping[str, Json]) -> list[Change]:
    """What removing a stack does to each of its resources.

    `found`: as ListStackResources has them; `known`: those of its template, which says what is kept.
    """
    return [
        Change(
            sign="-" if known.get(one["LogicalResourceId"], {}).get("DeletionPolicy", "Delete") == "Delete" else "=",
            type=one["ResourceType"],
            name=name_of(known, one["LogicalResourceId"], one.get("PhysicalResourceId", "")),
        )
        for one in found
        if one["ResourceStatus"] != "DELETE_COMPLETE"
    ]
