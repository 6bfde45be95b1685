"""The link over paho-mqtt, for machines without the AWS runtime: the only file that knows paho.

Owns the connection, its certificates and its attempts. Refuses what publishing.beyond_paho names, and to queue while
there is no connection: the spool does.

Sockets are read and written in the thread of the loop, as paho has it for loops that are not its own; a thread is
there for the time that name, connection and TLS take, since paho waits for them. Each attempt has a client of its own,
because paho sends what was not acknowledged again after a connection broke, and so does the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import sys
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from monitor.defender.connection import ACK_S
from monitor.defender.link import TOO_LARGE, TOPIC_INVALID, Refused, Unreachable
from monitor.defender.pace import Pace
from monitor.defender.reasons import ERROR, SILENT, UNANSWERED, broke, reason
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.defender.connection import Connection
    from monitor.defender.link import Listener

REACH_S: Final = 10.0
"""Longest wait for a connection and for TLS, each."""
IN_FLIGHT: Final = 20
"""Most messages without acknowledgement, which a broker may make fewer."""
MAX_TOPIC_BYTES: Final = 65_535
KEEP_ALIVE: Final = 141
"""Reason code that paho gives when nobody answered to a ping."""
_ALPN: Final = "x-amzn-mqtt-ca"
_ALPN_PORT: Final = 443
_LOOKS: Final = 4
"""Looks at the clock between two pings."""
_HEAD_BYTES: Final = 16
"""What a packet has around topic and payload, at most."""


class _Socket(ssl.SSLSocket):
    """Closed when its handshake failed, which paho leaves open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as it is there
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Session:
    """One attempt, and the connection that it comes to."""

    def __init__(self, link: PahoLink, connection: Connection, tls: ssl.SSLContext | None) -> None:
        self._link, self._connection = link, connection
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """Why there is none, or no more."""
        self.up = self.stood = False
        """Whether it is connected, and whether it was."""
        self._error: BaseException | None = None
        self._largest = 0
        self._waiting: dict[int, Callable[[Exception | None], None]] = {}
        """By packet identifier: whom to tell of its acknowledgement."""
        self._held: deque[tuple[float, Callable[[], None], Callable[[Exception | None], None]]] = deque()
        """What is published later: when, how, and whom to tell when it never is."""
        self._most, self._flying = IN_FLIGHT, 0
        self._timers: set[asyncio.TimerHandle] = set()
        client = Client(CallbackAPIVersion.VERSION2, connection.client_id, protocol=MQTTv5, reconnect_on_failure=False)
        client.connect_timeout = REACH_S
        client.max_inflight_messages_set(0)  # we keep to the limit, which only the broker's answer tells
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _, __, message: link.hear(message.topic, bytes(message.payload))
        client.on_publish = lambda _, __, mid, code, said: self._acknowledged(mid, [code], said)
        client.on_subscribe = lambda _, __, mid, codes, said: self._acknowledged(mid, codes, said)
        client.on_log = self._on_log
        client.on_socket_register_write = self._on_wanted
        client.on_socket_unregister_write = self._on_written
        client.on_socket_close = self._on_close
        self.client = client

    def _here(self) -> bool:
        return threading.get_ident() == self._thread

    # -------- in the thread that connects --------

    def dial(self) -> None:
        """Connect, however long it takes; the loop is told."""
        error: BaseException | None = None
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if self._connection.session_s:
            session.SessionExpiryInterval = self._connection.session_s
        try:
            self.client.connect(
                self._connection.endpoint,
                self._connection.port,
                self._connection.keep_alive_s,
                clean_start=not self._connection.session_s,
                properties=session,
            )
        except (OSError, ValueError) as failed:  # ValueError: a name that no resolver takes
            error = failed
        try:
            self._loop.call_soon_threadsafe(self._dialled, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.close()

    # -------- in the loop --------

    def _dialled(self, error: BaseException | None) -> None:
        sock: Any = self.client.socket()
        if self.ended.done():
            self.close()
        elif error is not None or sock is None:
            self._end(broke(error, judging=self._judged()))
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as monitor.defender.nodelay
            self._loop.add_reader(sock, self._read)
            if self.client.want_write():
                self._loop.add_writer(sock, self._write)
            self._later(ACK_S, self._overdue)
            self._look()

    def _overdue(self) -> None:
        if not self.up:
            self._end(UNANSWERED)

    def _read(self) -> None:
        try:
            self.client.loop_read()
            # TLS may have decrypted more than was asked for, and the socket will not tell.
            while isinstance(sock := self.client.socket(), ssl.SSLSocket) and sock.pending():
                self.client.loop_read()
        except Exception as error:  # noqa: BLE001 - paho raises whatever its decoder met
            self._end(f"the broker sends what is no MQTT 5 ({type(error).__name__}: {error})")

    def _write(self) -> None:
        self.client.loop_write()

    def _look(self) -> None:
        """Ping when it is time, and find out that nobody answers."""
        self.client.loop_misc()
        if not self.ended.done():
            self._later(self._connection.keep_alive_s / _LOOKS, self._look)

    def _later(self, delay_s: float, what: Callable[[], object]) -> asyncio.TimerHandle:
        self._timers = {timer for timer in self._timers if not timer.cancelled() and timer.when() > self._loop.time()}
        timer = self._loop.call_later(delay_s, what)
        self._timers.add(timer)
        return timer

    def at(self, when_s: float, what: Callable[[], None], tell: Callable[[Exception | None], None]) -> None:
        """Publish at a time of the loop's clock, after what was given before; or `tell` that there was no time to."""
        self._held.append((when_s, what, tell))
        if len(self._held) == 1:
            self._let_go()

    def _let_go(self) -> None:
        while self._held and self._flying < self._most:
            if (left_s := self._held[0][0] - self._loop.time()) > 0:
                self._later(left_s, self._let_go)
                return
            self._held.popleft()[1]()

    def publish(self, what: str, topic: str, payload: bytes, tell: Callable[[Exception | None], None]) -> None:
        """Send; `tell` hears of the acknowledgement, or why there is none."""
        if self._largest and len(topic.encode()) + len(payload) + _HEAD_BYTES > self._largest:
            tell(Refused(f"{what} is impossible: the packet is larger than the broker takes", TOO_LARGE))
            return
        self._flying += 1
        self._wait(what, self.client.publish(topic, payload, qos=1).mid, self._landed(tell))

    def _landed(self, tell: Callable[[Exception | None], None]) -> Callable[[Exception | None], None]:
        def told(error: Exception | None) -> None:
            self._flying -= 1
            tell(error)
            if self._flying == self._most - 1:  # there was no room, and now there is
                self._let_go()

        return told

    def subscribe(self, what: str, filters: Sequence[str], tell: Callable[[Exception | None], None]) -> None:
        """As publish."""
        try:
            code, mid = self.client.subscribe([(name, 1) for name in filters])
        except ValueError as error:
            tell(Refused(f"{what} is impossible: {error}", TOPIC_INVALID))
            return
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            tell(Unreachable(f"{what}: there is no connection"))
        else:
            self._wait(what, mid, tell)

    def _wait(self, what: str, mid: int, tell: Callable[[Exception | None], None]) -> None:
        def told(error: Exception | None) -> None:
            timer.cancel()
            if isinstance(error, Refused):
                error = Refused(f"{what} was refused with {error}", error.reason_code)
            tell(error)

        timer = self._later(ACK_S, lambda: self._forget(mid, Unreachable(f"{what}: no acknowledgement came in time")))
        self._waiting[mid] = told

    def _forget(self, mid: int, error: Exception | None) -> None:
        if tell := self._waiting.pop(mid, None):
            tell(error)

    def _acknowledged(self, mid: int, codes: Sequence[Any], said: Any) -> None:  # noqa: ANN401
        bad = next((code.value for code in codes if code.value >= ERROR), 0)
        self._forget(mid, Refused(_reason(bad, said), bad) if bad else None)

    def _on_connect(self, _: Client, __: object, flags: Any, code: Any, said: Any) -> None:  # noqa: ANN401
        if code.value >= ERROR:
            self._end(f"refused with {_reason(code.value, said)}")
            return
        self._largest = getattr(said, "MaximumPacketSize", 0)
        self._most = min(IN_FLIGHT, getattr(said, "ReceiveMaximum", IN_FLIGHT))
        self.up = self.stood = True
        self._link.stands(self, resumed=bool(flags.session_present))

    def _judged(self) -> bool:
        """Whether an end of the connection may be about our certificate."""
        return bool(self._connection.certificate) and not self.stood

    def _on_disconnect(self, _: Client, __: object, flags: Any, code: Any, said: Any) -> None:  # noqa: ANN401
        if flags.is_disconnect_packet_from_server:
            self._end(f"refused with {_reason(code.value, said)}")
        elif code.value == KEEP_ALIVE:
            self._end(SILENT)
        else:
            self._end(broke(self._error, judging=self._judged()))

    def _on_log(self, *_: object) -> None:
        # paho writes why a socket failed and tells nobody else; it does so while it handles the exception.
        error = sys.exception()
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            self._error = error

    def _on_wanted(self, _: Client, __: object, sock: Any) -> None:  # noqa: ANN401
        # What the other thread wants is seen to when it has connected.
        if self._here() and sock.fileno() >= 0:
            self._loop.add_writer(sock, self._write)

    def _on_written(self, _: Client, __: object, sock: Any) -> None:  # noqa: ANN401
        if self._here() and sock.fileno() >= 0:
            self._loop.remove_writer(sock)

    def _on_close(self, _: Client, __: object, sock: Any) -> None:  # noqa: ANN401
        if self._here() and sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    def _end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)
        self.close()
        self._give_up(f"the connection broke before the acknowledgement: {why}")

    def _give_up(self, why: str) -> None:
        while self._held:
            self._held.popleft()[2](Unreachable(why))
        for mid in list(self._waiting):
            self._forget(mid, Unreachable(why))

    async def farewell(self, timeout_s: float) -> None:
        """Disconnect in good order, if it is connected; after `timeout_s` without."""
        if self.up and not self.ended.done():
            self.client.disconnect()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.ended), timeout_s)
        if not self.ended.done():
            self.ended.set_result("")
        self.close()
        self._give_up("the link was stopped before the acknowledgement")

    def close(self) -> None:
        """Let go of the socket and of what was to come later."""
        self.up = False
        for timer in self._timers:
            timer.cancel()
        sock = self.client.socket()
        if sock is None or sock.fileno() < 0:
            return
        if self._here() and not self._loop.is_closed():
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
        sock.close()


class PahoLink:
    """A Link (monitor.defender.link) to an MQTT 5 broker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listener: Listener | None = None
        self._session: _Session | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._pace = Pace() if connection.throttle else None

    def start(self, listener: Listener) -> None:
        """Connect, and again whenever the connection breaks.

        Raises ConfigInvalid: a file is not (any more) what the configuration says.
        """
        self._loop = asyncio.get_running_loop()
        tls = _tls(self._connection)
        self._listener = listener
        self._keeping = self._loop.create_task(self._keep(tls))

    async def _keep(self, tls: ssl.SSLContext | None) -> None:
        first, longest = self._connection.reconnect_ms
        attempt = 0
        while True:
            session = self._session = _Session(self, self._connection, tls)
            threading.Thread(target=session.dial, name="mqtt-connect", daemon=True).start()
            why = await asyncio.shield(session.ended)
            attempt = 0 if session.stood else attempt + 1
            if self._listener is not None:
                self._listener.disconnected(why)
            await asyncio.sleep(random.uniform(0, min(longest, first << min(attempt, 20))) / 1000)  # noqa: S311

    def stands(self, session: _Session, *, resumed: bool) -> None:
        """The session that is connected says so."""
        if session is self._session and self._listener is not None:
            self._loop.call_soon(lambda: self._tell(lambda listener: listener.connected(resumed=resumed)))

    def hear(self, topic: str, payload: bytes) -> None:
        """A message came."""
        self._loop.call_soon(lambda: self._tell(lambda listener: listener.received(topic, payload)))

    def _tell(self, what: Callable[[Listener], None]) -> None:
        if self._listener is not None:
            what(self._listener)

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Send with QoS 1, after everything published earlier."""
        what = f"publish to {topic}"
        if not topic or {"+", "#", "\0"} & set(topic) or len(topic.encode()) > MAX_TOPIC_BYTES:
            done: asyncio.Future[None] = self._loop.create_future()
            done.set_exception(Refused(f"{what[:200]} is impossible: nobody can publish there", TOPIC_INVALID))
            return done
        return self._issue(lambda session, tell: session.publish(what, topic, payload, tell), len(topic) + len(payload))

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1. Raises Refused or Unreachable."""
        what = f"subscribe to {', '.join(filters)}"
        await self._issue(lambda session, tell: session.subscribe(what, filters, tell), 0)

    def _issue(
        self, issue: Callable[[_Session, Callable[[Exception | None], None]], None], size: int
    ) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()

        def tell(error: Exception | None) -> None:
            if done.done():  # cancelled
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        session = self._session
        if session is None or not session.up:
            tell(Unreachable("there is no connection"))
        elif not size:
            issue(session, tell)
        else:
            due_s = self._pace.due_s(self._loop.time(), size) if self._pace else 0.0
            session.at(due_s, lambda: issue(session, tell), tell)
        return done

    async def stop(self, timeout_s: float) -> None:
        """Say goodbye; after `timeout_s` leave without. What was not acknowledged by then is Unreachable."""
        self._listener = None
        keeping, self._keeping = self._keeping, None
        session, self._session = self._session, None
        if keeping is not None:
            keeping.cancel()
        if session is not None:
            await session.farewell(timeout_s)


def _reason(code: int, said: Any) -> str:  # noqa: ANN401
    return reason(code, SimpleNamespace(reason_string=getattr(said, "ReasonString", None)))


def _tls(connection: Connection) -> ssl.SSLContext | None:
    """What TLS is made with; None: there is none. Raises ConfigInvalid."""
    if not connection.certificate:
        return None
    for name in filter(None, (connection.root_ca, connection.certificate, connection.private_key)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            text = f"defender: {name} cannot be read: {error.strerror}; name a file that is there"
            raise ConfigInvalid(text) from error
    try:
        context = ssl.create_default_context(cafile=connection.root_ca or None)
        context.load_cert_chain(connection.certificate, connection.private_key)
    except (ssl.SSLError, OSError) as error:
        text = f"defender: no TLS can be made with these files ({error}); try 'kinwatch doctor'"
        raise ConfigInvalid(text) from error
    context.sslsocket_class = _Socket
    if connection.port == _ALPN_PORT:
        context.set_alpn_protocols([_ALPN])
    return context
