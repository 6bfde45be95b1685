"""The flags of `kinwatch cloud`, and what they mean as options.

Owns their names, their help and which steps there are. Refuses to import anything that takes time: help is instant.
"""

# ruff: noqa: PLC0415 - what costs time is imported after the flags are found right

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.cloud.order import Order
    from monitor.cloud.template import Wanted

NEEDS_WATCHES: Final = frozenset({"template", "check", "diff", "apply"})
"""Steps that look at more of the configuration than names."""
SUMMARY: Final = "make what the AWS account needs for this configuration"
MORE: Final = (
    "\nAll steps but template call AWS, with the credentials and the region that the AWS CLI\nwould use, and need the "
    "library boto3. Each has its own flags: kinwatch cloud apply --help."
)
STEPS: Final = {
    "template": (
        "print what the account needs as a CloudFormation template",
        """
With the configuration it changes; AWS is never called.""",
    ),
    "check": (
        "say what the account has, lacks and would refuse, and what to do about it",
        """
Nothing is changed. Exit code 4 when AWS would refuse something.""",
    ),
    "diff": (
        "say what differs between the account and the configuration",
        """
Nothing is changed. What somebody changed by hand is found by CloudFormation's drift
detection, which takes a while. Exit code 1 when something differs.""",
    ),
    "apply": (
        "show what would change in the account, ask, change it; a second time changes nothing",
        """
After a failure the next apply goes on. An account that has no Detect gets what
--no-detect makes, if you say yes to it.""",
    ),
    "destroy": (
        "show what would be removed from the account, ask, remove what apply made",
        """
That is what 'kinwatch cloud apply' made for this security profile, which it marks by a
tag. Data of custom metrics goes with them; the bucket of alarms stays.""",
    ),
    "mitigate": (
        "put a thing that raised alarms into the quarantine group",
        """
The one mitigation that alarms of Detect know. What a thing in that group may do is said
by policies that you attach to it. With --no-detect there are no violations to show.""",
    ),
}
"""Each step: its summary, and more."""
_STACK: Final = re.compile(r"[a-zA-Z][-a-zA-Z0-9]{0,127}\Z")
_BUCKET: Final = re.compile(r"[a-zA-Z0-9._-]{3,255}\Z")  # old ones have more than new ones may
_ADDRESS: Final = re.compile(r"[^@\s]+@[^@\s]+\Z")
_THING: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")


def add(
    verb: argparse.ArgumentParser,
    add_watches: Callable[[argparse.ArgumentParser], None],
    add_config: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add a parser for each step. `add_watches` adds what verbs have that watch something, `add_config` -c alone."""
    steps = verb.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, (summary, more) in STEPS.items():
        step = steps.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.{more}",
            epilog=verb.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        watching = name in NEEDS_WATCHES
        step.usage = f"kinwatch cloud {name} [-c FILE] {'[WATCHES] ' if watching else ''}[options]"
        (add_watches if watching else add_config)(step)
        if name != "destroy":
            _add_made(step, name)
        if name != "template":
            _add_account(step, name)


def _add_made(step: argparse.ArgumentParser, name: str) -> None:
    """Flags about what is made."""
    step.add_argument(
        "--no-detect",
        action="store_true",
        help="for accounts without Device Defender Detect: "
        + ("IoT rules instead" if name in NEEDS_WATCHES else "the thing joins the group by itself"),
    )
    if name not in NEEDS_WATCHES:
        return
    step.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="ARN",
        help="thing group that the security profile is attached to, repeatable; all: every thing (default: all)",
    )
    step.add_argument(
        "--export-topic",
        metavar="TOPIC",
        help="where Detect exports metrics to, empty: nowhere (default: kinwatch/metrics)",
    )
    step.add_argument(
        "--existing-metric",
        action="append",
        default=[],
        metavar="NAME",
        help="custom metric that another stack of the account defines already, repeatable",
    )
    step.add_argument(
        "--quarantine",
        action="append",
        default=[],
        metavar="BEHAVIOR",
        help="with --no-detect: an alarm of this behavior puts the thing into the quarantine group at once, "
        "repeatable; all: of every behavior",
    )
    if name == "template":
        step.add_argument("-o", "--output", type=Path, metavar="FILE", help="where it goes (default: stdout)")


def _add_account(step: argparse.ArgumentParser, name: str) -> None:
    """Flags about the account."""
    group = step.add_argument_group("account")
    group.add_argument("--region", metavar="NAME", help="of AWS (default: AWS_REGION, or that of ~/.aws/config)")
    group.add_argument("--aws-profile", metavar="NAME", help="in ~/.aws/config (default: AWS_PROFILE, or default)")
    if name != "mitigate":
        group.add_argument(
            "--stack", metavar="NAME", default="", help="CloudFormation stack (default: named after the profile)"
        )
    if name in {"apply", "diff"}:
        group.add_argument(
            "--email", metavar="ADDRESS", help="address that gets the alarms, once it has confirmed; empty: nobody"
        )
        group.add_argument(
            "--retention-days",
            type=_days,
            metavar="N",
            help="with --no-detect: days that alarms are kept (default: 90)",
        )
    if name == "apply":
        group.add_argument(
            "--bucket",
            metavar="NAME",
            default="",
            help="of yours, in the same region; holds a template of more than 51,200 bytes for a moment",
        )
        group.add_argument("--revert-drift", action="store_true", help="also change back what somebody changed by hand")
    if name == "diff":
        group.add_argument("--no-drift", action="store_true", help="do not look for what somebody changed by hand")
    if name == "mitigate":
        group.add_argument("--thing", metavar="NAME", default="", help="(default: defender.thing of the configuration)")
    if name in {"check", "diff"}:
        group.add_argument("--json", action="store_true", help="JSON instead of a table")
    if name in {"apply", "destroy", "mitigate"}:
        group.add_argument("-y", "--yes", action="store_true", help="do not ask")


def wanted(options: argparse.Namespace) -> Wanted:
    """Return what the flags say of the template. Raises ConfigInvalid: a contradiction."""
    made = options.step in NEEDS_WATCHES
    no_detect = getattr(options, "no_detect", False)
    if made:
        detect = (("--target", options.target), ("--export-topic", options.export_topic))
        for flag, value in (*detect, ("--existing-metric", options.existing_metric)):
            if value and options.no_detect:
                raise ConfigInvalid(f"command line: {flag}: belongs to Detect; leave it out, or leave out --no-detect")
        if options.quarantine and not options.no_detect:
            what = "belongs to --no-detect; alarms of Detect are acted on by 'kinwatch cloud mitigate'"
            raise ConfigInvalid(f"command line: --quarantine: {what}")
    from monitor.cloud.template import Wanted

    default = Wanted(detect=not no_detect)
    if not made:
        return default
    return Wanted(
        detect=default.detect,
        targets=tuple(dict.fromkeys(options.target)) or default.targets,
        export_topic=default.export_topic if options.export_topic is None else options.export_topic,
        existing=tuple(dict.fromkeys(options.existing_metric)),
        quarantine=tuple(dict.fromkeys(options.quarantine)),
    )


def order(options: argparse.Namespace) -> Order:
    """Return what the flags say of the account. Raises ConfigInvalid."""
    stack, thing, bucket = (getattr(options, name, "") for name in ("stack", "thing", "bucket"))
    if stack and not _STACK.match(stack):
        what = "letters, digits and -, a letter first, 128 at most"
        raise ConfigInvalid(f"command line: --stack: expected {what}, found {stack!r}")
    if thing and not _THING.match(thing):
        raise ConfigInvalid(f"command line: --thing: expected a name of [a-zA-Z0-9:_-], 1 to 128, found {thing!r}")
    if bucket and not _BUCKET.match(bucket):
        raise ConfigInvalid(f"command line: --bucket: expected a name of [a-zA-Z0-9._-], 3 to 255, found {bucket!r}")
    parameters = {}
    if getattr(options, "email", None) is not None:
        if options.email and not _ADDRESS.match(options.email):
            raise ConfigInvalid(f"command line: --email: expected an address, or nothing, found {options.email!r}")
        parameters["AlarmEmail"] = options.email
    if getattr(options, "retention_days", None) is not None:
        if not options.no_detect:
            raise ConfigInvalid("command line: --retention-days: belongs to --no-detect; Detect keeps metrics 14 days")
        parameters["RetentionDays"] = str(options.retention_days)
    from monitor.cloud.order import Order

    of_detect = [getattr(options, name, None) for name in ("target", "export_topic", "existing_metric")]
    return Order(
        step=options.step,
        region=options.region,
        aws_profile=options.aws_profile,
        stack=stack,
        bucket=bucket,
        parameters=parameters,
        yes=getattr(options, "yes", False),
        json=getattr(options, "json", False),
        drift=not getattr(options, "no_drift", False),
        revert_drift=getattr(options, "revert_drift", False),
        thing=thing,
        no_detect=getattr(options, "no_detect", False),
        fall_back=options.step == "apply" and not any(of_detect),
    )


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of days, 1 or more, found {text!r}")
    return int(text)
