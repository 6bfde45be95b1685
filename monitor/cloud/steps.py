"""`kinwatch cloud check|diff|apply|destroy`: what each does, in order.

Owns whose a stack is, when somebody is asked, and what is told. Refuses to know AWS's calls and how templates are
written.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.cloud import changeset, check, stack
from monitor.cloud.compare import STACK, changes
from monitor.cloud.drift import drift
from monitor.cloud.reasons import NO_DETECT, no_detect
from monitor.cloud.words import Change, counted, kind_of, lines, moved, name_of, resource_changes
from monitor.errors import CloudRefused, ConfigInvalid
from monitor.sinks.text import duration, pad, safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from monitor.cloud.aws import Aws
    from monitor.cloud.order import Order
    from monitor.cloud.parts import Json
    from monitor.cloud.stack import Event, Stack
    from monitor.schema import Defender

DIFFERS: Final = 1
UNCONFIRMED: Final = 1
_OURS: Final = "kinwatch: "
_DONE: Final = {
    "CREATE_COMPLETE": "made",
    "UPDATE_COMPLETE": "changed",
    "DELETE_COMPLETE": "removed",
    "DELETE_SKIPPED": "kept",
}
_AFTER: Final = {
    "DELETE_COMPLETE": "what it had made is removed again",
    "ROLLBACK_COMPLETE": "what it had made is removed again",
    "UPDATE_ROLLBACK_COMPLETE": "the stack is as it was before",
}
"""What a failed attempt leaves, by the state of the stack."""


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """Where the user is, and the account."""

    aws: Aws
    tell: Callable[[str], None]
    """Prints a line."""
    confirm: Callable[[str], bool]
    """Asks. Raises ConfigInvalid: nobody is there."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration wants of the account."""

    document: Json
    profile: str
    """Name of the security profile, which the stack is marked by."""
    stack: str
    """Name of the stack."""


def check_account(desk: Desk, order: Order, made: Made, defender: Defender | None) -> int:
    """Print what the account has, lacks and would refuse. Returns 4 when it would refuse something."""
    account = check.Account(desk.aws, made.document, made.stack)
    found: list[check.Finding] = []
    if not order.json:
        desk.tell(f"account, for the security profile {made.profile}")
    for one in check.everything(account, defender):
        found.append(one)
        if not order.json:
            for line in check.lines([one]):
                desk.tell(line)
    if order.json:
        desk.tell(msgspec.json.encode(found).decode())
    return CloudRefused.exit_code if any(one.ok is False for one in found) else 0


def diff(desk: Desk, order: Order, made: Made) -> int:
    """Print what apply would change, and what somebody changed by hand. Returns 1 when there is something."""
    found = _own(desk, made)
    if found is not None and (found.empty or found.husk):
        found = None
    present = stack.template(desk.aws, found) if found is not None else {}
    differing = changes(present, made.document)
    if found is not None:
        differing += _settings(found, order, made)
    by_hand, unseen = _by_hand(desk, order, found, present)
    if order.json:
        desk.tell(msgspec.json.encode({"changes": differing, "drift": by_hand, "unseen": unseen}).decode())
        return DIFFERS if differing or by_hand else 0
    where = f"stack {made.stack} in {desk.aws.region}"
    if found is None:
        desk.tell(f"{where} is not there: apply makes it\n")
    if not differing and not by_hand:
        desk.tell(f"{where}: nothing differs{f'; {unseen}' if unseen else ''}")
        return 0
    for line in lines(differing):
        desk.tell(line)
    if by_hand:
        desk.tell("changed by hand since; 'kinwatch cloud apply --revert-drift' changes it back\n")
        for line in lines(by_hand):
            desk.tell(line)
    desk.tell(f"{where}: {_summary(differing, by_hand)}{f'; {unseen}' if unseen and found is not None else ''}")
    return DIFFERS


def _by_hand(desk: Desk, order: Order, found: Stack | None, present: Json) -> tuple[list[Change], str]:
    """What somebody changed by hand, and why that may not be all."""
    if not order.drift:
        return [], "nobody looked for changes by hand"
    if found is None:
        return [], ""
    if found.busy:
        return [], f"nobody looked for changes by hand: the stack is {found.status}"
    by_hand, why = drift(desk.aws, found, present["Resources"])
    return by_hand, f"CloudFormation could not look for every change by hand: {safe(why)}" if why else ""


def apply(desk: Desk, order: Order, made: Made, without_detect: Callable[[], Made]) -> int:
    """Show the plan, ask, do it, and wait for its end. Returns 0 when everything is as wanted, 1 when it was not asked.

    `without_detect` makes what an account gets that has no Detect. Raises CloudRefused: what failed, and why.
    """
    found = _settled(desk, made)
    made = _accepted(desk, order, made, without_detect)
    changeset.sendable(made.document, order.bucket)
    if found is not None and found.husk:
        if not _removed_first(desk, order, found):
            return UNCONFIRMED
        found = None
    plan = changeset.plan(
        desk.aws,
        made.stack,
        made.document,
        present=found,
        profile=made.profile,
        parameters=order.parameters,
        bucket=order.bucket,
        revert_drift=order.revert_drift,
    )
    if plan is None:
        desk.tell(f"stack {made.stack} in {desk.aws.region}: nothing to do")
        return 0
    account = check.Account(desk.aws, made.document, made.stack).identity
    desk.tell(f"stack {made.stack} in {desk.aws.region}, account {account['Account']}, as {account['Arn']}")
    if found is not None and stack.TAG not in found.tags:
        desk.tell("it was deployed by hand from a template of kinwatch, and is taken over")
    desk.tell("")
    for line in lines(plan.changes):
        desk.tell(line)
    desk.tell(f"{counted(plan.changes) or 'tags of the stack to be changed'}")
    if not (order.yes or _asked(desk, plan)):
        changeset.discard(desk.aws, plan)
        desk.tell("nothing was changed")
        return UNCONFIRMED
    return _done(desk, made, plan)


def destroy(desk: Desk, order: Order, made: Made) -> int:
    """Show what would be removed, ask, remove it. Returns 0 when it is gone, 1 when it was not asked.

    Raises CloudRefused: it is not ours, or something stays.
    """
    found = _own(desk, made, strict=True)
    if found is not None and found.busy:
        found = _waited(desk, found)
    if found is None or found.status == "DELETE_COMPLETE":
        desk.tell(f"stack {made.stack} in {desk.aws.region} is not there: nothing to remove")
        return 0
    present = {} if found.empty else stack.template(desk.aws, found)["Resources"]
    gone = resource_changes(stack.resources(desk.aws, found), present)
    desk.tell(f"stack {made.stack} in {desk.aws.region}, made for the security profile {made.profile}\n")
    for line in lines(gone):
        desk.tell(line)
    desk.tell(counted(gone) or "there is nothing in it")
    if not order.yes and not desk.confirm("Remove it?"):
        desk.tell("nothing was changed")
        return UNCONFIRMED
    ended, failures = _watched(desk, lambda tell: stack.remove(desk.aws, found, tell))
    if ended.status != "DELETE_COMPLETE":
        why = f"{ended.status}: {_why(ended, failures)}"
        raise CloudRefused(f"stack {made.stack}: {why}; take away what still uses it, then destroy again")
    desk.tell(f"done: stack {made.stack} is gone")
    return 0


def _own(desk: Desk, made: Made, *, strict: bool = False) -> Stack | None:
    """The stack, which is ours; None: there is none. `strict`: only if it bears our mark, or has our plans alone.

    Raises CloudRefused: it is not.
    """
    found = stack.find(desk.aws, made.stack)
    if found is None:
        return None
    owner = found.tags.get(stack.TAG)
    if owner == made.profile or (owner is None and not strict and found.description.startswith(_OURS)):
        return found
    if owner is None and found.empty and (not strict or changeset.only_ours(desk.aws, found)):
        return found  # it bears no mark before it is made
    whose = f"belongs to the security profile {owner}" if owner else "was not made by 'kinwatch cloud apply'"
    remedy = "give another --stack"
    if owner is None and strict:
        remedy = f"it stays; remove it with 'aws cloudformation delete-stack --stack-name {found.name}' if you mean it"
    raise CloudRefused(f"stack {made.stack} in {desk.aws.region} {whose}; {remedy}")


def _settled(desk: Desk, made: Made) -> Stack | None:
    """The stack, when nothing is done to it any more."""
    found = _own(desk, made)
    if found is not None and found.busy:
        found = _waited(desk, found)
        if found.status == "DELETE_COMPLETE":
            return None
    if found is not None and found.status == "UPDATE_ROLLBACK_FAILED":
        raise CloudRefused(
            f"stack {made.stack}: {found.status}: {found.reason or 'AWS gives no reason'}; "
            f"{stack.REMEDIES[found.status].replace('NAME', made.stack)}"
        )
    return found


def _waited(desk: Desk, found: Stack) -> Stack:
    desk.tell(f"stack {found.name}: {found.status}, begun before; waiting for its end")
    before = stack.seen(desk.aws, found.id)
    return _watched(desk, lambda tell: stack.follow(desk.aws, found.id, before, tell))[0]


def _accepted(desk: Desk, order: Order, made: Made, without_detect: Callable[[], Made]) -> Made:
    """What AWS will take, as far as it says so beforehand: `made`, or what there is without Detect."""
    findings = list(check.before(check.Account(desk.aws, made.document, made.stack)))
    if any(one.no_detect for one in findings):
        if not order.fall_back:
            raise CloudRefused(NO_DETECT)
        desk.tell(f"{NO_DETECT}; that is what follows\n")
        made = without_detect()
        findings = list(check.before(check.Account(desk.aws, made.document, made.stack)))
    wrong = [one for one in findings if one.ok is False]
    shown = wrong + [one for one in findings if one.ok is None and one.remedy]
    for line in check.lines(shown):
        desk.tell(line)
    if wrong:
        raise CloudRefused(f"stack {made.stack}: AWS would refuse it, as said above; nothing was changed")
    return made


def _removed_first(desk: Desk, order: Order, found: Stack) -> bool:
    """Remove what is left of a failed attempt, if somebody says so."""
    desk.tell(f"stack {found.name} is what is left of a failed attempt ({found.status}); it has to go first\n")
    left = [one for one in stack.resources(desk.aws, found) if one["ResourceStatus"] != "DELETE_COMPLETE"]
    gone = resource_changes(left, {})
    for line in lines(gone):
        desk.tell(line)
    if not order.yes and not desk.confirm("Remove it?"):
        desk.tell("nothing was changed")
        return False
    ended, failures = _watched(desk, lambda tell: stack.remove(desk.aws, found, tell))
    if ended.status != "DELETE_COMPLETE":
        raise CloudRefused(f"stack {found.name}: {ended.status}: {_why(ended, failures)}; take that away by hand first")
    return True


def _asked(desk: Desk, plan: changeset.Plan) -> bool:
    """Ask; where nobody is there to answer, or it is broken off, the plan goes."""
    try:
        return desk.confirm("Do it?")
    except (ConfigInvalid, KeyboardInterrupt):
        changeset.discard(desk.aws, plan)
        raise


def _done(desk: Desk, made: Made, plan: changeset.Plan) -> int:
    begun = time.monotonic()
    ended, failures = _watched(desk, lambda tell: changeset.execute(desk.aws, plan, tell), made.document["Resources"])
    if not ended.good or ended.status == "DELETE_COMPLETE":
        why = _why(ended, failures)
        if no_detect(why):
            why = f"{why.rstrip('.')}; {NO_DETECT}"
        after = _AFTER.get(ended.status, "some of it may be there")
        raise CloudRefused(f"stack {made.stack}: {ended.status}: {why}; {after}; apply again when that is mended")
    desk.tell(f"done in {duration((time.monotonic() - begun) * 1000)}: stack {made.stack} is {ended.status}")
    width = max(map(len, ended.outputs), default=0)
    for key, value in sorted(ended.outputs.items()):
        desk.tell(safe(f"  {pad(key, width)}  {value}"))
    if ended.parameters.get("AlarmEmail"):
        desk.tell(f"  {ended.parameters['AlarmEmail']} gets alarms once the mail with the link is answered")
    return 0


def _watched(
    desk: Desk, work: Callable[[Callable[[Event], None]], Stack], known: Mapping[str, Json] | None = None
) -> tuple[Stack, list[str]]:
    """Do something to a stack and print what happens. Returns the stack, and what failed."""
    failures: list[str] = []

    def tell(event: Event) -> None:
        name = f"{kind_of(event.type)} {name_of(known or {}, event.logical, event.physical)}"
        if event.status.endswith("_FAILED") and event.type != STACK:
            if "cancelled" not in event.reason.lower():
                failures.append(f"{name}: {event.reason}")
            desk.tell(safe(f"  FAIL     {name}: {event.reason}"))
        elif event.type != STACK and event.status in _DONE:
            desk.tell(safe(f"  {pad(_DONE[event.status], 8)} {name}"))

    try:
        return work(tell), failures
    except KeyboardInterrupt:
        desk.tell("broken off; CloudFormation goes on by itself, and the same command waits for it")
        raise


def _why(ended: Stack, failures: list[str]) -> str:
    return safe("; ".join(one.rstrip(".") for one in failures) or ended.reason or "AWS gives no reason")


def _settings(found: Stack, order: Order, made: Made) -> list[Change]:
    """What differs beside the template: the mark of the stack, and parameters."""
    details = [
        moved(key, found.parameters.get(key), value)
        for key, value in order.parameters.items()
        if found.parameters.get(key) != value
    ]
    if found.tags.get(stack.TAG) != made.profile:
        details.append(moved(stack.TAG, found.tags.get(stack.TAG), made.profile))
    return [Change(sign="~", type=STACK, name=found.name, details=tuple(details))] if details else []


def _summary(differing: Iterable[Change], by_hand: list[Change]) -> str:
    parts = [counted(differing), f"{len(by_hand)} changed by hand" if by_hand else ""]
    return ", ".join(filter(None, parts))
