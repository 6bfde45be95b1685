"""`kinwatch doctor`'s way to the broker, step by step, so that the first thing that is wrong has a name and a remedy.

Owns the steps and their words. Refuses to disturb: a client id of its own, no alarm, and a report only when asked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.defender import answers, credentials
from monitor.defender.client import chosen
from monitor.defender.connection import connection_of
from monitor.defender.link import Refused
from monitor.defender.report import VERSION, encode
from monitor.errors import ConfigInvalid, KinwatchError
from monitor.publishing import MAX_CLIENT_ID_BYTES, client_id_of, topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.defender.link import Link
    from monitor.schema import Defender

NAMES: Final = ("files", "name", "tcp", "tls", "connect", "subscribe", "report", "alarms")
"""The steps, in their order; one that fails is the last one tried."""
REACH_S: Final = 10.0
"""Longest wait for a connection, the proxy's answer and TLS, each."""
REFUSAL_S: Final = 1.0
"""How long a broker may take to refuse a certificate after TLS 1.3, where the refusal comes behind the handshake."""
CONNECT_S: Final = 45.0
"""Longest wait for CONNACK; the AWS runtime takes up to 30 s to say that TLS failed."""
STOP_S: Final = 5.0
_SUFFIX: Final = "-doctor"
_MAX_HEAD_BYTES: Final = 65_536
_ALPN: Final = {
    "mtls": "x-amzn-mqtt-ca",
    "pkcs11": "x-amzn-mqtt-ca",
    "websocket": "http/1.1",
    "custom-authorizer": "mqtt",
}
_ALPN_PORT: Final = 443
_CERTIFICATE: Final = "register the certificate with the service, activate it, and see that it was not revoked"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one step found."""

    name: str
    ok: bool | None
    """None: not tried, `detail` says why."""
    detail: str
    remedy: str = ""


class _Wrong(Exception):
    """A step failed: what is wrong, what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


async def trial(settings: Defender, *, now_s: float, connect: bool, send_report: bool) -> list[Step]:
    """Take the steps. `now_s`: seconds since the epoch, which becomes the id of the report.

    `connect`: False looks at the files only. `send_report`: a valid report without metrics; it takes the slot of the
    next real one, for defender.min_spacing_s.
    """
    walk = _Walk(settings, now_s)
    steps = [walk.files()]
    if steps[0].ok and not connect:
        return _filled(steps, "not tried, as asked")
    if steps[0].ok:
        steps += await asyncio.to_thread(lambda: list(walk.reach()))
    if all(step.ok for step in steps):
        steps += await walk.talk(send_report=send_report)
    return _filled(steps, "not tried: something before it failed")


def _filled(steps: list[Step], why: str) -> list[Step]:
    """Every step is named; those that were not taken have a reason."""
    taken = {step.name for step in steps}
    return steps + [Step(name=name, ok=None, detail=why) for name in NAMES if name not in taken]


class _Walk:
    def __init__(self, settings: Defender, now_s: float) -> None:
        self._settings, self._now_s = settings, now_s
        self._client_id = client_id_of(settings)
        room = MAX_CLIENT_ID_BYTES - len(_SUFFIX)
        self._own_id = self._client_id.encode()[:room].decode(errors="ignore") + _SUFFIX

    def files(self) -> Step:
        """What can be known without a network."""
        try:
            chosen(self._settings)
            warnings = credentials.check(self._settings, self._now_s)
        except ConfigInvalid as error:
            return _failed("files", error)
        return Step(name="files", ok=True, detail="everything is there and fits together", remedy="; ".join(warnings))

    # -------- in a thread: the resolver knows no other way --------

    def reach(self) -> Iterator[Step]:
        """Name, TCP, TLS; ends with the first that fails."""
        via = self._settings.proxy
        host, port = (via.host, via.port) if via.host else (self._settings.endpoint, self._settings.port)
        name = "name"
        connection: socket.socket | None = None
        try:
            addresses = _resolved(host, port)
            yield Step(name=name, ok=True, detail=f"{host} is {', '.join(addresses)}")
            name = "tcp"
            connection, detail = _connected(addresses, port)
            if via.host:
                detail += "; " + self._through(connection)
            yield Step(name=name, ok=True, detail=detail)
            name = "tls"
            connection.settimeout(REACH_S)
            yield Step(name=name, ok=True, detail=self._handshake(connection))
        except _Wrong as wrong:
            yield Step(name=name, ok=False, detail=str(wrong), remedy=wrong.remedy)
        finally:
            if connection is not None:
                connection.close()

    def _through(self, connection: socket.socket) -> str:
        """Have the proxy connect us."""
        there = f"{self._settings.endpoint}:{self._settings.port}"
        head = b""
        try:
            connection.sendall(f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n".encode())
            while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES:
                got = connection.recv(1)  # not a byte of TLS behind it
                if not got:
                    break
                head += got
        except OSError as error:
            raise _Wrong(f"the proxy does not answer: {_said(error)}", "is defender.proxy an HTTP proxy?") from error
        status = head.partition(b"\r\n")[0].decode("latin-1")
        if " 200" not in status:
            raise _Wrong(f"the proxy answers {status!r}", f"it must let CONNECT through to {there}")
        return f"through the proxy to {there}"

    def _handshake(self, connection: socket.socket) -> str:
        method = self._settings.auth.method
        context = _context(self._settings)
        remedy = f"is {self._settings.port} a TLS port, and nothing in the way?"
        try:
            with context.wrap_socket(connection.dup(), server_hostname=self._settings.endpoint) as wrapped:
                if method == "mtls":
                    _refusal(wrapped)
                return _described(wrapped)
        except ssl.SSLCertVerificationError as error:
            raise _distrusted(error, self._settings) from error
        except ssl.SSLError as error:
            if method == "pkcs11" and "ALERT" in (error.reason or ""):
                return "the broker is who it should be and asks for the certificate; the token has its key"
            if method == "mtls" and "ALERT" in (error.reason or ""):
                raise _Wrong(f"the broker refuses the certificate: {_said(error)}", _CERTIFICATE) from error
            raise _Wrong(f"TLS failed: {_said(error)}", remedy) from error
        except TimeoutError as error:
            raise _Wrong(f"TLS did not come about within {REACH_S:.0f} s", remedy) from error
        except OSError as error:
            raise _Wrong(f"the connection broke during TLS: {_said(error)}", remedy) from error

    # -------- in the loop --------

    async def talk(self, *, send_report: bool) -> list[Step]:
        """CONNECT, SUBSCRIBE, PUBLISH and its answer; ends with the first that fails."""
        ear = _Ear()
        steps: list[Step] = []
        name, link = "connect", None
        try:
            link = self._link()
            link.start(ear)
            steps.append(Step(name=name, ok=True, detail=await self._greeted(ear)))
            name = "subscribe"
            steps.append(Step(name=name, ok=True, detail=await self._subscribed(link)))
            name = "report"
            if send_report:
                steps.append(Step(name=name, ok=True, detail=await self._reported(link, ear)))
            else:
                detail = "not sent: it would take the slot of the next real one"
                steps.append(Step(name=name, ok=None, detail=detail, remedy="doctor --send-report sends one"))
            steps.append(self._alarms())
        except _Wrong as wrong:
            steps.append(Step(name=name, ok=False, detail=str(wrong), remedy=wrong.remedy))
        except KinwatchError as error:
            steps.append(_failed(name, error))
        finally:
            if link is not None:
                await link.stop(STOP_S)
        return steps

    def _link(self) -> Link:
        connection = connection_of(self._settings)
        return chosen(self._settings).link(msgspec.structs.replace(connection, client_id=self._own_id, session_s=0))

    async def _greeted(self, ear: _Ear) -> str:
        try:
            async with asyncio.timeout(CONNECT_S):
                why = await ear.up
        except TimeoutError:
            raise _Wrong(f"no answer to CONNECT within {CONNECT_S:.0f} s", "is it an MQTT 5 broker?") from None
        if why:
            raise _Wrong(why, self._allow_connect(why))
        return f"as {self._own_id}, so that {self._client_id} stays connected where it runs"

    def _allow_connect(self, why: str) -> str:
        if "refused with 134" in why:
            return "look at defender.auth.username and defender.auth.password_file"
        if "TLS" in why:
            return _CERTIFICATE
        if "refused with" in why or "hung up" in why:
            return (
                f"the policy must allow iot:Connect on client/{self._client_id}, for the daemon, and on"
                f" client/{self._own_id}, for this trial"
            )
        return "look at defender.endpoint, defender.port, defender.proxy and the credentials"

    async def _subscribed(self, link: Link) -> str:
        filters = [f"{self._topic}/{answer}" for answer in ("accepted", "rejected")]
        try:
            await link.subscribe(filters)
        except KinwatchError as error:
            places = " and ".join(f"topicfilter/{name}" for name in filters)
            raise _Wrong(str(error), f"the policy must allow iot:Subscribe on {places}") from error
        return " and ".join(filters)

    async def _reported(self, link: Link, ear: _Ear) -> str:
        report_id = int(self._now_s)
        document = {"header": {"report_id": report_id, "version": VERSION}, "metrics": {}}
        try:
            await link.publish(self._topic, encode(document, self._settings.format))
        except Refused as error:
            raise _Wrong(str(error), f"the policy must allow iot:Publish on topic/{self._topic}") from error
        except KinwatchError as error:
            raise _Wrong(str(error), f"does the policy allow iot:Publish on topic/{self._topic}?") from error
        answer_s = self._settings.answer_s
        answer: answers.Answer | None = None
        try:
            async with asyncio.timeout(answer_s):
                while answer is None or answer.report_id not in {None, report_id}:
                    answer = answers.parse(*await ear.messages.get(), self._settings.thing)
        except TimeoutError:
            what = f"the broker took report {report_id}, and no answer came within {answer_s} s"
            remedy = (
                f"the policy must allow iot:Receive on topic/{self._topic}/accepted and /rejected; else the account has"
                " no Device Defender Detect, or a report was sent a short while ago"
            )
            raise _Wrong(what, remedy) from None
        if not answer.accepted:
            remedy = "if one was sent within the last 300 s, try again later"
            raise _Wrong(f"report {report_id} was rejected: {answer.code} {answer.message}".rstrip(), remedy)
        return f"report {report_id} was accepted"

    def _alarms(self) -> Step:
        names = [name for key in ("alarm_topic", "events_topic") if (name := topic(self._settings, key))]
        if not names:
            return Step(name="alarms", ok=None, detail="not tried: there is no topic for them")
        places = " and ".join(f"topic/{name}" for name in names)
        detail = "not tried: an alarm would be taken for a real one"
        return Step(name="alarms", ok=None, detail=detail, remedy=f"the policy must allow iot:Publish on {places}")

    @property
    def _topic(self) -> str:
        return answers.TOPIC.format(thing=self._settings.thing, format=self._settings.format)


class _Ear:
    """Hears one link."""

    def __init__(self) -> None:
        self.up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """ "" when the connection stands, else why not."""
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def connected(self, *, resumed: bool) -> None:  # noqa: ARG002 - the session is a new one
        self._first("")

    def disconnected(self, why: str) -> None:
        self._first(why)

    def received(self, topic: str, payload: bytes) -> None:
        self.messages.put_nowait((topic, payload))

    def _first(self, why: str) -> None:
        if not self.up.done():
            self.up.set_result(why)


def _failed(name: str, error: KinwatchError) -> Step:
    what, _, remedy = str(error).partition("; ")
    return Step(name=name, ok=False, detail=what, remedy=remedy)


def _resolved(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Wrong(f"{host} has no address: {_said(error)}", "look at the name, and at /etc/resolv.conf") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _connected(addresses: list[str], port: int) -> tuple[socket.socket, str]:
    """The first address that takes a connection, as the resolver orders them."""
    failed = []
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), timeout=REACH_S)
        except OSError as error:
            failed.append(f"{address}: {_said(error)}")
            continue
        family = "IPv6" if ":" in address else "IPv4"
        return connection, "; ".join([f"{address} port {port} ({family})", *failed])
    raise _Wrong(f"port {port}: {', '.join(failed)}", "look at the port, the network, and firewalls in between")


def _context(settings: Defender) -> ssl.SSLContext:
    """As the link has it, with the standard library, which says what is wrong at once and in words."""
    method = settings.auth.method
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.root_ca:
        context.load_verify_locations(settings.root_ca)
    else:
        context.load_default_certs()
    if method == "mtls":
        context.load_cert_chain(settings.certificate, settings.private_key)
    if settings.port == _ALPN_PORT or method == "custom-authorizer":
        context.set_alpn_protocols([_ALPN[method]])
    return context


def _refusal(wrapped: ssl.SSLSocket) -> None:
    """With TLS 1.3 a refused certificate shows only when something is read."""
    wrapped.settimeout(REFUSAL_S)
    try:
        if wrapped.recv(1):
            return
        said = "it hung up"
    except TimeoutError:
        return
    except OSError as error:
        said = _said(error)
    raise _Wrong(f"the broker refuses the certificate: {said}", _CERTIFICATE)


def _described(wrapped: ssl.SSLSocket) -> str:
    peer: dict[str, Any] = wrapped.getpeercert() or {}
    names = {key: value for part in peer.get("subject", ()) for key, value in part}
    who = names.get("commonName") or ", ".join(value for _, value in peer.get("subjectAltName", ()))
    day = time.strftime("%Y-%m-%d", time.gmtime(ssl.cert_time_to_seconds(peer["notAfter"])))
    alpn = wrapped.selected_alpn_protocol()
    return f"{wrapped.version()} with {who}, valid until {day}" + (f", {alpn}" if alpn else "")


def _distrusted(error: ssl.SSLCertVerificationError, settings: Defender) -> _Wrong:
    what = f"the broker's certificate is not trusted: {error.verify_message}"
    if "mismatch" in error.verify_message:
        return _Wrong(what, f"defender.endpoint must be a name in that certificate; {settings.endpoint} is none")
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return _Wrong(what, f"is the clock right? Here it is {time.strftime('%Y-%m-%d', time.gmtime())}")
    ours = settings.root_ca or "that of the system"
    return _Wrong(what, f"defender.root_ca ({ours}) must be the authority that issued it; for AWS IoT Amazon Root CA 1")


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
