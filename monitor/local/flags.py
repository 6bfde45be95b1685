"""The flags of `kinwatch defender`, and what they mean as options.

Owns their names, their help and their limits. Refuses to import anything that takes time: help is instant.
"""

# ruff: noqa: PLC0415 - what costs time is imported after the flags are found right

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitor.local.command import DefenderOptions

SUMMARY = "be a local Device Defender: hear reports, judge and answer them"
MORE = "\nIt needs an MQTT broker and no AWS account. Without the three files of TLS it\nconnects in plain TCP."


def add(verb: argparse.ArgumentParser) -> None:
    """Add the flags to the verb."""
    verb.add_argument("--endpoint", default="localhost", metavar="HOST", help="of the broker (default: localhost)")
    verb.add_argument("--port", type=_port, default=8883, metavar="N", help="of the broker (default: 8883)")
    verb.add_argument("--root-ca", default="", metavar="FILE", help="who signed the broker's certificate, PEM")
    verb.add_argument("--certificate", default="", metavar="FILE", help="ours, PEM")
    verb.add_argument("--private-key", default="", metavar="FILE", help="its key, PEM, not readable by others")
    verb.add_argument(
        "--client-id", default="kinwatch-defender", metavar="ID", help="on the broker (default: kinwatch-defender)"
    )
    verb.add_argument(
        "--profile",
        default="",
        metavar="FILE",
        help="security profile to judge reports by, as 'aws iot describe-security-profile' prints it",
    )
    verb.add_argument(
        "--min-spacing-s",
        type=_wait,
        default=300.0,
        metavar="N",
        help="refuse a report sooner than this after the thing's last accepted one; 0: none (default: 300)",
    )
    verb.add_argument(
        "--once", type=_count, nargs="?", const=1, default=0, metavar="N", help="end after N reports; alone: after one"
    )
    verb.add_argument("--json", action="store_true", help="JSON Lines instead of text")
    faults = verb.add_argument_group("faults", "what goes wrong on purpose, to try a publisher out")
    faults.add_argument("--drop-every", type=_count, default=0, metavar="N", help="do not send every N-th answer")
    faults.add_argument("--late-s", type=_wait, default=0.0, metavar="N", help="answer N seconds late")
    faults.add_argument("--foreign-id", action="store_true", help="answer with the id of another report")
    faults.add_argument("--reject-code", default="", metavar="CODE", help="refuse good reports with this ErrorCode")


def options(found: argparse.Namespace) -> DefenderOptions:
    """Return what the flags say."""
    from monitor.defender.responder import Faults
    from monitor.local.command import DefenderOptions

    return DefenderOptions(
        endpoint=found.endpoint,
        port=found.port,
        root_ca=found.root_ca,
        certificate=found.certificate,
        private_key=found.private_key,
        client_id=found.client_id,
        profile=found.profile,
        min_spacing_s=found.min_spacing_s,
        json=found.json,
        once=found.once,
        faults=Faults(
            drop_every=found.drop_every,
            late_s=found.late_s,
            foreign_id=found.foreign_id,
            reject_code=found.reject_code,
        ),
    )


def _count(text: str) -> int:
    return _whole(text, "a whole number, 1 or more", math.inf)


def _port(text: str) -> int:
    return _whole(text, "a port, 1 to 65535", 65_535)


def _whole(text: str, what: str, most: float) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"expected {what}, found {text!r}")
    return int(text)


def _wait(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, 0 or more, found {text!r}")
    return value
