"""What the command line asked for beside the configuration; knows neither argparse nor what the agent does with it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - msgspec reads the fields' types
from typing import Literal

import msgspec

from monitor import config
from monitor.config import Config
from monitor.overlay import Overlay, laid_over

CaptureKind = Literal["auto", "core", "bcc", "netlink", "poll"]


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """Flags that stand over the file's values, kept so that a reload can lay them over the new file again."""

    names: tuple[str, ...] = ()
    """`--watch NAME`: process names."""
    exes: tuple[str, ...] = ()
    """`--exe PATH`."""
    pids: tuple[int, ...] = ()
    """`--pid PID`."""
    command: tuple[str, ...] = ()
    """`-- COMMAND ARG...`."""
    expects: tuple[str, ...] = ()
    """`--expect KIND=VALUE`, as typed."""
    capture: CaptureKind | None = None
    """`--capture`; None: the file decides."""
    log: str | None = None
    """`--log`; None: the file decides."""
    report_to: str | None = None
    """`--report-to`; None: the file decides."""
    interval_s: int | None = None
    """`--interval-s`; None: the file decides."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`kinwatch run`."""

    config_path: Path | None = None
    """The file that was read; None: there is none and the flags are everything."""
    log: str = "-"
    """Where event lines go: a path, or "-" for stdout. The file and the flag are already weighed."""
    format: Literal["auto", "json"] = "auto"
    """auto: a table when stdout is a terminal and `log` is "-", JSON Lines otherwise."""
    report_to: str | None = None
    """Where every report goes: a path, "-" for stdout, None for nowhere. The file and the flag are already weighed."""
    once: bool = False
    """End after the first report."""
    record: Path | None = None
    """Keep the accepted records in this file."""
    fresh: bool = False
    """Start anew instead of taking over what is pinned."""
    command: tuple[str, ...] = ()
    """`-- COMMAND ARG...`: run it, watch it, end with the last of its kin."""
    attended: bool = False
    """A tool in a terminal: no pins, no control socket; it says what is accepted, and ends when it cannot connect."""
    dry: bool = False
    """Print reports to stdout instead of publishing them."""
    overrides: Overrides = Overrides()
    """What a reload has to lay over the file again: `settled(options.config_path, options.overrides)`."""


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`kinwatch report`."""

    format: Literal["json", "cbor"] = "json"
    names: Literal["long", "short"] = "long"
    duration_s: float = 10.0
    """How long the capture of its own watches, seconds."""


class LearnOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`kinwatch learn`."""

    duration_s: float = 60.0
    """How long the capture of its own watches, seconds."""
    source: Path | None = None
    """A record file to learn from, instead of a capture."""
    record: Path | None = None
    """Keep the records of the capture in this file."""
    output: Path | None = None
    """The configuration to write; None: stdout."""
    profile: Path | None = None
    """The security profile to write; None: none."""
    widen: Path | None = None
    """A configuration whose expectations are to hold what was seen as well."""
    check: Path | None = None
    """Another record file, to say how often each rule fires on it."""
    head_room: int = 20
    """Percent above the most that was seen."""
    networks: tuple[int, int] | None = None
    """Lengths of the IPv4 and IPv6 prefixes that destinations are joined to; None: each address by itself."""


def settled(path: Path | None, overrides: Overrides, trial: Overlay | None = None) -> Config:
    """Read the file, if there is one, and lay over it what was set from afar and the flags.

    `trial`: the text that is tried now, in place of the confirmed one. Raises ConfigInvalid.
    """
    base = Config() if path is None else laid_over(path, trial)
    return config.with_command_line(base, **msgspec.structs.asdict(overrides))
