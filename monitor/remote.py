"""A remote address that a watched application had to do with; knows neither sockets nor reports."""

from __future__ import annotations

import msgspec


class Remote(msgspec.Struct, frozen=True, order=True):
    """One address, port and protocol (source: `struct kw_remote` in engine.h)."""

    address: str
    """As text; an IPv4 address mapped into IPv6 as the IPv4 address it is."""
    port: int
    """Of the remote side when kin connected or sent there; of ours when the remote side connected to kin."""
    protocol: str
    """"tcp", "udp", or the number of another."""
    incoming: bool
    """It connected to kin, or sent to it first."""


def endpoint(address: str, port: int) -> str:
    """Write `address:port`, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
