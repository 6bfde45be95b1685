"""Connections for provisioning: with the claim certificate, or with the device's own.

Owns who we are there and how long a connection may take. Refuses to know what is asked over it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.defender.connection import connection_of
from monitor.defender.link import Unreachable
from monitor.defender.publish import MqttLink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from monitor.schema import Defender

CONNECT_S: Final = 60.0
"""Longest wait for a connection; s2n takes up to 30 s to say that TLS failed."""
STOP_S: Final = 5.0


@contextlib.asynccontextmanager
async def connected(settings: Defender) -> AsyncIterator[MqttLink]:
    """A connection that stands. Raises Unreachable, ConfigInvalid."""
    link = MqttLink(msgspec.structs.replace(connection_of(settings), session_s=0))
    ear = _Ear()
    link.start(ear)
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                why = await ear.first
        except TimeoutError:
            why = f"no answer within {CONNECT_S:.0f} s"
        if why:
            where = f"{settings.endpoint}:{settings.port}"
            raise Unreachable(f"no connection to {where} with {settings.certificate}: {why}")
        yield link
    finally:
        await link.stop(STOP_S)


class _Ear:
    """Hears whether the first attempt comes to a connection."""

    def __init__(self) -> None:
        self.first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """ "" when it does, else why not."""

    def connected(self, *, resumed: bool) -> None:  # noqa: ARG002 - the session is a new one
        self._hear("")

    def disconnected(self, why: str) -> None:
        self._hear(why)

    def received(self, topic: str, payload: bytes) -> None:
        """Nothing was subscribed to here; awsiotsdk takes the answers before."""

    def _hear(self, why: str) -> None:
        if not self.first.done():
            self.first.set_result(why)
