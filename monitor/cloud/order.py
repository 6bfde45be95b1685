"""What flags say about an account and about how to go about it; knows nothing else."""

from __future__ import annotations

import msgspec


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What flags say about the account."""

    step: str
    region: str | None = None
    aws_profile: str | None = None
    stack: str = ""
    """Empty: named after the security profile."""
    bucket: str = ""
    parameters: dict[str, str] = {}
    """Of the template, to be set."""
    yes: bool = False
    json: bool = False
    drift: bool = True
    revert_drift: bool = False
    thing: str = ""
    """Empty: the one of the configuration."""
    no_detect: bool = False
    fall_back: bool = False
    """Without Detect make what there is for accounts without it."""
