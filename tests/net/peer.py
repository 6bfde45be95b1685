"""The other side of every connection: services that know exactly what they got and sent. Nobody watches it.

Runs as a program of its own, in a namespace of its own: `python peer.py`, orders on stdin and facts on stdout, JSON
lines both. Owns the services and their ports. Refuses to know kinwatch and what a test expects.

Every service listens on both IPv6 and IPv4. A stream's first eight bytes say how many bytes the peer shall send.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

EXCHANGE = 7001
"""TCP: sends what was ordered while it reads to the end, then ends its side."""
ENDS_FIRST = 7002
"""TCP: sends what was ordered, ends its side at once, then reads to the end."""
RESETS = 7003
"""TCP: reads eight bytes and resets the connection."""
BRIEF = 7004
"""TCP: a byte for a byte, and the end."""
MULTIPATH = 7005
"""MPTCP: as EXCHANGE."""
ECHO = 7006
"""UDP: every datagram back."""
CLOSED = 7007
"""TCP: nobody listens."""
DNS = 53
"""TCP and UDP: answers from the zone that was ordered."""

_telling = threading.Lock()


def tell(fact: str, **keys: object) -> None:
    """One fact, one line."""
    with _telling:
        sys.stdout.write(json.dumps({"fact": fact, **keys}) + "\n")
        sys.stdout.flush()


def _read_to_end(connection: socket.socket) -> int:
    got = 0
    while data := connection.recv(1 << 16):
        got += len(data)
    return got


def _order(connection: socket.socket) -> int:
    (wanted,) = struct.unpack(">Q", connection.recv(8, socket.MSG_WAITALL))
    return int(wanted)


def exchange(connection: socket.socket) -> tuple[int, int]:
    """Both directions at once; bytes got and sent."""
    wanted = _order(connection)
    sender = threading.Thread(target=_send_and_end, args=(connection, wanted))
    sender.start()
    got = 8 + _read_to_end(connection)
    sender.join()
    return got, wanted


def _send_and_end(connection: socket.socket, wanted: int) -> None:
    connection.sendall(bytes(wanted))
    connection.shutdown(socket.SHUT_WR)


def ends_first(connection: socket.socket) -> tuple[int, int]:
    """The peer's direction ends before the other begins."""
    wanted = _order(connection)
    _send_and_end(connection, wanted)
    return 8 + _read_to_end(connection), wanted


def resets(connection: socket.socket) -> tuple[int, int]:
    """Eight bytes, and no more."""
    connection.recv(8, socket.MSG_WAITALL)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return 8, 0


def brief(connection: socket.socket) -> tuple[int, int]:
    """A byte for a byte."""
    got = len(connection.recv(1))
    connection.sendall(b"x")
    return got, 1


def _serve(connection: socket.socket, service: str) -> None:
    host, port = connection.getpeername()[:2]
    try:
        got, sent = SERVICES[service](connection)
        if service == "brief":
            return
        result = ""
    except OSError as error:
        got, sent, result = -1, -1, str(error)
    finally:
        connection.close()
    tell("stream", service=service, host=host, port=port, got=got, sent=sent, error=result)


SERVICES = {"exchange": exchange, "ends_first": ends_first, "resets": resets, "brief": brief}


def _listener(port: int, protocol: int = 0) -> socket.socket:
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen(128)
    return listener


def _accept(listener: socket.socket, service: str) -> None:
    while True:
        connection, _ = listener.accept()
        if service == "brief":  # thousands, one after the other
            _serve(connection, service)
        else:
            threading.Thread(target=_serve, args=(connection, service), daemon=True).start()


def _datagrams(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    return server


def _echo(server: socket.socket) -> None:
    while True:
        data, whence = server.recvfrom(1 << 16)
        server.sendto(data, whence)
        tell("datagram", host=whence[0], port=whence[1], bytes=len(data))


class Zone:
    """Answers by question, both in hexadecimal and without the two bytes of the message's id."""

    def __init__(self) -> None:
        self.udp: dict[str, str] = {}
        self.tcp: dict[str, str] = {}

    def answer(self, transport: str, query: bytes) -> bytes | None:
        """What comes back for a query; None: silence."""
        answers = self.udp if transport == "udp" else self.tcp
        rest = answers.get(query[2:].hex())
        tell("asked", transport=transport, query=query.hex(), known=rest is not None)
        return None if rest is None else query[:2] + bytes.fromhex(rest)

    def over_udp(self, server: socket.socket) -> None:
        """Serve datagrams."""
        while True:
            query, whence = server.recvfrom(1 << 16)
            if (answer := self.answer("udp", query)) is not None:
                server.sendto(answer, whence)

    def over_tcp(self, listener: socket.socket) -> None:
        """Serve streams, one after the other."""
        while True:
            connection, _ = listener.accept()
            with connection:
                while head := connection.recv(2, socket.MSG_WAITALL):
                    query = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                    if (answer := self.answer("tcp", query)) is not None:
                        connection.sendall(len(answer).to_bytes(2, "big") + answer)


def _connect(address: str, port: int, out: int, wanted: int) -> None:
    """Be the client: `out` bytes there, and as many back as the server sends, of which `wanted` are awaited."""
    with socket.create_connection((address, port)) as connection:
        host, own = connection.getsockname()[:2]
        connection.sendall(bytes(out))
        got = 0
        while got < wanted and (data := connection.recv(1 << 16)):
            got += len(data)
        rest = _read_to_end(connection)
    tell("connected", host=host, port=own, got=got + rest, sent=out)


def _send_datagrams(address: str, port: int, count: int, size: int) -> None:
    """Datagrams to a server, one at a time; each must come back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        got = 0
        for _ in range(count):
            client.sendto(bytes(size), (address, port))
            got += len(client.recv(1 << 16))
        own = client.getsockname()[1]
    tell("echoed", port=own, got=got, sent=count * size)


def _do(order: dict[str, Any], zone: Zone) -> None:
    verb = order.pop("do")
    if verb == "zone":
        zone.udp, zone.tcp = order["udp"], order["tcp"]
        tell("zone", size=len(zone.udp))
    else:
        work = {"connect": _connect, "send": _send_datagrams}[verb]
        threading.Thread(target=work, kwargs=order, daemon=True).start()


def main() -> None:
    """Serve until stdin ends."""
    zone = Zone()
    loops: list[tuple[Callable[..., None], socket.socket, *tuple[str, ...]]] = [
        (_accept, _listener(EXCHANGE), "exchange"),
        (_accept, _listener(ENDS_FIRST), "ends_first"),
        (_accept, _listener(RESETS), "resets"),
        (_accept, _listener(BRIEF), "brief"),
        (_echo, _datagrams(ECHO)),
        (zone.over_udp, _datagrams(DNS)),
        (zone.over_tcp, _listener(DNS)),
    ]
    multipath = True
    try:
        loops.append((_accept, _listener(MULTIPATH, socket.IPPROTO_MPTCP), "exchange"))
    except OSError:
        multipath = False
    for loop, *arguments in loops:
        threading.Thread(target=loop, args=arguments, daemon=True).start()
    tell("ready", multipath=multipath)
    for line in sys.stdin:
        _do(json.loads(line), zone)


if __name__ == "__main__":
    main()
