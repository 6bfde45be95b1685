"""A link that somebody sits in front of: who sees that it stands, what is accepted, or - dry - the reports themselves.

Owns these lines and the rule that the first connection must succeed. Refuses to know MQTT and what a run is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import cbor2
import msgspec

from monitor.defender.answers import parse
from monitor.defender.link import DryLink
from monitor.defender.responder import Responder

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from monitor.defender.link import Link, Listener


class AttendedLink:
    """A Link (monitor.defender.link) around another one."""

    def __init__(self, link: Link, thing: str, say: Callable[[str], None], failed: Callable[[str], None]) -> None:
        """`failed(why)`: called once when the first attempt to connect fails; the listener hears nothing then."""
        self._link, self._thing, self._say, self._failed = link, thing, say, failed
        self._listener: Listener | None = None
        self._ever: bool | None = None

    def start(self, listener: Listener) -> None:
        """Connect, and again whenever the connection breaks."""
        self._listener = listener
        self._link.start(self)

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """As the link does."""
        return self._link.publish(topic, payload)

    async def subscribe(self, filters: Sequence[str]) -> None:
        """As the link does."""
        await self._link.subscribe(filters)

    async def stop(self, timeout_s: float) -> None:
        """As the link does."""
        await self._link.stop(timeout_s)

    def connected(self, *, resumed: bool) -> None:
        """Say so the first time."""
        if self._ever is None:
            self._ever = True
            self._say("connected")
        if self._ever and self._listener is not None:
            self._listener.connected(resumed=resumed)

    def disconnected(self, why: str) -> None:
        """Give up when there never was a connection."""
        if self._ever is None:
            self._ever = False
            self._failed(why)
        elif self._ever and self._listener is not None:
            self._listener.disconnected(why)

    def received(self, topic: str, payload: bytes) -> None:
        """Say what was accepted; refusals the reporter says."""
        answer = parse(topic, payload, self._thing)
        if answer is not None and answer.accepted:
            self._say(f"report {answer.report_id or ''} was accepted".replace("  ", " "))
        if self._listener is not None:
            self._listener.received(topic, payload)


def dry_link(out: Callable[[bytes], int], say: Callable[[str], None], ended: Callable[[], None]) -> DryLink:
    """Make a link that writes each report to `out` as readable JSON and has the local Device Defender answer it.

    `out` as a StreamSink's write. `ended`: nobody reads any more. What is no report, an alarm, is said.
    """
    responder = Responder()

    def show(topic: str, payload: bytes) -> Sequence[tuple[str, bytes]]:
        answers = responder.answer(topic, payload, time.time())
        if not answers:
            say(f"would be published to {topic}: {payload.decode(errors='replace')}")
            return answers
        report = cbor2.loads(payload) if topic.endswith("/cbor") else msgspec.json.decode(payload)
        try:
            if out(msgspec.json.format(msgspec.json.encode(report), indent=4) + b"\n"):
                say("stdout is full; the report is not complete there")
        except OSError:
            ended()
        return answers

    return DryLink(show)
