"""The link over awsiotsdk's MQTT 5 client: the only file that knows awscrt.

Owns the connection and the words for its failures. Refuses to queue while there is no connection: the spool does.
Callbacks come in a thread of the AWS runtime and are handed to the loop at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import awscrt.auth
import awscrt.http
import awscrt.io
from awscrt import mqtt5
from awsiot import mqtt5_client_builder as builder

from monitor.defender.connection import ACK_S
from monitor.defender.link import TOO_LARGE, TOPIC_INVALID, Refused, Unreachable
from monitor.defender.nodelay import send_at_once
from monitor.defender.reasons import ERROR, reason, why, words
from monitor.errors import ConfigInvalid
from monitor.publishing import region_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.defender.connection import Connection
    from monitor.defender.link import Listener

PING_S: Final = 30
"""Longest wait for the answer to a ping; never longer than the time between two of them."""
# What the token says, by a part of the name of the runtime's error.
_TOKEN_KEYS: Final = {
    "_PIN_": ("defender.auth.pin_file", "the token does not take this PIN"),
    "TOKEN_NOT_FOUND": ("defender.auth.token", "no token, or more than one, has this label"),
    "KEY_NOT_FOUND": ("defender.auth.key_label", "no private key, or more than one, has this label"),
}


def log_to_stderr(level: str) -> None:
    """Have the AWS runtime write what it does. `level`: a name of awscrt.io.LogLevel."""
    awscrt.io.init_logging(awscrt.io.LogLevel[level], "stderr")


class MqttLink:
    """A Link (monitor.defender.link) to an MQTT 5 broker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: mqtt5.Client | None = None
        self._listener: Listener | None = None
        self._up = False
        self._stopped = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()
        """What no acknowledgement came for yet."""
        self._handed: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._called = False

    @property
    def client(self) -> Any:  # noqa: ANN401 - untyped
        """The runtime's own client, for awsiotsdk's clients of services; None before `start`."""
        return self._client

    def start(self, listener: Listener) -> None:
        """Connect, and again whenever the connection breaks.

        Raises ConfigInvalid: a file or a token is not (any more) what the configuration says.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        callbacks = {
            "on_publish_callback_fn": self._on_message,
            "on_lifecycle_event_connection_success_fn": self._on_success,
            "on_lifecycle_event_connection_failure_fn": self._on_failure,
            "on_lifecycle_event_disconnection_fn": self._on_disconnection,
            "on_lifecycle_event_stopped_fn": lambda _: self._hand(self._stopped.set),
        }
        try:
            self._client = _client(self._connection, callbacks)
        except Exception as error:
            raise _impossible(self._connection, error) from error
        self._client.start()

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Send with QoS 1, after everything published earlier."""
        packet = mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)

        def judge(result: Any) -> Refused | None:  # noqa: ANN401 - untyped
            code = 0 if result.puback is None else int(result.puback.reason_code or 0)
            return _refusal(f"publish to {topic}", code, result.puback) if code >= ERROR else None

        return self._issue(f"publish to {topic}", lambda client: client.publish(packet), judge)

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1."""
        wanted = [mqtt5.Subscription(topic_filter=name, qos=mqtt5.QoS.AT_LEAST_ONCE) for name in filters]
        packet = mqtt5.SubscribePacket(subscriptions=wanted)

        def judge(suback: Any) -> Refused | None:  # noqa: ANN401
            for name, code in zip(filters, suback.reason_codes, strict=False):
                if int(code) >= ERROR:
                    return _refusal(f"subscribe to {name}", int(code), suback)
            return None

        await self._issue(f"subscribe to {', '.join(filters)}", lambda client: client.subscribe(packet), judge)

    async def stop(self, timeout_s: float) -> None:
        """Say goodbye; after `timeout_s` leave without. What was not acknowledged by then is Unreachable."""
        client, self._client = self._client, None
        self._listener = None
        self._up = False
        if client is None:
            return
        client.stop(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.NORMAL_DISCONNECTION))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._stopped.wait()
        finally:
            self._give_up("the link was stopped before the acknowledgement")

    def _issue(
        self, what: str, issue: Callable[[mqtt5.Client], Any], judge: Callable[[Any], Refused | None]
    ) -> asyncio.Future[None]:
        """Give the runtime something to do; `judge` says what its acknowledgement means."""
        done: asyncio.Future[None] = self._loop.create_future()
        if self._client is None or not self._up:
            done.set_exception(Unreachable("there is no connection"))
            return done
        try:
            future = issue(self._client)
        except Exception as error:  # noqa: BLE001 - the runtime refuses to send what the broker could not take
            done.set_exception(Refused(f"{what} is impossible: {words(error)}", TOPIC_INVALID))
            return done
        self._waiting.add(done)
        future.add_done_callback(lambda future: self._hand(self._acknowledged, what, done, future, judge))
        return done

    # -------- in the thread of the AWS runtime --------

    def _hand(self, what: Callable[..., object], *arguments: object) -> None:
        """Have it done in the loop, in order; one wake-up for all that comes until it is up."""
        self._handed.append((what, arguments))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._take)

    def _on_message(self, data: Any) -> None:  # noqa: ANN401
        packet = data.publish_packet
        self._hand(self._received, packet.topic, bytes(packet.payload or b""))

    def _on_success(self, data: Any) -> None:  # noqa: ANN401
        self._hand(self._connected, bool(data.negotiated_settings.rejoined_session))

    def _on_failure(self, data: Any) -> None:  # noqa: ANN401
        self._hand(self._disconnected, why(data.exception, data.connack_packet))

    def _on_disconnection(self, data: Any) -> None:  # noqa: ANN401
        self._hand(self._disconnected, why(data.exception, data.disconnect_packet))

    # -------- in the loop --------

    def _take(self) -> None:
        self._called = False  # first: what comes from now on calls again
        for _ in range(len(self._handed)):
            what, arguments = self._handed.popleft()
            try:
                what(*arguments)
            except Exception as error:  # noqa: BLE001 - one that fails must not take the others with it
                self._loop.call_exception_handler({"message": "the listener failed", "exception": error})

    def _acknowledged(
        self,
        what: str,
        done: asyncio.Future[None],
        future: Any,  # noqa: ANN401
        judge: Callable[[Any], Refused | None],
    ) -> None:
        error = future.exception()
        if error is None:
            self._settle(done, judge(future.result()))
        elif getattr(error, "name", "") == "AWS_ERROR_MQTT5_PACKET_VALIDATION":
            self._settle(done, Refused(f"{what} is impossible: the packet is larger than the broker takes", TOO_LARGE))
        else:
            self._settle(done, Unreachable(f"{what}: {words(error)}"))

    def _settle(self, done: asyncio.Future[None], error: Exception | None) -> None:
        self._waiting.discard(done)
        if done.done():  # cancelled, or too late
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def _give_up(self, why: str) -> None:
        """The runtime keeps what it had not written until the next connection, and forgets it after stop()."""
        for done in self._waiting.copy():
            self._settle(done, Unreachable(why))

    def _received(self, topic: str, payload: bytes) -> None:
        if self._listener is not None:
            self._listener.received(topic, payload)

    def _connected(self, resumed: bool) -> None:  # noqa: FBT001 - handed over by position
        if self._listener is not None:
            proxy = self._connection.proxy
            send_at_once(proxy.port if proxy.host else self._connection.port)
            self._up = True
            self._listener.connected(resumed=resumed)

    def _disconnected(self, why: str) -> None:
        self._up = False
        self._give_up(f"the connection broke before the acknowledgement: {why}")
        if self._listener is not None:
            self._listener.disconnected(why)


def _refusal(what: str, code: int, packet: Any) -> Refused:  # noqa: ANN401
    return Refused(f"{what} was refused with {reason(code, packet)}", code)


def _impossible(connection: Connection, error: Exception) -> ConfigInvalid:
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return ConfigInvalid(f"defender: {error.filename} cannot be read: {error.strerror}; name a file that is there")
    if connection.auth.method == "pkcs11":
        key, what = next(
            (found for part, found in _TOKEN_KEYS.items() if part in text),
            ("defender.auth.library", "no session with the token came about"),
        )
        return ConfigInvalid(f"{key}: {what} ({text}); look with 'p11tool --list-tokens' or 'pkcs11-tool -L'")
    return ConfigInvalid(f"defender: no TLS can be made with these files ({text}); try 'kinwatch doctor'")


def _client(connection: Connection, callbacks: dict[str, Any]) -> mqtt5.Client:
    """Make the client that the configured way of proving who we are needs."""
    validation = mqtt5.ExtendedValidationAndFlowControlOptions
    sessions = mqtt5.ClientSessionBehaviorType
    options = mqtt5.ClientOptions(
        host_name=connection.endpoint,
        port=connection.port,
        connect_options=mqtt5.ConnectPacket(
            client_id=connection.client_id,
            keep_alive_interval_sec=connection.keep_alive_s,
            session_expiry_interval_sec=connection.session_s,
        ),
        ping_timeout_ms=min(PING_S, connection.keep_alive_s - 1) * 1000,
        ack_timeout_sec=ACK_S,
        session_behavior=sessions.REJOIN_ALWAYS if connection.session_s else sessions.CLEAN,
        offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
        retry_jitter_mode=mqtt5.ExponentialBackoffJitterMode.FULL,
        min_reconnect_delay_ms=connection.reconnect_ms[0],
        max_reconnect_delay_ms=connection.reconnect_ms[1],
        extended_validation_and_flow_control_options=(
            validation.AWS_IOT_CORE_DEFAULTS if connection.throttle else validation.NONE
        ),
        disable_metrics=True,
        **callbacks,
    )
    if connection.proxy.host:
        options.http_proxy_options = awscrt.http.HttpProxyOptions(connection.proxy.host, connection.proxy.port)
    # endpoint: the builder asks for it although the options have it
    common = {"client_options": options, "endpoint": connection.endpoint, "enable_metrics_collection": False}
    if connection.root_ca:
        common["ca_filepath"] = connection.root_ca
    return _MAKERS[connection.auth.method](connection, common)


def _mtls(connection: Connection, common: dict[str, Any]) -> mqtt5.Client:
    if connection.certificate:
        return builder.mtls_from_path(connection.certificate, connection.private_key, **common)
    return mqtt5.Client(client_options=common["client_options"])


def _pkcs11(connection: Connection, common: dict[str, Any]) -> mqtt5.Client:
    auth = connection.auth
    return builder.mtls_with_pkcs11(
        pkcs11_lib=_library(auth.library),
        user_pin=_secret(auth.pin_file),
        token_label=auth.token or None,
        private_key_label=auth.key_label or None,
        cert_filepath=connection.certificate,
        **common,
    )


@functools.cache
def _library(path: str) -> awscrt.io.Pkcs11Lib:
    """Once for the process: a second connection may begin before the first one let go of it."""
    return awscrt.io.Pkcs11Lib(file=path, behavior=awscrt.io.Pkcs11Lib.InitializeFinalizeBehavior.STRICT)


def _websocket(connection: Connection, common: dict[str, Any]) -> mqtt5.Client:
    provider = awscrt.auth.AwsCredentialsProvider
    profile = connection.auth.profile
    credentials = provider.new_profile(profile_name=profile) if profile else provider.new_default_chain()
    region = connection.auth.region or region_of(connection.endpoint)
    return builder.websockets_with_default_aws_signing(region, credentials, **common)


def _custom(connection: Connection, common: dict[str, Any]) -> mqtt5.Client:
    auth = connection.auth
    return builder.direct_with_custom_authorizer(
        auth_username=auth.username or None,
        auth_authorizer_name=_quoted(auth.authorizer) or None,
        auth_authorizer_signature=_secret(auth.signature_file) or None,  # the builder quotes it
        auth_password=_secret(auth.password_file).encode() or None,
        auth_token_key_name=_quoted(auth.token_key) or None,
        auth_token_value=_quoted(_secret(auth.token_file)) or None,
        **common,
    )


_MAKERS: Final = {"mtls": _mtls, "pkcs11": _pkcs11, "websocket": _websocket, "custom-authorizer": _custom}


def _quoted(text: str) -> str:
    """Part of a query string; what is quoted already stays as it is, as the builder has it with signatures."""
    return text if "%" in text else quote(text, safe="")


def _secret(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").rstrip("\r\n") if path else ""
