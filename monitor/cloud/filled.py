"""Parts of a template as the API has them, before there is a stack.

Owns the way back from CloudFormation's spelling to the API's. Pure. Refuses to judge.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from monitor.cloud.behaviors import METRIC_TYPE

if TYPE_CHECKING:
    from monitor.cloud.parts import Json

PROFILE_TYPE: Final = "AWS::IoT::SecurityProfile"
RULE_TYPE: Final = "AWS::IoT::TopicRule"


def of_type(document: Json, kind: str) -> dict[str, Json]:
    """Properties of each resource of a type, by logical id."""
    found = document["Resources"].items()
    return {logical: one["Properties"] for logical, one in found if one["Type"] == kind}


def metrics(document: Json) -> dict[str, str]:
    """Type of each custom metric that the template defines, by name."""
    return {one["MetricName"]: one["MetricType"] for one in of_type(document, METRIC_TYPE).values()}


def behaviors(document: Json) -> list[Json]:
    """Behaviors of the security profile, as ValidateSecurityProfileBehaviors takes them; []: there is no profile."""
    names = {logical: one["MetricName"] for logical, one in of_type(document, METRIC_TYPE).items()}
    for properties in of_type(document, PROFILE_TYPE).values():
        return [_api(one, names) for one in properties["Behaviors"]]
    return []


def targets(document: Json, partition: str, region: str, account: str) -> list[str]:
    """ARNs of what the security profile is attached to."""
    known = {"AWS::Partition": partition, "AWS::Region": region, "AWS::AccountId": account}
    found: list[str] = []
    for properties in of_type(document, PROFILE_TYPE).values():
        for target in properties["TargetArns"]:
            text = target if isinstance(target, str) else target["Fn::Sub"]
            found.append(re.sub(r"\$\{([^}]*)\}", lambda one: known[one[1]], text))
    return found


def _api(node: Any, names: dict[str, str]) -> Any:  # noqa: ANN401 - what JSON has
    if isinstance(node, list):
        return [_api(one, names) for one in node]
    if not isinstance(node, dict):
        return node
    if "Ref" in node:
        return names[node["Ref"]]
    return {
        key[:1].lower() + key[1:]: int(value) if key == "Count" else _api(value, names) for key, value in node.items()
    }
