"""What may stand between a client and a broker: a wire that can be cut, an HTTP proxy, a TLS front that reads along.

Owns its sockets and threads. Refuses to understand what flows, but for the head of an HTTP request.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mqtt.broker import Identity

_HEAD_END = b"\r\n\r\n"


@dataclass
class Between:
    """Listens on a free port and passes on what comes, to `port` of 127.0.0.1. A context manager."""

    port: int
    host: str = "127.0.0.1"
    """Where it listens itself."""
    own: int = 0
    """On which port; 0: a free one."""
    proxy: bool = False
    """It is an HTTP proxy: CONNECT says where to."""
    front: Identity | None = None
    """It speaks TLS with the client, as this one, and plainly with the broker."""
    asks: Path | None = None
    """The authority of the certificate that it wants to see of the client; the AWS runtime shows it only when asked."""
    http: bool = False
    """What comes begins with an HTTP request, whose head is noted."""
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
    """The proxy's."""
    heads: list[str] = field(default_factory=list, init=False)
    """Heads of HTTP requests, as they came."""
    alpn: list[str | None] = field(default_factory=list, init=False)
    """The protocol that the client asked for, of every TLS connection."""

    def __enter__(self) -> Self:
        """Listen."""
        self._listener = socket.create_server((self.host, self.own))
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, name="between")]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()

    @property
    def own_port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def cut(self) -> None:
        """Break every connection that stands; new ones are taken."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), name="between")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(client.close)
            port, first = self.port, b""
            if self.front is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.front.certificate, self.front.private_key)
                if self.asks is not None:
                    context.load_verify_locations(self.asks)
                    context.verify_mode = ssl.CERT_REQUIRED
                context.set_alpn_protocols(["x-amzn-mqtt-ca", "mqtt", "http/1.1"])
                client = stack.enter_context(context.wrap_socket(client, server_side=True))
                self.alpn.append(client.selected_alpn_protocol())
                with self._lock:
                    self._open.append(client)
            if self.proxy or self.http:
                first = self._head(client)
            if self.proxy:
                port = int(self.heads[-1].split()[1].rpartition(":")[2])
                client.sendall(self.answer)
                if b" 200 " not in self.answer:
                    client.recv(1)  # until the client has had enough
                    return
                first = b""
            broker = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            broker.sendall(first)
            _pass_on(client, broker)

    def _head(self, client: socket.socket) -> bytes:
        head = b""
        while _HEAD_END not in head:
            got = client.recv(1)
            if not got:
                raise ConnectionError
            head += got
        self.heads.append(head.decode())
        return head


def _pass_on(client: socket.socket, broker: socket.socket) -> None:
    """Both ways, until one of them ends."""
    other = {client: broker, broker: client}
    while True:
        pending = isinstance(client, ssl.SSLSocket) and client.pending()
        ready = [client] if pending else select.select([client, broker], [], [])[0]
        for sock in ready:
            got = sock.recv(65_536)
            if not got:
                return
            other[sock].sendall(got)
