"""`kinwatch cloud mitigate`: a thing that raised alarms joins the quarantine group.

Owns the one mitigation that alarms of Detect know, and the direct way of accounts without it. Refuses to know what a
thing may do in that group.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from monitor.cloud.reasons import NO_DETECT
from monitor.cloud.steps import UNCONFIRMED
from monitor.cloud.words import value
from monitor.errors import CloudRefused
from monitor.sinks.text import pad, safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitor.cloud.aws import Aws
    from monitor.cloud.order import Order
    from monitor.cloud.parts import Json
    from monitor.cloud.steps import Desk

MAX_VIOLATIONS: Final = 25
"""Of one task."""
_IOT: Final = "iot"
_POLL_S: Final = 3.0
_POLLS: Final = 200
_ATTEMPTS: Final = 20
_ENDED: Final = frozenset({"SUCCESSFUL", "FAILED", "CANCELED"})


def run(desk: Desk, order: Order, *, profile: str, base: str, thing: str) -> int:
    """Show what the thing violates, ask, and have it join the group. Returns 0: it is in it; 1: it was not asked.

    With order.no_detect nothing is shown, and it joins by the call that an action makes. Raises CloudRefused.
    """
    group = f"{base}-quarantine"
    if group in set(_groups(desk.aws, thing)):
        desk.tell(f"{thing} is in {group} already: nothing to do")
        return 0
    violations: list[Json] = []
    if order.no_detect:
        desk.tell(f"{thing} joins the thing group {group}")
    else:
        violations = _violations(desk.aws, thing, profile)
        if not violations:
            desk.tell(f"{thing} violates no behavior of {profile} now: nothing to do")
            return 0
        for line in lines(thing, profile, violations):
            desk.tell(line)
        desk.tell(f"\n{thing} joins the thing group {group}, by the mitigation action {group}")
    _say_what_it_means(desk, group)
    if not order.yes and not desk.confirm("Do it?"):
        desk.tell("nothing was changed")
        return UNCONFIRMED
    if order.no_detect:
        desk.aws.call(_IOT, "AddThingToThingGroup", thingGroupName=group, thingName=thing, overrideDynamicGroups=True)
    else:
        _by_task(desk, [one["violationId"] for one in violations], group, thing)
    if group not in set(_groups(desk.aws, thing)):
        raise CloudRefused(f"{thing}: AWS says that it is done, and the thing is not in {group}; look at the group")
    desk.tell(f"done: {thing} is in {group}")
    desk.tell(f"to let it out: aws iot remove-thing-from-thing-group --thing-group-name {group} --thing-name {thing}")
    return 0


def lines(thing: str, profile: str, violations: Sequence[Json]) -> list[str]:
    """Write violations as a table: behavior, what was measured, what is normal, since when."""
    many = f"{len(violations)} behavior{'s' if len(violations) > 1 else ''}"
    rows = [
        (
            one["behavior"]["name"],
            f"{one['behavior'].get('metric', '?')} {_members(one.get('lastViolationValue', {}))}",
            _normal(one["behavior"].get("criteria", {})),
            f"{one['violationStartTime']:%Y-%m-%d %H:%M:%S %Z}" if "violationStartTime" in one else "",
        )
        for one in violations
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    written = [f"{thing} violates {many} of {profile}"]
    for row in rows:
        cells = [pad(cell, width) for cell, width in zip(row, widths, strict=True)]
        written.append(f"  {cells[0]}  {cells[1]}  normal: {cells[2]}  since {cells[3]}".rstrip())
    return [safe(line) for line in written]


def _violations(aws: Aws, thing: str, profile: str) -> list[Json]:
    """Of the profile, not yet cleared, the longest first."""
    try:
        pages = aws.pages(
            _IOT, "ListActiveViolations", "activeViolations", thingName=thing, securityProfileName=profile
        )
        return sorted(pages, key=lambda one: str(one.get("violationStartTime", "")))
    except CloudRefused as error:
        if error.no_detect:
            raise CloudRefused(f"{error}: see mitigate --no-detect", no_detect=True) from error
        if error.code == "ResourceNotFoundException":
            what = f"there is no thing {thing} or no security profile {profile} in {aws.region}"
            raise CloudRefused(f"{what}; see --thing and --region, and 'kinwatch cloud apply'") from error
        raise


def _groups(aws: Aws, thing: str) -> list[str]:
    pages = aws.pages(_IOT, "ListThingGroupsForThing", "thingGroups", thingName=thing)
    try:
        return [one["groupName"] for one in pages]
    except CloudRefused as error:
        if error.code == "ResourceNotFoundException":
            raise CloudRefused(f"there is no thing {thing} in {aws.region}; see --thing and --region") from error
        raise


def _say_what_it_means(desk: Desk, group: str) -> None:
    try:
        arn = desk.aws.call(_IOT, "DescribeThingGroup", thingGroupName=group)["thingGroupArn"]
    except CloudRefused as error:
        if error.code == "ResourceNotFoundException":
            remedy = "'kinwatch cloud apply' makes it; without Detect with --no-detect --quarantine"
            raise CloudRefused(f"there is no thing group {group} in {desk.aws.region}; {remedy}") from error
        raise
    policies = [one["policyName"] for one in desk.aws.pages(_IOT, "ListAttachedPolicies", "policies", target=arn)]
    if policies:
        desk.tell(f"policies of things in it: {', '.join(policies)}")
    else:
        desk.tell("no policy is attached to that group, so being in it forbids nothing yet")


def _by_task(desk: Desk, violations: Sequence[str], group: str, thing: str) -> None:
    """Start a task and wait for its end. The same violations have the same task, so that a second start is none.

    The action is called as the group is.
    """
    chosen = sorted(violations[:MAX_VIOLATIONS])
    if len(violations) > MAX_VIOLATIONS:
        desk.tell(f"a task takes {MAX_VIOLATIONS} violations: the first ones; one is enough for the thing to join")
    stem = hashlib.sha256("\n".join((group, *chosen)).encode()).hexdigest()[:24]
    for attempt in range(1, _ATTEMPTS + 1):
        task = f"kinwatch-{stem}-{attempt}"
        begun = _start(desk.aws, task, chosen, group)
        desk.tell(f"task {task}: {'started' if begun else 'was started before'}")
        found = _ended(desk.aws, task)
        counts = found.get("taskStatistics", {})
        done, skipped, failed = (counts.get(f"actions{what}", 0) for what in ("Executed", "Skipped", "Failed"))
        desk.tell(f"task {task}: {found['taskStatus']}, {done} executed, {skipped} skipped, {failed} failed")
        well = found["taskStatus"] == "SUCCESSFUL" and not failed
        if well and (begun or group in _groups(desk.aws, thing)):
            return
        if begun:
            why = _failures(desk.aws, task)
            raise CloudRefused(
                f"task {task}: {found['taskStatus']}: {why}; see the role of the mitigation action {group}, "
                "then run the command again"
            )
        # An earlier attempt failed, or somebody has let the thing out since: this is the next one.
    raise CloudRefused(f"{_ATTEMPTS} tasks for these violations had no effect; see the mitigation action {group}")


def _start(aws: Aws, task: str, violations: Sequence[str], action: str) -> bool:
    """Whether it was started now; False: it was there already."""
    try:
        aws.call(
            _IOT,
            "StartDetectMitigationActionsTask",
            taskId=task,
            target={"violationIds": list(violations)},
            actions=[action],
            includeOnlyActiveViolations=True,
            includeSuppressedAlerts=True,
            clientRequestToken=task,
        )
    except CloudRefused as error:
        if error.code == "TaskAlreadyExistsException":
            return False
        if error.no_detect:
            raise CloudRefused(NO_DETECT, no_detect=True) from error
        raise
    return True


def _ended(aws: Aws, task: str) -> Json:
    for _ in range(_POLLS):
        found: Json = aws.call(_IOT, "DescribeDetectMitigationActionsTask", taskId=task)["taskSummary"]
        if found["taskStatus"] in _ENDED:
            return found
        aws.sleep(_POLL_S)
    raise CloudRefused(f"task {task} is not done yet; run the command again, which goes on with it")


def _failures(aws: Aws, task: str) -> str:
    pages = aws.pages(_IOT, "ListDetectMitigationActionsExecutions", "actionsExecutions", taskId=task)
    found = [f"{one.get('errorCode', one['status'])}: {one.get('message', 'no further words')}" for one in pages]
    return safe("; ".join(dict.fromkeys(found)) or "AWS gives no reason")


def _members(found: Json) -> str:
    return ", ".join(value(one) for one in found.values()) or "?"


def _normal(criteria: Json) -> str:
    if "comparisonOperator" in criteria:
        more = f" over {criteria['durationSeconds']} s" if "durationSeconds" in criteria else ""
        limit: Any = criteria.get("value") or criteria.get("statisticalThreshold") or {}
        return f"{criteria['comparisonOperator']} {_members(limit)}{more}"
    return "as learnt" if "mlDetectionConfig" in criteria else "?"
