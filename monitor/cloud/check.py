"""What an account has, lacks and would refuse of a template, one finding after the other.

Owns the questions, which change nothing, and the words of their answers. Refuses to know how a template is written.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.cloud import filled, stack
from monitor.cloud.behaviors import METRIC_TYPE
from monitor.cloud.changeset import text_of
from monitor.cloud.parts import MAX_INLINE_BYTES
from monitor.cloud.template import QUOTA_METRICS
from monitor.errors import CloudRefused
from monitor.sinks.text import pad, safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from monitor.cloud.aws import Aws
    from monitor.cloud.parts import Json
    from monitor.cloud.stack import Stack
    from monitor.schema import Defender

MAX_PROFILES: Final = 5
"""Security profiles of one target."""
_IOT: Final = "iot"
_GONE: Final = "ResourceNotFoundException"
_NAMED: Final = {
    filled.PROFILE_TYPE: ("SecurityProfileName", "DescribeSecurityProfile", "security profile"),
    "AWS::IoT::ThingGroup": ("ThingGroupName", "DescribeThingGroup", "thing group"),
    "AWS::IoT::MitigationAction": ("ActionName", "DescribeMitigationAction", "mitigation action"),
    "AWS::IoT::Policy": ("PolicyName", "GetPolicy", "policy"),
}
"""How to ask whether a name of that type is taken."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one question found."""

    name: str
    ok: bool | None
    """None: it could not be found out, or nobody knows; `detail` says why."""
    detail: str
    remedy: str = ""
    no_detect: bool = False
    """The account has no Detect."""


class Account:
    """Answers about an account, each asked for once."""

    def __init__(self, aws: Aws, document: Json, stack_name: str) -> None:
        self.aws, self.document, self.stack_name = aws, document, stack_name

    @cached_property
    def identity(self) -> Json:
        """Who asks: Account, Arn."""
        return self.aws.call("sts", "GetCallerIdentity")

    @cached_property
    def stack(self) -> Stack | None:
        """The stack, if it is there."""
        return stack.find(self.aws, self.stack_name)

    @cached_property
    def own(self) -> set[tuple[str, str]]:
        """Types and names of what is in the stack."""
        if self.stack is None or self.stack.empty:
            return set()
        found = stack.resources(self.aws, self.stack)
        names = {(one["ResourceType"], one.get("PhysicalResourceId", "")) for one in found}
        return names | {(kind, name.rpartition("/")[2]) for kind, name in names}

    @cached_property
    def metrics(self) -> set[str]:
        """Names of the custom metrics of the account."""
        return set(self.aws.pages(_IOT, "ListCustomMetrics", "metricNames"))


def before(account: Account) -> Iterator[Finding]:
    """Yield what has to be right before a template is applied; where there is no Detect, that is the last."""
    questions = {
        "detect": _detect,
        "behaviors": _behaviors,
        "metrics": _metrics,
        "names": _names,
        "targets": _targets,
    }
    for name, question in questions.items():
        for one in answered(name, question(account)):
            yield one
            if one.no_detect:
                return


def everything(account: Account, defender: Defender | None) -> Iterator[Finding]:
    """Yield every finding, the first wrong one about credentials being the last. `defender`: of the devices."""
    first = list(answered("credentials", _credentials(account)))
    yield from first
    if not all(one.ok for one in first):
        return
    yield from answered("endpoint", _endpoint(account, defender))
    yield from answered("stack", _stack(account))
    yield from answered("template", _template(account))
    yield from before(account)


def answered(name: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Yield what the question of that name finds while it is asked; what AWS refuses is a finding as well."""
    try:
        yield from found
    except CloudRefused as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Finding(
            name=name, ok=None if error.denied else False, detail=what, remedy=remedy, no_detect=error.no_detect
        )


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Write findings as doctor writes its steps."""
    for one in findings:
        word = "-" if one.ok is None else "ok" if one.ok else "FAIL"
        yield safe(f"  {word:5} {pad(one.name, 11)} {one.detail}")
        if one.remedy:
            yield safe(f"  {'':17} {one.remedy}")


def _credentials(account: Account) -> Iterator[Finding]:
    found = account.identity
    yield Finding(
        name="credentials", ok=True, detail=f"{found['Arn']}, account {found['Account']}, region {account.aws.region}"
    )


def _endpoint(account: Account, defender: Defender | None) -> Iterator[Finding]:
    found = account.aws.call(_IOT, "DescribeEndpoint", endpointType="iot:Data-ATS")["endpointAddress"]
    if defender is None:
        yield Finding(name="endpoint", ok=True, detail=f"{found}; write it as defender.endpoint on the devices")
    elif defender.endpoint == found:
        yield Finding(name="endpoint", ok=True, detail=f"{found}, where the devices connect to")
    else:
        yield Finding(
            name="endpoint",
            ok=None,
            detail=f"{found}, and the devices connect to {defender.endpoint}",
            remedy="another region or account? see --region and --aws-profile; a domain of your own is right as well",
        )


def _stack(account: Account) -> Iterator[Finding]:
    found = account.stack
    if found is None or found.empty:
        yield Finding(name="stack", ok=True, detail=f"{account.stack_name} is not there yet: apply makes it")
    elif stack.TAG not in found.tags:
        yield Finding(
            name="stack",
            ok=found.description.startswith("kinwatch:"),
            detail=f"{found.name}, {found.status}, was not made by 'kinwatch cloud apply'",
            remedy="apply takes it over if its template is one of kinwatch; else give another --stack",
        )
    else:
        yield Finding(
            name="stack",
            ok=found.good or found.busy or found.husk or found.status == "UPDATE_ROLLBACK_COMPLETE",
            detail=f"{found.name}, {found.status}, of the profile {found.tags[stack.TAG]}",
            remedy=stack.REMEDIES.get(found.status, "").replace("NAME", found.name),
        )


def _template(account: Account) -> Iterator[Finding]:
    text = text_of(account.document)
    size = len(text.encode())
    if size > MAX_INLINE_BYTES:
        yield Finding(
            name="template",
            ok=None,
            detail=f"{len(account.document['Resources'])} resources, {size} bytes",
            remedy=f"apply needs --bucket: CloudFormation takes {MAX_INLINE_BYTES} bytes in a call",
        )
        return
    account.aws.call("cloudformation", "ValidateTemplate", TemplateBody=text)
    yield Finding(
        name="template", ok=True, detail=f"{len(account.document['Resources'])} resources, CloudFormation takes it"
    )


def _detect(account: Account) -> Iterator[Finding]:
    if not filled.of_type(account.document, filled.PROFILE_TYPE):
        yield Finding(name="detect", ok=True, detail="not needed: devices judge, IoT rules carry their alarms")
        return
    pages = account.aws.pages(_IOT, "ListSecurityProfiles", "securityProfileIdentifiers")
    profiles = [one["name"] for one in pages]
    if profiles or account.metrics:
        what = f"security profiles: {len(profiles)}, custom metrics: {len(account.metrics)}"
        yield Finding(name="detect", ok=True, detail=f"the account has it ({what})")
        return
    yield Finding(
        name="detect",
        ok=None,
        detail="AWS answers, but the account has no security profile and no custom metric yet",
        remedy="if AWS refuses to make the first, apply takes back what it made; then use --no-detect",
    )


def _behaviors(account: Account) -> Iterator[Finding]:
    asked = filled.behaviors(account.document)
    if not asked:
        return
    answer = account.aws.call(_IOT, "ValidateSecurityProfileBehaviors", behaviors=asked)
    if answer.get("valid"):
        yield Finding(name="behaviors", ok=True, detail=f"{len(asked)}, and AWS finds them valid")
        return
    for wrong in answer.get("validationErrors") or [{}]:
        yield Finding(
            name="behaviors",
            ok=False,
            detail=wrong.get("errorMessage", "AWS finds them not valid and does not say why"),
            remedy="mend expect of the configuration, or the file of detect.security_profile",
        )


def _metrics(account: Account) -> Iterator[Finding]:
    defined = filled.metrics(account.document)
    if not defined:
        return
    foreign = sorted(one for one in account.metrics & defined.keys() if (METRIC_TYPE, one) not in account.own)
    for name in foreign:
        kind = account.aws.call(_IOT, "DescribeCustomMetric", metricName=name).get("metricType", "")
        if kind == defined[name]:
            detail, remedy = f"{name} is there already, not of this stack", f"use it: --existing-metric {name}"
        else:
            detail = f"{name} is there already as {kind}, and devices report {defined[name]}"
            remedy = "a type cannot be changed: delete that metric, or give the watch another name"
        yield Finding(name="metrics", ok=False, detail=detail, remedy=remedy)
    total = len(account.metrics | defined.keys())
    yield Finding(
        name="metrics",
        ok=True if total <= QUOTA_METRICS and not foreign else None,
        detail=f"{len(defined)} of this configuration, {total} in the account with them",
        remedy=f"an account has {QUOTA_METRICS} until that quota is raised" if total > QUOTA_METRICS else "",
    )


def _names(account: Account) -> Iterator[Finding]:
    taken: list[str] = []
    asked = 0
    for kind, (key, operation, word) in _NAMED.items():
        for properties in filled.of_type(account.document, kind).values():
            name = properties[key]
            asked += 1
            if (kind, name) not in account.own and _taken(account.aws, operation, key[0].lower() + key[1:], name):
                taken.append(f"{word} {name}")
    rules = {one["RuleName"] for one in filled.of_type(account.document, filled.RULE_TYPE).values()}
    foreign = {name for name in rules if (filled.RULE_TYPE, name) not in account.own}
    asked += len(rules)
    if foreign:
        there = {one["ruleName"] for one in account.aws.pages(_IOT, "ListTopicRules", "rules")}
        taken += [f"rule {name}" for name in sorted(foreign & there)]
    for name in taken:
        yield Finding(
            name="names",
            ok=False,
            detail=f"{name} is there already, not of stack {account.stack_name}",
            remedy="remove it if nobody needs it, or give the profile another securityProfileName",
        )
    if not taken:
        yield Finding(
            name="names", ok=True, detail=f"{asked} in AWS IoT that have to be free or of this stack, and are"
        )


def _taken(aws: Aws, operation: str, key: str, name: str) -> bool:
    arguments: dict[str, Any] = {key: name}
    try:
        aws.call(_IOT, operation, **arguments)
    except CloudRefused as error:
        if error.code == _GONE:
            return False
        raise
    return True


def _targets(account: Account) -> Iterator[Finding]:
    partition = account.identity["Arn"].split(":")[1]
    wanted = filled.targets(account.document, partition, account.aws.region, account.identity["Account"])
    (name,) = [
        one["SecurityProfileName"] for one in filled.of_type(account.document, filled.PROFILE_TYPE).values()
    ] or [""]
    for target in wanted:
        what = target.split(":", 5)[5]  # a group's name may have colons
        if f":{account.aws.region}:{account.identity['Account']}:" not in target:
            yield Finding(
                name="targets",
                ok=False,
                detail=f"{target} is not of region {account.aws.region}, account {account.identity['Account']}",
                remedy="see --target, --region and --aws-profile",
            )
            continue
        group = what.removeprefix("thinggroup/")
        if group != what and not _taken(account.aws, "DescribeThingGroup", "thingGroupName", group):
            remedy = f"make it: aws iot create-thing-group --thing-group-name {group}"
            yield Finding(name="targets", ok=False, detail=f"there is no thing group {group}", remedy=remedy)
            continue
        pages = account.aws.pages(
            _IOT, "ListSecurityProfilesForTarget", "securityProfileTargetMappings", securityProfileTargetArn=target
        )
        others = {one["securityProfileIdentifier"]["name"] for one in pages} - {name}
        yield Finding(
            name="targets",
            ok=len(others) < MAX_PROFILES,
            detail=f"{what}{f', which has {len(others)} other security profiles' if others else ''}",
            remedy=f"a target has {MAX_PROFILES} at most: detach one" if len(others) >= MAX_PROFILES else "",
        )
