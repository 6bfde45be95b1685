"""Which connections send at once."""

from __future__ import annotations

import socket

import pytest

from monitor.defender.nodelay import send_at_once


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connections_to_the_port_send_at_once_and_no_others(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as broker,
        socket.create_server((address, 0), family=family) as other,
        socket.create_connection(broker.getsockname()[:2]) as ours,
        socket.create_connection(other.getsockname()[:2]) as theirs,
    ):
        assert send_at_once(broker.getsockname()[1]) == 1
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_without_a_connection_nothing_happens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert send_at_once(server.getsockname()[1]) == 0
