"""An AWS Lambda function: the thing that raised an alarm joins the quarantine group.

Owns that one call; the template of an account without Device Defender Detect carries this file as it is. Refuses to
judge: the rule that calls it says which alarms count, and takes the thing from the topic, which the device's policy
guards. Whatever goes wrong is raised: Lambda tries twice more, then the event goes to the queue of what could not be
delivered.
"""

from __future__ import annotations

import os

import boto3

iot = boto3.client("iot")


def handler(event: dict[str, str], _context: object) -> dict[str, str]:
    """Add event["thing"] to the group that the variable GROUP names. Adding a member again changes nothing."""
    thing, group = event["thing"], os.environ["GROUP"]
    iot.add_thing_to_thing_group(thingGroupName=group, thingName=thing, overrideDynamicGroups=True)
    print(f"{thing} is in {group}: {event['behavior']}")  # noqa: T201 - goes to CloudWatch Logs
    return {"thing": thing, "group": group}
