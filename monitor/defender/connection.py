"""Where a link goes and who we are there, for whichever library keeps it.

Owns the settings of a connection. Refuses to know MQTT libraries.
"""

from __future__ import annotations

from typing import Final

import msgspec

from monitor.publishing import client_id_of
from monitor.schema import Auth, Defender, Proxy

ACK_S: Final = 30
"""Longest wait for an acknowledgement."""
SESSION_S: Final = 3600
"""How long the broker keeps the session of a connection that broke; AWS IoT's default."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Where to and who we are."""

    endpoint: str
    port: int
    client_id: str
    root_ca: str = ""
    certificate: str = ""
    """"" with method mtls: no TLS."""
    private_key: str = ""
    keep_alive_s: int = 45
    auth: Auth = Auth()
    proxy: Proxy = Proxy()
    throttle: bool = True
    """Keep to AWS IoT Core's limits (100 publishes/s, 512 KB/s)."""
    reconnect_ms: tuple[int, int] = (1000, 120_000)
    """First and longest wait before the next attempt; random between zero and it."""
    session_s: int = SESSION_S
    """How long the broker keeps the session; 0: no longer than the connection."""


def connection_of(settings: Defender) -> Connection:
    """What the configuration says."""
    return Connection(
        endpoint=settings.endpoint,
        port=settings.port,
        client_id=client_id_of(settings),
        root_ca=settings.root_ca,
        certificate=settings.certificate,
        private_key=settings.private_key,
        keep_alive_s=settings.keep_alive_s,
        auth=settings.auth,
        proxy=settings.proxy,
    )
