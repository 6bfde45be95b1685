"""The flags of `kinwatch cloud`, and what they mean as options.

Owns their names, their help and which steps there are. Refuses to import anything that takes time: help is instant.
"""

# ruff: noqa: PLC0415 - what costs time is imported after the flags are found right

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    import argparse

    from monitor.cloud.template import Wanted

SUMMARY = "write what the AWS account needs for this configuration"
MORE = "\ntemplate prints a CloudFormation template; with the configuration it changes, AWS is\nnever called."
LATER: Final = {
    "apply": "aws cloudformation deploy --template-file FILE --stack-name kinwatch --capabilities CAPABILITY_IAM",
    "check": "aws cloudformation validate-template --template-body file://FILE",
    "diff": "aws cloudformation deploy --no-execute-changeset --template-file FILE --stack-name kinwatch "
    "--capabilities CAPABILITY_IAM",
    "destroy": "aws cloudformation delete-stack --stack-name kinwatch",
}
"""Steps that are not in this version, and what to call instead."""


def add(verb: argparse.ArgumentParser) -> None:
    """Add what is not about watches."""
    verb.add_argument("step", choices=("template", *LATER), metavar="STEP", help="template; others are refused, so far")
    verb.add_argument(
        "--no-detect", action="store_true", help="for accounts without Device Defender Detect: IoT rules instead"
    )
    verb.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="ARN",
        help="thing group that the security profile is attached to, repeatable; all: every thing (default: all)",
    )
    verb.add_argument(
        "--export-topic",
        metavar="TOPIC",
        help="where Detect exports metrics to, empty: nowhere (default: kinwatch/metrics)",
    )
    verb.add_argument("-o", "--output", type=Path, metavar="FILE", help="where it goes (default: stdout)")


def wanted(options: argparse.Namespace) -> Wanted:
    """Return what the flags say. Raises ConfigInvalid: a step that is not in this version, or a contradiction."""
    if options.step in LATER:
        what = f"'{options.step}' is not in this version"
        remedy = f"write the template with 'kinwatch cloud template -o FILE', then: {LATER[options.step]}"
        raise ConfigInvalid(f"kinwatch cloud: {what}; {remedy}")
    if options.no_detect:
        for flag, value in (("--target", options.target), ("--export-topic", options.export_topic)):
            if value:
                raise ConfigInvalid(f"command line: {flag}: belongs to Detect; leave it out, or leave out --no-detect")
    from monitor.cloud.template import Wanted

    default = Wanted()
    return Wanted(
        detect=not options.no_detect,
        targets=tuple(dict.fromkeys(options.target)) or default.targets,
        export_topic=default.export_topic if options.export_topic is None else options.export_topic,
    )
