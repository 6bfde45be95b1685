"""Keeps the device's configuration at what its shadow wants: verified, valid, tried, and confirmed or rolled back.

Owns the order of the stages; the journal (`overlay`) has each before it begins. Refuses to know how a configuration is
applied: the agent does, as at SIGHUP.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from monitor.defender.link import Refused, Unreachable
from monitor.errors import ConfigInvalid, KinwatchError
from monitor.overlay import Journal, Overlay
from monitor.shadow import signature
from monitor.shadow.document import HEARD, DocumentInvalid, refusal, reported, topic, wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from monitor.schema import Remote
    from monitor.shadow.document import Wanted

LOOK_S: Final = 0.2
"""From one attempt to tell the broker to the next, while a configuration is on trial."""
_BUG: Final = "it finds a bug in kinwatch"


class Changes(NamedTuple):
    """What the agent does for us."""

    validate: Callable[[Overlay], object]
    """Raises ConfigInvalid: the configuration would not be one. In any thread."""
    apply: Callable[[Overlay | None], Awaitable[str]]
    """Reload with it, None: with what is confirmed; returns why that failed, "": it did not."""


class Keeper:
    """One per daemon. Everything runs in the loop's thread but what takes long."""

    def __init__(
        self,
        settings: Remote,
        journal: Journal,
        changes: Changes,
        publish: Callable[[str, bytes], asyncio.Future[None]],
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._journal, self._changes = settings, journal, changes
        self._publish, self._say = publish, say
        self._thing = ""
        self._document = b""
        """What the shadow said last."""
        self._changed = asyncio.Event()
        self._last = b""
        """What was told last over this connection. The service answers each telling with a delta, as what is wanted is
        never told back; so to tell the same again would go on for ever."""
        self._told: set[str] = set()

    # -------- what the publisher calls --------

    def filters(self, thing: str) -> list[str]:
        """The topics to subscribe to."""
        return [topic(thing, what) for what in HEARD]

    def connected(self, thing: str) -> None:
        """Tell where we are and ask what is wanted."""
        self._thing, self._last = thing, b""
        self._tell()
        self._send("get", b"{}")

    def received(self, name: str, payload: bytes) -> bool:
        """Take a message; False: it is none of ours."""
        if not self._thing or name not in self.filters(self._thing):
            return False
        if name == topic(self._thing, "update/delta"):
            self._send("get", b"{}")  # a delta has what differs, and a signature is over the whole
        elif name == topic(self._thing, "get/accepted"):
            self._document = payload
            self._changed.set()
        elif why := refusal(payload):
            self._say_once(f"the shadow's service refuses {name.split('/')[-2]}: {why}")
        return True

    async def run(self) -> None:
        """Work off what is wanted, the latest alone, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._turn()

    def status(self) -> dict[str, Any]:
        """What `kinwatch status` says of it."""
        standing = self._journal.standing
        told = {"version": standing.version, "state": standing.outcome, "error": standing.error}
        confirmed = standing.confirmed.version if standing.confirmed else 0
        return {key: value for key, value in (told | {"confirmed": confirmed}).items() if value}

    # -------- the stages --------

    async def _turn(self) -> None:
        try:
            wants = wanted(self._document)
        except DocumentInvalid as error:
            self._say_once(f"the shadow is not understood: {error}")
            self._note(outcome="rejected", version=0, error=str(error))
        else:
            if wants is None:
                return
            await self._consider(wants)
        self._tell()

    async def _consider(self, wants: Wanted) -> None:
        """One version, to its end."""
        standing = self._journal.standing
        if wants.version == standing.seen:
            return  # it was decided about
        overlay = Overlay(wants.version, wants.text)
        try:
            if not await asyncio.to_thread(signature.good, self._settings.public_key, *wants):
                self._refuse(overlay, "the signature is not of the key in remote.public_key")
                return
            if wants.version < standing.seen:
                self._refuse(overlay, f"version {standing.seen} was seen before, and an older one is not taken again")
                return
        except (KinwatchError, OSError) as error:  # not the text's fault: the next one may be looked at
            self._refuse(overlay, str(error))
            return
        try:
            await asyncio.to_thread(self._changes.validate, overlay)
        except ConfigInvalid as error:
            self._refuse(overlay, str(error), seen=overlay.version)
            return
        except Exception as error:  # noqa: BLE001 - as in _try
            self._refuse(overlay, f"{_BUG}: {error!r}", seen=overlay.version)
            return
        on_trial = {"trial": overlay, "seen": overlay.version, "version": overlay.version}
        if self._note(**on_trial, outcome="on_trial", error=""):
            await self._try(overlay)

    def _refuse(self, overlay: Overlay, why: str, **changes: int) -> None:
        standing = self._journal.standing
        if (standing.version, standing.outcome, standing.error) != (overlay.version, "rejected", why) or changes:
            self._note(version=overlay.version, outcome="rejected", error=why, **changes)
            self._say(f"{overlay.origin} is rejected: {why}")

    async def _try(self, overlay: Overlay) -> None:
        """It is in the journal as on trial: from here on it is confirmed, or it never was."""
        self._say(f"{overlay.origin} is tried")
        try:
            why = await self._changes.apply(overlay) or await self._heard()
        except Exception as error:  # noqa: BLE001 - a configuration that finds a bug is no good one
            why = f"{_BUG}: {error!r}"
        if not why and self._note(confirmed=overlay, trial=None, outcome="applied"):
            self._say(f"{overlay.origin} is applied")
            return
        why = why or "daemon.state_dir cannot be written"
        self._note(trial=None, outcome="rolled_back", error=why)
        again = await self._changes.apply(None)
        self._say(f"{overlay.origin} is rolled back: {why}")
        if again:
            self._say(f"the configuration before it does not load either: {again}")

    async def _heard(self) -> str:
        """Whether the broker still hears of us, with this configuration; "" is yes."""
        within_s = self._settings.confirm_s
        why = "there is no connection"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        await self._publish(topic(self._thing, "update"), self._report())
                        self._last = self._report()
                    except (Refused, Unreachable) as error:
                        why = str(error)
                        await asyncio.sleep(LOOK_S)
                    else:
                        return ""
        return f"the broker did not hear of it within {within_s} s: {why}"

    # -------- journal and shadow --------

    def _note(self, **changes: object) -> bool:
        """Go on in the journal; False: it cannot be written, which is said."""
        try:
            self._journal.note(**changes)
        except OSError as error:
            self._say_once(f"daemon.state_dir: what is set from afar cannot be kept: {error}")
            return False
        return True

    def _report(self) -> bytes:
        standing = self._journal.standing
        holds = standing.trial or standing.confirmed
        return reported(
            version=standing.version,
            state=standing.outcome,
            error=standing.error,
            confirmed=standing.confirmed.version if standing.confirmed else 0,
            digest=holds.digest if holds else "",
        )

    def _tell(self) -> None:
        if self._thing and self._last != (report := self._report()):
            self._last = report
            self._send("update", report)

    def _send(self, what: str, payload: bytes) -> None:
        """What does not arrive is told again with the next connection."""
        self._publish(topic(self._thing, what), payload).add_done_callback(self._sent)

    def _sent(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and isinstance(error := done.exception(), Refused):
            self._say_once(f"{error}; what is set from afar needs it")

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)
