"""The sample agent's collector and ours look at the same sockets: `python -m tests.mqtt.both STATE`.

Owns the states and the two looks, one right after the other. Refuses to judge: it prints both reports and the truth.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys
from contextlib import ExitStack
from typing import Any

from monitor.capture import device
from monitor.defender.report import document
from monitor.detect.device import blocks

MANY = 60
SENT_BYTES = 1000
ANY4, ANY6 = "0.0.0.0", "::"  # noqa: S104 - the wildcards are a part of the states


class State:
    """Sockets of a device, and their ports by what they are."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.ports: dict[str, int] = {}

    def close(self) -> None:
        """Close all of them."""
        self._stack.close()

    def tcp(self, name: str, address: str, *, dual: bool = False, port: int = 0, shared: bool = False) -> None:
        """Listen."""
        made = self._socket(address, socket.SOCK_STREAM, dual=dual)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address, port))
        made.listen()
        self.ports[name] = made.getsockname()[1]

    def udp(self, name: str, address: str) -> socket.socket:
        """Take datagrams."""
        made = self._socket(address, socket.SOCK_DGRAM)
        made.bind((address, 0))
        self.ports[name] = made.getsockname()[1]
        return made

    def connection(self, name: str, listener: str, address: str) -> None:
        """Connect to a listener; its queue accepts."""
        made = self._stack.enter_context(socket.create_connection((address, self.ports[listener])))
        self.ports[name] = made.getsockname()[1]

    def udp_peer(self, name: str, server: str, address: str) -> socket.socket:
        """Have a UDP socket with a peer, which takes datagrams from that one only."""
        made = self.udp(name, address)
        made.connect((address, self.ports[server]))
        return made

    def _socket(self, address: str, kind: socket.SocketKind, *, dual: bool = False) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self._stack.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        return made


def plain(state: State) -> None:
    """What both tell alike."""
    state.tcp("tcp4", "127.0.0.1")
    state.tcp("tcp4 any", ANY4)
    state.tcp("tcp6", "::1")
    state.tcp("tcp6 any", ANY6)
    state.udp("udp4", "127.0.0.1")
    state.udp("udp6", "::1")
    state.connection("client", "tcp4", "127.0.0.1")


def odd(state: State) -> None:
    """What they tell differently, beside what they tell alike."""
    plain(state)
    state.udp_peer("udp client", "udp4", "127.0.0.1")
    state.tcp("dual", ANY6, dual=True)
    state.connection("mapped client", "dual", "127.0.0.1")
    state.connection("six client", "tcp6", "::1")
    state.tcp("other loopback", "127.9.8.7")
    state.tcp("shared", "127.0.0.1", shared=True)
    state.tcp("shared", "127.0.0.1", shared=True, port=state.ports["shared"])


def many(state: State) -> None:
    """More than the sample agent's lists hold."""
    for number in range(MANY):
        state.tcp(f"tcp {number}", "127.0.0.1")


def look(name: str) -> dict[str, Any]:
    """Both reports about a state, in which a datagram was sent between a first look and the second."""
    collector = importlib.import_module("AWSIoTDeviceDefenderAgentSDK.collector").Collector()
    state = State()
    try:
        {"plain": plain, "odd": odd, "many": many}[name](state)
        server = state.udp("server", "127.0.0.1")
        collector.collect_metrics()
        first = device.read()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(bytes(SENT_BYTES), server.getsockname())
        theirs = json.loads(collector.collect_metrics().to_json_string())
        ours = document(theirs["header"]["report_id"], [], blocks(first, device.read()))
        return {"theirs": theirs, "ours": ours, "ports": state.ports}
    finally:
        state.close()


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])))
