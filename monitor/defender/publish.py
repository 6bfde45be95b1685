"""The link over awsiotsdk's MQTT 5 client: the only file that knows awscrt.

Owns the connection and the words for its failures. Refuses to queue while there is no connection: the spool does.
Callbacks come in a thread of the AWS runtime and are handed to the loop at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import awscrt.auth
import awscrt.http
import awscrt.io
import msgspec
from awscrt import mqtt5
from awsiot import mqtt5_client_builder as builder

from monitor.defender.link import Refused, Unreachable
from monitor.schema import Auth, Defender, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from monitor.defender.link import Listener

ACK_S: Final = 30
"""Longest wait for an acknowledgement."""
SESSION_S: Final = 3600
"""How long the broker keeps the session of a connection that broke; AWS IoT's default."""
_ERROR: Final = 128
_WORDS: Final = {
    "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE": "TLS failed; is root_ca the broker's, and endpoint its name?",
    "AWS_IO_TLS_ERROR_READ_FAILURE": "the broker ended TLS; does it know this certificate, and is it active?",
    "AWS_IO_SOCKET_CONNECTION_REFUSED": "nobody listens on that port",
    "AWS_IO_DNS_QUERY_FAILED": "the name of the endpoint is not known",
    "AWS_IO_DNS_INVALID_NAME": "the name of the endpoint is not known",
    "AWS_ERROR_MQTT_UNEXPECTED_HANGUP": "the broker hung up; does another client use this client id?",
    "AWS_ERROR_MQTT_TIMEOUT": "no acknowledgement came in time",
    "AWS_ERROR_MQTT5_PING_RESPONSE_TIMEOUT": "the broker is silent",
}
_REASONS: Final = {
    134: "bad user name or password",
    135: "not authorized; does the policy allow it?",
    142: "another client took over this client id",
    144: "topic name invalid",
    149: "packet too large",
    151: "quota exceeded",
}


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


def connection_of(settings: Defender) -> Connection:
    """What the configuration says."""
    return Connection(
        endpoint=settings.endpoint,
        port=settings.port,
        client_id=settings.client_id or f"{settings.thing}-kinwatch",
        root_ca=settings.root_ca,
        certificate=settings.certificate,
        private_key=settings.private_key,
        keep_alive_s=settings.keep_alive_s,
        auth=settings.auth,
        proxy=settings.proxy,
    )


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

    def start(self, listener: Listener) -> None:
        """Connect, and again whenever the connection breaks."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._client = _client(
            self._connection,
            {
                "on_publish_received": self._on_message,
                "on_lifecycle_connection_success": self._on_success,
                "on_lifecycle_connection_failure": self._on_failure,
                "on_lifecycle_disconnection": self._on_disconnection,
                "on_lifecycle_stopped": lambda _: self._hand(self._stopped.set),
            },
        )
        self._client.start()

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """Send with QoS 1, after everything published earlier."""
        done: asyncio.Future[None] = self._loop.create_future()
        if self._client is None or not self._up:
            done.set_exception(Unreachable("there is no connection"))
            return done
        packet = mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)

        def acknowledged(future: Any) -> None:  # noqa: ANN401 - untyped
            error: Exception | None = future.exception()
            if error is not None:
                self._hand(_settle, done, Unreachable(_words(error)))
                return
            puback = future.result().puback
            code = 0 if puback is None else int(puback.reason_code)
            self._hand(_settle, done, _refusal(f"publish to {topic}", code, puback) if code >= _ERROR else None)

        self._client.publish(packet).add_done_callback(acknowledged)
        return done

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1."""
        if self._client is None or not self._up:
            raise Unreachable("there is no connection")
        wanted = [mqtt5.Subscription(topic_filter=name, qos=mqtt5.QoS.AT_LEAST_ONCE) for name in filters]
        try:
            suback = await asyncio.wrap_future(self._client.subscribe(mqtt5.SubscribePacket(subscriptions=wanted)))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise Unreachable(_words(error)) from error
        for name, code in zip(filters, suback.reason_codes, strict=False):
            if int(code) >= _ERROR:
                raise _refusal(f"subscribe to {name}", int(code), suback)

    async def stop(self, timeout_s: float) -> None:
        """Say goodbye; after `timeout_s` leave without."""
        client, self._client = self._client, None
        self._listener = None
        if client is None:
            return
        client.stop(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.NORMAL_DISCONNECTION))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._stopped.wait()

    # -------- in the thread of the AWS runtime --------

    def _hand(self, what: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what, *arguments)

    def _on_message(self, data: Any) -> None:  # noqa: ANN401
        packet = data.publish_packet
        self._hand(self._received, packet.topic, bytes(packet.payload or b""))

    def _on_success(self, data: Any) -> None:  # noqa: ANN401
        self._hand(self._connected, bool(data.negotiated_settings.rejoined_session))

    def _on_failure(self, data: Any) -> None:  # noqa: ANN401
        self._hand(self._disconnected, _why(data.exception, data.connack_packet))

    def _on_disconnection(self, data: Any) -> None:  # noqa: ANN401
        self._hand(self._disconnected, _why(data.exception, data.disconnect_packet))

    # -------- in the loop --------

    def _received(self, topic: str, payload: bytes) -> None:
        if self._listener is not None:
            self._listener.received(topic, payload)

    def _connected(self, resumed: bool) -> None:  # noqa: FBT001 - handed over by position
        self._up = True
        if self._listener is not None:
            self._listener.connected(resumed=resumed)

    def _disconnected(self, why: str) -> None:
        self._up = False
        if self._listener is not None:
            self._listener.disconnected(why)


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _refusal(what: str, code: int, packet: Any) -> Refused:  # noqa: ANN401
    said = f" ({packet.reason_string})" if getattr(packet, "reason_string", None) else ""
    return Refused(f"{what} was refused with {code}: {_REASONS.get(code, 'see the MQTT 5 reason codes')}{said}", code)


def _why(error: Any, packet: Any) -> str:  # noqa: ANN401
    code = int(packet.reason_code) if packet is not None else 0
    if code >= _ERROR:
        return f"refused with {code}: {_REASONS.get(code, 'see the MQTT 5 reason codes')}"
    return _words(error)


def _words(error: Any) -> str:  # noqa: ANN401
    name = getattr(error, "name", "") or str(error)
    return f"{_WORDS[name]} ({name})" if name in _WORDS else name


def _client(connection: Connection, callbacks: dict[str, Any]) -> mqtt5.Client:
    """Make the client that the configured way of proving who we are needs."""
    validation = mqtt5.ExtendedValidationAndFlowControlOptions
    options: dict[str, Any] = {
        "endpoint": connection.endpoint,
        "port": connection.port,
        "client_id": connection.client_id,
        "keep_alive_interval_sec": connection.keep_alive_s,
        "ping_timeout_ms": min(30_000, (connection.keep_alive_s - 1) * 1000),
        "ack_timeout_sec": ACK_S,
        "session_behavior": mqtt5.ClientSessionBehaviorType.REJOIN_ALWAYS,
        "session_expiry_interval_sec": SESSION_S,
        "offline_queue_behavior": mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
        "retry_jitter_mode": mqtt5.ExponentialBackoffJitterMode.FULL,
        "min_reconnect_delay_ms": connection.reconnect_ms[0],
        "max_reconnect_delay_ms": connection.reconnect_ms[1],
        "extended_validation_and_flow_control_options": (
            validation.AWS_IOT_CORE_DEFAULTS if connection.throttle else validation.NONE
        ),
        "enable_metrics_collection": False,
        **callbacks,
    }
    if connection.root_ca:
        options["ca_filepath"] = connection.root_ca
    if connection.proxy.host:
        options["http_proxy_options"] = awscrt.http.HttpProxyOptions(connection.proxy.host, connection.proxy.port)
    return _MAKERS[connection.auth.method](connection, options)


def _mtls(connection: Connection, options: dict[str, Any]) -> mqtt5.Client:
    if connection.certificate:
        return builder.mtls_from_path(connection.certificate, connection.private_key, **options)
    plain = mqtt5.ClientOptions(
        host_name=connection.endpoint,
        port=connection.port,
        connect_options=mqtt5.ConnectPacket(
            client_id=connection.client_id,
            keep_alive_interval_sec=connection.keep_alive_s,
            session_expiry_interval_sec=SESSION_S,
        ),
        session_behavior=options["session_behavior"],
        offline_queue_behavior=options["offline_queue_behavior"],
        ack_timeout_sec=ACK_S,
        on_publish_callback_fn=options["on_publish_received"],
        on_lifecycle_event_stopped_fn=options["on_lifecycle_stopped"],
        on_lifecycle_event_connection_success_fn=options["on_lifecycle_connection_success"],
        on_lifecycle_event_connection_failure_fn=options["on_lifecycle_connection_failure"],
        on_lifecycle_event_disconnection_fn=options["on_lifecycle_disconnection"],
        disable_metrics=True,
    )
    return mqtt5.Client(client_options=plain)


def _pkcs11(connection: Connection, options: dict[str, Any]) -> mqtt5.Client:
    auth = connection.auth
    library = awscrt.io.Pkcs11Lib(file=auth.library, behavior=awscrt.io.Pkcs11Lib.InitializeFinalizeBehavior.STRICT)
    return builder.mtls_with_pkcs11(
        pkcs11_lib=library,
        user_pin=_secret(auth.pin_file),
        token_label=auth.token or None,
        private_key_label=auth.key_label or None,
        cert_filepath=connection.certificate,
        **options,
    )


def _websocket(connection: Connection, options: dict[str, Any]) -> mqtt5.Client:
    provider = awscrt.auth.AwsCredentialsProvider
    profile = connection.auth.profile
    credentials = provider.new_profile(profile_name=profile) if profile else provider.new_default_chain()
    # example-ats.iot.eu-west-1.amazonaws.com
    _, _, after = connection.endpoint.partition(".iot.")
    region = connection.auth.region or after.partition(".")[0]
    return builder.websockets_with_default_aws_signing(region, credentials, **options)


def _custom(connection: Connection, options: dict[str, Any]) -> mqtt5.Client:
    auth = connection.auth
    return builder.direct_with_custom_authorizer(
        auth_username=auth.username or None,
        auth_authorizer_name=auth.authorizer or None,
        auth_authorizer_signature=_secret(auth.signature_file) or None,
        auth_password=_secret(auth.password_file).encode() or None,
        auth_token_key_name=auth.token_key or None,
        auth_token_value=_secret(auth.token_file) or None,
        **options,
    )


_MAKERS: Final = {"mtls": _mtls, "pkcs11": _pkcs11, "websocket": _websocket, "custom-authorizer": _custom}


def _secret(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").rstrip("\n") if path else ""
