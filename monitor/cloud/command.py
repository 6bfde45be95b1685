"""`kinwatch cloud`: reads the security profile, says the notes, writes the text or hands it to the step.

Owns the files of the command and its terminal. Refuses to know what a template consists of and what a step does.
"""

# ruff: noqa: PLC0415 - a step imports what it needs

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import msgspec

from monitor.cloud.parts import MAX_INLINE_BYTES, base_of
from monitor.cloud.template import NAME, make
from monitor.detect.profile import load
from monitor.errors import ConfigInvalid
from monitor.judging.plan import NO_PROFILE, written
from monitor.sinks.text import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from monitor.cloud.order import Order
    from monitor.cloud.parts import Json
    from monitor.cloud.steps import Made
    from monitor.cloud.template import Template, Wanted
    from monitor.config import Config
    from monitor.detect.profile import Profile


def template(config: Config, wanted: Wanted, output: Path | None) -> str:
    """Write the template to `output`, and return "", or return its text, JSON.

    Notes go to stderr. Raises ConfigInvalid.
    """
    made = make(config, wanted, *_profile(config))
    text = json.dumps(made.document, indent=1) + "\n"  # not wider: its bytes are limited
    _note(made)
    if len(text.encode()) > MAX_INLINE_BYTES:
        say(f"the template has {len(text.encode())} bytes: 'aws cloudformation deploy' needs --s3-bucket for it")
    if output is None:
        return text
    try:
        output.write_text(text)
    except OSError as error:
        raise ConfigInvalid(
            f"command line: --output: {output}: {error.strerror}; name a file that can be written"
        ) from error
    return ""


def run(config: Config, wanted: Wanted, order: Order, tell: Callable[[str], None]) -> int:
    """Take a step that asks AWS; `tell` prints. Returns the exit code. Raises ConfigInvalid, CloudRefused."""
    written_as, profile = _profile(config)
    name = profile.name or NAME
    from monitor.cloud import mitigate, steps
    from monitor.cloud.aws import connect

    def made(wanted: Wanted) -> Made:
        document: Json = {}
        if order.step not in {"destroy", "mitigate"}:  # they need no more than the name
            found = make(config, wanted, written_as, profile)
            _note(found)
            document = found.document
        return steps.Made(document=document, profile=name, stack=order.stack or stack_name(name))

    target = made(wanted)
    desk = steps.Desk(
        aws=connect(order.step, order.region, order.aws_profile),
        tell=lambda line: tell(f"{line}\n"),
        confirm=lambda question: _confirm(question, tell),
    )
    if order.step == "check":
        return steps.check_account(desk, order, target, config.defender)
    if order.step == "diff":
        return steps.diff(desk, order, target)
    if order.step == "apply":
        return steps.apply(desk, order, target, lambda: made(msgspec.structs.replace(wanted, detect=False)))
    if order.step == "destroy":
        return steps.destroy(desk, order, target)
    thing = order.thing or (config.defender.thing if config.defender else "")
    if not thing:
        raise ConfigInvalid("command line: which thing? give --thing, or a configuration with defender.thing")
    return mitigate.run(desk, order, profile=name, base=base_of(name), thing=thing)


def stack_name(profile: str) -> str:
    """Name of the stack of a security profile, as CloudFormation takes it."""
    base = base_of(profile)
    return base if base == NAME else f"{NAME}-{base}"


def _profile(config: Config) -> tuple[Json, Profile]:
    """The object in the file of the security profile, and what it means."""
    found = written(config)
    if found is None:
        return {}, NO_PROFILE
    return msgspec.json.decode(found[0].removeprefix(b"\xef\xbb\xbf")), load(*found)


def _note(made: Template) -> None:
    for note in made.notes:
        say(note)


def _confirm(question: str, tell: Callable[[str], None]) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigInvalid("command line: nobody is there to say yes; look at the plan, then give --yes")
    tell(f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
