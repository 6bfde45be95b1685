"""What somebody changed by hand of what a stack made.

Owns CloudFormation's drift detection. Refuses to judge whether that was right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitor.cloud.stack import POLL_S, POLLS, SERVICE
from monitor.cloud.words import Change, moved, name_of
from monitor.errors import CloudRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from monitor.cloud.aws import Aws
    from monitor.cloud.parts import Json
    from monitor.cloud.stack import Stack


def drift(aws: Aws, stack: Stack, known: Mapping[str, Json]) -> tuple[list[Change], str]:
    """Return what somebody changed by hand, as what would have to be changed back, and why that may not be all.

    "": it is all. Raises CloudRefused.
    """
    asked = aws.call(SERVICE, "DetectStackDrift", StackName=stack.id)["StackDriftDetectionId"]
    for _ in range(POLLS):
        found = aws.call(SERVICE, "DescribeStackDriftDetectionStatus", StackDriftDetectionId=asked)
        if found["DetectionStatus"] != "DETECTION_IN_PROGRESS":
            break
        aws.sleep(POLL_S)
    else:
        raise CloudRefused(f"stack {stack.name}: drift is still being looked for; run the command again")
    why = ""
    if found["DetectionStatus"] == "DETECTION_FAILED":
        why = found.get("DetectionStatusReason", "AWS gives no reason")
    return list(_drifted(aws, stack, known)), why


def _drifted(aws: Aws, stack: Stack, known: Mapping[str, Json]) -> Iterator[Change]:
    asked: dict[str, Any] = {"StackName": stack.id, "StackResourceDriftStatusFilters": ["MODIFIED", "DELETED"]}
    while True:
        page = aws.call(SERVICE, "DescribeStackResourceDrifts", **asked)
        for one in page["StackResourceDrifts"]:
            name = name_of(known, one["LogicalResourceId"], one.get("PhysicalResourceId", ""))
            if one["StackResourceDriftStatus"] == "DELETED":
                yield Change(sign="+", type=one["ResourceType"], name=name, details=("somebody removed it",))
                continue
            details = tuple(
                moved(
                    each["PropertyPath"].strip("/").replace("/", "."),
                    each["ActualValue"] if each["DifferenceType"] != "REMOVE" else None,
                    each["ExpectedValue"] if each["DifferenceType"] != "ADD" else None,
                )
                for each in one.get("PropertyDifferences", ())
            )
            yield Change(sign="~", type=one["ResourceType"], name=name, details=details)
        if "NextToken" not in page:
            return
        asked["NextToken"] = page["NextToken"]
