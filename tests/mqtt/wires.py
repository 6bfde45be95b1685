"""A link under test, in a loop of the test: what it told, and how to wait for it.

Owns the listener and the connections' settings. Refuses to know what is tested.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from monitor.defender.connection import Connection
from monitor.defender.paho import PahoLink
from monitor.defender.publish import MqttLink
from tests.mqtt.broker import DEADLINE_S, THING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tests.mqtt.broker import Broker

REPORT = f"$aws/things/{THING}/defender/metrics/json"
ACCEPTED = f"{REPORT}/accepted"


KINDS: dict[str, type[MqttLink | PahoLink]] = {"awscrt": MqttLink, "paho": PahoLink}
kind: type[MqttLink | PahoLink] = MqttLink
"""What `linked` makes; test_link has each in turn."""


class Ear:
    """Keeps everything that a link tells."""

    def __init__(self) -> None:
        self.ups: list[bool] = []
        """`resumed` of every connection."""
        self.downs: list[str] = []
        self.messages: list[tuple[str, bytes]] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def connected(self, *, resumed: bool) -> None:
        """Keep it."""
        self.ups.append(resumed)
        self._tell()

    def disconnected(self, why: str) -> None:
        """Keep it."""
        self.downs.append(why)
        self._tell()

    def received(self, topic: str, payload: bytes) -> None:
        """Keep it."""
        self.messages.append((topic, payload))
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until it is so; TimeoutError after the deadline of tests."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(lambda: bool(true()))


def connection(broker: Broker, client: str = f"{THING}-kinwatch", **changes: Any) -> Connection:  # noqa: ANN401
    """To a broker, with mutual TLS, as somebody it knows; quick to connect again."""
    certificate = broker.folder / f"{client}.pem"
    if not certificate.exists():
        broker.authority.identity(client)
    values: dict[str, Any] = {
        "endpoint": "localhost",
        "port": broker.port,
        "client_id": client,
        "root_ca": str(broker.authority.root_ca),
        "certificate": str(certificate),
        "private_key": str(certificate.with_suffix(".key")),
        "keep_alive_s": 10,
        "reconnect_ms": (50, 500),
        "throttle": False,
    }
    return Connection(**{**values, **changes})


@contextlib.asynccontextmanager
async def linked(settings: Connection, *, up: bool = True) -> AsyncIterator[tuple[MqttLink | PahoLink, Ear]]:
    """A started link, and its listener; `up`: it is connected."""
    ear, link = Ear(), kind(settings)
    link.start(ear)
    try:
        if up:
            await ear.until(lambda: ear.ups)
        yield link, ear
    finally:
        await link.stop(5)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a complaint of the loop (an exception nobody took) fails it."""
    complaints: list[str] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
        async with asyncio.timeout(3 * DEADLINE_S):
            await scenario

    asyncio.run(watched())
    assert complaints == []
