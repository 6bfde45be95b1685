"""A configuration as a CloudFormation template.

Owns what belongs to it with and without Detect, the targets, and CloudFormation's own limits. Pure: no file, no
network. Refuses to know flags and text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.cloud import detect, ingest, isolation
from monitor.cloud.names import reported
from monitor.cloud.parts import Json, base_of, device_policy, iot_arn, ref, settings_of
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from monitor.config import Config
    from monitor.detect.metrics import MetricKind
    from monitor.detect.profile import Profile

NAME: Final = "kinwatch"
"""Of the security profile, when its file gives it none."""
ALL: Final = "all"
MAX_RESOURCES: Final = 500
"""Of a CloudFormation template."""
QUOTA_METRICS: Final = 100
"""Custom metrics of an account, until the quota is raised."""
_TARGET: Final = re.compile(
    r"arn:aws(-[a-z]+)*:iot:[a-z0-9-]+:[0-9]{12}:"
    r"(thinggroup/[a-zA-Z0-9:_-]{1,128}|all/(registered-|unregistered-)?things)\Z"
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What flags may say."""

    detect: bool = True
    """False: the account has no Device Defender Detect."""
    targets: tuple[str, ...] = (ALL,)
    """ARNs of what the profile is attached to; ALL: every thing."""
    export_topic: str = "kinwatch/metrics"
    """Where Detect exports the metrics to; "": nowhere."""
    existing: tuple[str, ...] = ()
    """Custom metrics that the account has already, of another stack: they are used, not defined."""
    quarantine: tuple[str, ...] = ()
    """Without Detect: behaviors whose alarms put the thing into quarantine; isolation.ALL: every one."""


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A template, and what its reader should know, a sentence each."""

    document: Json
    notes: tuple[str, ...]


def make(config: Config, wanted: Wanted, written: Json, profile: Profile) -> Template:
    """Write what an account needs for devices with this configuration.

    `written`: the object in the file of the security profile, {} without one; `profile`: what it means. Raises
    ConfigInvalid: what AWS would refuse.
    """
    name = profile.name or NAME
    base = base_of(name)
    if wanted.detect:
        kinds = reported(config)
        sections, notes = detect.parts(
            config,
            kinds,
            written,
            name=name,
            base=base,
            targets=[_target(target) for target in wanted.targets],
            export_topic=_export(wanted.export_topic),
            existing=_existing(wanted.existing, kinds),
        )
        if len(kinds) > QUOTA_METRICS:
            notes.append(f"{len(kinds)} custom metrics, and an account has {QUOTA_METRICS} until that quota is raised")
    else:
        behaviors = alarming(config, profile)
        sections, notes = ingest.parts(config, behaviors, base=base)
        if wanted.quarantine:
            sections["Resources"] |= isolation.parts(settings_of(config), behaviors, wanted.quarantine, base=base)
    sections["Resources"]["DevicePolicy"] = device_policy(settings_of(config), base, config)
    sections["Outputs"]["DevicePolicyName"] = {"Value": ref("DevicePolicy")}
    found = len(sections["Resources"])
    if found > MAX_RESOURCES:
        what = f"{found} resources, and a CloudFormation template has at most {MAX_RESOURCES}"
        raise ConfigInvalid(f"{config.origin}: {what}; watch less, or make a configuration for each part of the fleet")
    document = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"kinwatch: {'Device Defender Detect' if wanted.detect else 'IoT rules, without Detect'}",
        **sections,
    }
    return Template(document=document, notes=tuple(notes))


def alarming(config: Config, profile: Profile) -> list[str]:
    """Behaviors that messages on the alarm topic may name: keys of `expect`, and those of the profile judged here."""
    found: list[str] = []
    for watch in config.watches:
        expect = msgspec.structs.asdict(watch.expect)
        keys = [key for key, value in expect.items() if value is not None and value is not True]
        found += ["destinations" if key == "destination_names" else key for key in keys]  # one alarm for both
        if watch.expect.executables is not None or watch.enforce != "off":
            found.append("root_image")
        if watch.enforce != "off":
            found.append("enforcement")
    found += [behavior.name for behavior in profile.behaviors if not behavior.suppressed]
    return list(dict.fromkeys(found))


def _existing(names: tuple[str, ...], kinds: Mapping[str, MetricKind]) -> tuple[str, ...]:
    for name in names:
        if name not in kinds:
            known = ", ".join(sorted(kinds))
            raise ConfigInvalid(f"command line: --existing-metric: {name!r} is none of this configuration: {known}")
    return names


def _target(text: str) -> str | Json:
    if text == ALL:
        return iot_arn("all/things")
    if not _TARGET.match(text):
        what = "the ARN of a thing group, all/things, all/registered-things or all/unregistered-things"
        raise ConfigInvalid(f"command line: --target: expected {ALL}, or {what}, found {text!r}; a thing is no target")
    return text


def _export(topic: str) -> str:
    if topic and not re.fullmatch(r"(?!\$)[a-zA-Z0-9_./:@=-]{1,256}", topic):
        raise ConfigInvalid(f"command line: --export-topic: expected a topic of [a-zA-Z0-9_./:@=-], found {topic!r}")
    return topic
