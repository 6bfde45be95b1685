"""What the publisher needs of MQTT, and a shipped double that needs no broker; knows nothing of awscrt.

Owns the promise: QoS 1, in order, each message either acknowledged or failed. Refuses to queue: what could not be sent
is the spool's, which tries again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from monitor.errors import ConfigInvalid, KinwatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


TOPIC_INVALID: Final = 144
TOO_LARGE: Final = 149
"""Reason codes of MQTT 5 for what is refused before it is sent."""


class Unreachable(KinwatchError):
    """The message may not have arrived: no connection, it broke, or no acknowledgement came in time."""

    exit_code = 4


class Refused(KinwatchError):
    """The broker acknowledged with an error: it has the message and does not want it."""

    exit_code = 4

    def __init__(self, text: str, reason_code: int) -> None:
        super().__init__(text)
        self.reason_code = reason_code
        """MQTT 5 reason code, 128 to 255."""


def no_library(key: str, error: ImportError) -> ConfigInvalid:
    """Say that this platform has no MQTT library; `key`: what asked for it."""
    return ConfigInvalid(
        f"{key}: the library {error.name} is missing; install awsiotsdk, which has wheels for x86_64 and aarch64"
    )


class Listener(Protocol):
    """Whom a link tells. Every call comes in the thread of the loop that started the link."""

    def connected(self, *, resumed: bool) -> None:
        """A connection stands. `resumed`: the broker kept the session, subscriptions included."""

    def disconnected(self, why: str) -> None:
        """The connection broke, or an attempt failed; the link goes on trying by itself."""

    def received(self, topic: str, payload: bytes) -> None:
        """A message came on a subscribed topic."""


class Link(Protocol):
    """One MQTT connection that keeps itself up. Everything is called in the thread of its loop."""

    def start(self, listener: Listener) -> None:
        """Connect, and connect again whenever the connection breaks, until `stop`."""

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Send with QoS 1, after everything published earlier.

        The future is done when the broker has the message. It raises Refused or Unreachable.
        """

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1. Raises Refused or Unreachable."""

    async def stop(self, timeout_s: float) -> None:
        """Disconnect in good order; after `timeout_s` give up waiting. Nothing may be called afterwards."""


class DryLink:
    """The double: shows what would be sent and, if asked, answers as somebody else would. It is always connected."""

    def __init__(self, show: Callable[[str, bytes], Sequence[tuple[str, bytes]]]) -> None:
        """`show(topic, payload)`: called for every message; what it returns is received, if subscribed to."""
        self._show = show
        self._listener: Listener | None = None
        self._filters: set[str] = set()

    def start(self, listener: Listener) -> None:
        """Connected at once."""
        self._listener = listener
        asyncio.get_running_loop().call_soon(lambda: listener.connected(resumed=False))

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Show it, deliver the answers."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        answers = self._show(topic, payload)
        done.set_result(None)
        for answer in answers:
            if self._listener is not None and answer[0] in self._filters:
                loop.call_soon(self._listener.received, *answer)
        return done

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Only exact topics match."""
        self._filters.update(filters)

    async def stop(self, timeout_s: float) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Hear nothing more."""
        self._listener = None
