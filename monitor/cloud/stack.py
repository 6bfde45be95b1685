"""A CloudFormation stack: its state, what happens to it, its end.

Owns the calls and what their states mean. Refuses to know what a template consists of, and to ask anybody anything.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.cloud.compare import STACK
from monitor.errors import CloudRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from monitor.cloud.aws import Aws
    from monitor.cloud.parts import Json

TAG: Final = "kinwatch:profile"
"""Of a stack that kinwatch made, and of whatever in it takes tags; its value is the name of the security profile."""
POLL_S: Final = 3.0
POLLS: Final = 1200
"""An hour."""
_HUSKS: Final = frozenset({"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"})
_GOOD: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE", "DELETE_COMPLETE"})
SERVICE: Final = "cloudformation"
REMEDIES: Final = {
    "UPDATE_ROLLBACK_FAILED": "what failed could not be taken back: mend what its events name, then "
    "'aws cloudformation continue-update-rollback --stack-name NAME', then apply again",
    "UPDATE_FAILED": "apply goes on with it",
    "UPDATE_ROLLBACK_COMPLETE": "the last change was taken back: apply tries again",
    **dict.fromkeys(_HUSKS, "what is left of a failed attempt: apply removes it first"),
}
"""What to do about a stack in a state that is not good."""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A stack as it is now."""

    name: str
    id: str
    status: str
    reason: str
    description: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def busy(self) -> bool:
        """Something is being done to it."""
        return self.status.endswith("_IN_PROGRESS") and not self.empty

    @property
    def empty(self) -> bool:
        """Only a plan was ever made for it: there is nothing in it."""
        return self.status == "REVIEW_IN_PROGRESS"

    @property
    def husk(self) -> bool:
        """What is left where making or removing it failed: it can be removed, and nothing else."""
        return self.status in _HUSKS

    @property
    def good(self) -> bool:
        """The last change came to a good end."""
        return self.status in _GOOD


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a resource of a stack."""

    logical: str
    physical: str
    type: str
    status: str
    reason: str


def find(aws: Aws, name: str) -> Stack | None:
    """Return the stack of that name or id; None: there is none. Raises CloudRefused."""
    try:
        (found,) = aws.call(SERVICE, "DescribeStacks", StackName=name)["Stacks"]
    except CloudRefused as error:
        if error.code == "ValidationError" and "does not exist" in str(error):
            return None
        raise
    return Stack(
        name=found["StackName"],
        id=found["StackId"],
        status=found["StackStatus"],
        reason=found.get("StackStatusReason", ""),
        description=found.get("Description", ""),
        tags={one["Key"]: one["Value"] for one in found.get("Tags", ())},
        parameters={one["ParameterKey"]: one.get("ParameterValue", "") for one in found.get("Parameters", ())},
        outputs={one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", ())},
    )


def template(aws: Aws, stack: Stack) -> Json:
    """Return the template that the stack was last given. Raises CloudRefused."""
    body = aws.call(SERVICE, "GetTemplate", StackName=stack.id, TemplateStage="Original")["TemplateBody"]
    try:
        found: Json = json.loads(body) if isinstance(body, str) else body
    except ValueError as error:
        raise CloudRefused(
            f"stack {stack.name}: its template is not JSON, so kinwatch did not write it; give --stack"
        ) from error
    return found


def resources(aws: Aws, stack: Stack) -> list[Json]:
    """Return what is in the stack: summaries as ListStackResources has them. Raises CloudRefused."""
    return list(aws.pages(SERVICE, "ListStackResources", "StackResourceSummaries", StackName=stack.id))


def remove(aws: Aws, stack: Stack, tell: Callable[[Event], None]) -> Stack:
    """Remove the stack and what is in it, telling what happens. Returns it as it was last. Raises CloudRefused."""
    before = seen(aws, stack.id)
    aws.call(SERVICE, "DeleteStack", StackName=stack.id)
    return follow(aws, stack.id, before, tell, begun=False)


def follow(aws: Aws, name: str, before: set[str], tell: Callable[[Event], None], *, begun: bool = True) -> Stack:
    """Wait until nothing is done to the stack any more, telling every event that is not in `before`.

    `begun`: False waits for the first event as well; a change that was only just asked for may not show yet. `name` is
    best the id, by which a removed stack still answers. Raises CloudRefused: it takes longer than an hour, or the
    stack is gone.
    """
    for _ in range(POLLS):
        found = find(aws, name)
        for event in _news(aws, name, before):
            begun = begun or event.type == STACK
            tell(event)
        if found is None:
            raise CloudRefused(f"stack {name} is gone: somebody removed it; run the command again")
        if begun and not found.busy and not found.empty:
            return found
        aws.sleep(POLL_S)
    raise CloudRefused(f"stack {name}: not done after an hour; the command goes on with it when it is run again")


def seen(aws: Aws, name: str) -> set[str]:
    """Return the ids of what has happened to the stack so far. Raises CloudRefused."""
    return {one["EventId"] for one in aws.pages(SERVICE, "DescribeStackEvents", "StackEvents", StackName=name)}


def _news(aws: Aws, name: str, before: set[str]) -> list[Event]:
    """Events that are not in `before`, oldest first; they are put into it."""
    found: list[Event] = []
    for one in aws.pages(SERVICE, "DescribeStackEvents", "StackEvents", StackName=name):
        if one["EventId"] in before:
            break  # the newest come first
        before.add(one["EventId"])
        found.append(
            Event(
                logical=one.get("LogicalResourceId", ""),
                physical=one.get("PhysicalResourceId", ""),
                type=one.get("ResourceType", ""),
                status=one.get("ResourceStatus", ""),
                reason=one.get("ResourceStatusReason", ""),
            )
        )
    return found[::-1]
