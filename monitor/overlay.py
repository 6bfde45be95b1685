"""What was set from afar and is laid over the configuration file: the text that holds, and the one on trial.

Owns its journal, one file in daemon.state_dir that is whole at any moment, and what a start makes of it. Refuses to
know who sends such a text and what is done with it: the shadow wing does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from monitor import config
from monitor.durable import write_secret
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from monitor.config import Config

FILE: Final = "remote.json"
CRASHED: Final = "the daemon ended before it was confirmed"
Outcome = Literal["none", "on_trial", "applied", "rejected", "rolled_back"]


class Overlay(msgspec.Struct, frozen=True):
    """A text that was set from afar."""

    version: int
    text: str

    @property
    def origin(self) -> str:
        """Its name in messages."""
        return f"remote configuration {self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The journal."""

    confirmed: Overlay | None = None
    """It holds, from the next start on as well."""
    trial: Overlay | None = None
    """It is tried and not confirmed: a start that finds it rolls it back."""
    seen: int = 0
    """Highest version whose signature was good; nothing at or below it is tried again."""
    version: int = 0
    """Which one `outcome` is about."""
    outcome: Outcome = "none"
    error: str = ""


class Journal:
    """The one file."""

    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir, FILE)
        self.standing = Standing()

    def read(self) -> Standing:
        """Return what it says. Raises ConfigInvalid: it is damaged."""
        try:
            self.standing = msgspec.json.decode(self._path.read_bytes(), type=Standing)
        except FileNotFoundError:
            self.standing = Standing()
        except (OSError, msgspec.MsgspecError) as error:
            what = f"daemon.state_dir: {self._path} cannot be read: {error}"
            raise ConfigInvalid(f"{what}; remove it to start with the configuration file alone") from error
        return self.standing

    def note(self, **changes: object) -> None:
        """Go on. When this returns it survives the end of the process and of power. Raises OSError."""
        standing = msgspec.structs.replace(self.standing, **changes)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(self._path, msgspec.json.encode(standing))
        self.standing = standing

    def recover(self) -> None:
        """At a start: what was on trial has failed. Raises ConfigInvalid, OSError."""
        trial = self.read().trial
        if trial is not None:
            self.note(trial=None, version=trial.version, outcome="rolled_back", error=CRASHED)


def laid_over(path: Path, trial: Overlay | None) -> Config:
    """Read the file, and lay over it what was set from afar: `trial`, or what is confirmed.

    A confirmed text that does not go with the file any more is left out, and `left_out` says why: a device must not
    stop watching for it. Raises ConfigInvalid: the file, the trial or the journal is wrong.
    """
    text = config.read(path)
    base = config.parse(text, str(path))
    if base.remote is None:
        return base
    confirmed = Journal(base.daemon.state_dir).read().confirmed
    if trial not in {None, confirmed}:
        return config.overlaid(text, str(path), trial.text, trial.origin)
    if confirmed is None:
        return base
    try:
        return config.overlaid(text, str(path), confirmed.text, confirmed.origin)
    except ConfigInvalid as error:
        return msgspec.structs.replace(base, left_out=str(error))
