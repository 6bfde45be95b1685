"""The flags of `kinwatch learn`, and what they mean as options.

Owns their names, their help and their limits. Refuses to import anything that takes time: help is instant.
"""

# ruff: noqa: PLC0415 - what costs time is imported after the flags are found right

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from monitor.options import LearnOptions

SUMMARY: Final = "watch for a while and write what was seen as expectations"
MORE: Final = (
    "\nThe configuration goes to stdout, unless -o or --write says otherwise. A file that\n"
    "exists is compared with what was seen and left as it is, unless it is widened."
)
CONFIGURATION: Final = "kinwatch.toml"
PROFILE: Final = "profile.json"
_LONGEST: Final = (32, 128)


def add(verb: argparse.ArgumentParser) -> None:
    """Add the flags to the verb."""
    verb.add_argument("--duration-s", type=_seconds, metavar="N", help="how long to watch, seconds (default: 60)")
    verb.add_argument("--record", type=Path, metavar="FILE", help="also keep the binary records")
    verb.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="learn from a record file instead of watching"
    )
    way = verb.add_mutually_exclusive_group()
    way.add_argument("-o", "--output", type=Path, metavar="FILE", help="the configuration to write, TOML")
    way.add_argument(
        "--write", type=Path, metavar="DIR", help=f"write {CONFIGURATION} and {PROFILE} into this directory"
    )
    verb.add_argument(
        "--profile", type=Path, metavar="FILE", help="also write the security profile that AWS can judge, JSON"
    )
    verb.add_argument(
        "--widen",
        type=Path,
        metavar="FILE",
        help="what this configuration expects and what was seen, together; in its place, unless -o names another",
    )
    verb.add_argument(
        "--check", type=Path, metavar="FILE", help="also say how often each rule fires on this record file"
    )
    verb.add_argument(
        "--head-room",
        type=_percent,
        default=20,
        metavar="PERCENT",
        help="above the most that was seen, and one at least; 0: none (default: 20)",
    )
    verb.add_argument(
        "--networks",
        type=_networks,
        metavar="N[,N]",
        help="join destinations into networks of these prefix lengths, IPv4 and IPv6, as in 24,64 "
        "(default: each address by itself)",
    )


def options(found: argparse.Namespace) -> LearnOptions:
    """Return what the flags say. ConfigInvalid: they contradict each other."""
    from monitor.options import LearnOptions

    if found.source is not None:
        if found.config or found.watch or found.exe or found.pid:
            raise ConfigInvalid("--from takes the watches of the record; leave out -c, --watch, --exe and --pid")
        if found.record is not None or found.duration_s is not None:
            raise ConfigInvalid("--from watches nothing; leave out --record and --duration-s")
    output, profile = found.output, found.profile
    if found.write is not None:
        output, profile = found.write / CONFIGURATION, profile or found.write / PROFILE
    return LearnOptions(
        duration_s=60.0 if found.duration_s is None else found.duration_s,
        source=found.source,
        record=found.record,
        output=output,
        profile=profile,
        widen=found.widen,
        check=found.check,
        head_room=found.head_room,
        networks=found.networks,
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return value


def _percent(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 1000:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"expected percent, a whole number of 0 to 1000, found {text!r}")
    return int(text)


def _networks(text: str) -> tuple[int, int]:
    parts = text.split(",")
    right = len(parts) in {1, 2} and all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts)  # noqa: PLR2004
    lengths = [int(part) for part in parts] if right else []
    if not lengths or any(length > most for length, most in zip(lengths, _LONGEST, strict=False)):
        raise argparse.ArgumentTypeError(f"expected prefix lengths such as 24 or 24,64, found {text!r}")
    return lengths[0], lengths[1] if len(lengths) > 1 else _LONGEST[1]
