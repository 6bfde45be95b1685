"""What the configured security profile means here: read from its file, and each behavior given its clock.

Owns the one look at the file and the words about what is not judged. Refuses to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.detect.clocks import clocks, expecting
from monitor.detect.profile import Profile, load
from monitor.detect.snapshot import NETWORK
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Collection

    from monitor.config import Config
    from monitor.detect.clocks import Judged, Key
    from monitor.detect.profile import Behavior

PACKETS: Final = frozenset({"wire_bytes_in", "wire_bytes_out", "packets_in", "packets_out"})
"""Fields of WatchSnapshot that `capture.packets` brings."""
NO_PROFILE: Final = Profile(name="", behaviors=(), elsewhere=())


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration with its security profile laid over it."""

    config: Config
    """Its watches expect what behaviors of the instant clock say."""
    profile: Profile
    judged: tuple[Judged, ...]
    """In the order of the profile."""

    @property
    def window(self) -> Profile:
        """The profile, with the behaviors that windows judge."""
        behaviors = tuple(one.behavior for one in self.judged if one.clock == "window" and one.behavior is not None)
        return msgspec.structs.replace(self.profile, behaviors=behaviors, elsewhere=())

    @property
    def names(self) -> dict[Key, Behavior]:
        """Behaviors of the profile that an expectation of a watch stands for."""
        return {(one.watch, one.key): one.behavior for one in self.judged if one.added and one.behavior is not None}

    def notes(self) -> list[str]:
        """Say what of the profile is not judged, a sentence each."""
        return [_note(one) for one in self.judged if one.clock == "none"]

    def found(self, unknown: Collection[str]) -> tuple[Judged, ...]:
        """Judge the clocks again, now that it is known what the capture does not know, as for clocks."""
        config = self.config
        again = clocks(self.profile, config.watches, unknown=unknown, cpu_usage=config.report.cpu_usage)
        gone = {one.name: one for one in again if one.clock == "none"}
        return tuple(one if one.clock == "none" else gone.get(one.name, one) for one in self.judged)

    def unreported(self, unknown: Collection[str]) -> list[str]:
        """Say what the capture turned out not to know, beside what `notes` says."""
        pairs = zip(self.judged, self.found(unknown), strict=True)
        return [_note(now) for before, now in pairs if now.clock == "none" and before.clock != "none"]


def _note(one: Judged) -> str:
    return f"behavior {one.name} is not judged here: {one.why}"


def unreported_fields(config: Config) -> frozenset[str]:
    """Fields of WatchSnapshot that this configuration switches off."""
    missing: frozenset[str] = frozenset()
    if not config.capture.network:
        missing |= NETWORK
    if not config.capture.packets:
        missing |= PACKETS
    return missing


def written(config: Config) -> tuple[bytes, str] | None:
    """Read the profile that the configuration names: its text, and a name for messages; None: it names none.

    Raises ConfigInvalid when it cannot be read.
    """
    path = config.security_profile
    if not path:
        return None
    key = "detect.security_profile" if config.detect.security_profile else "defender.security_profile"
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(2, "there is no such file")
        return Path(path).read_bytes(), f"{config.origin}: {key}: {path}"
    except OSError as error:
        msg = (
            f"{config.origin}: {key}: {path}: {error.strerror}; 'aws iot describe-security-profile' writes such a file"
        )
        raise ConfigInvalid(msg) from error


def plan(config: Config) -> Plan:
    """Read the profile that the configuration names. Raises ConfigInvalid: the file, the place, what was expected."""
    found = written(config)
    if found is None:
        return Plan(config, NO_PROFILE, ())
    profile = load(*found)
    missing = unreported_fields(config)
    judged = clocks(profile, config.watches, unknown=missing, cpu_usage=config.report.cpu_usage)
    return Plan(msgspec.structs.replace(config, watches=expecting(config.watches, judged)), profile, judged)
