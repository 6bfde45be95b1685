"""What went wrong with a connection, in words: errors of the AWS runtime by name, reason codes of MQTT 5.

Owns the words. Refuses to know the runtime: what has a name or a reason_code will do.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any, Final

ERROR: Final = 128
"""Reason codes from here on are failures (MQTT 5.0, 2.4)."""
_WORDS: Final = {
    "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE": "TLS failed; is root_ca the broker's, and endpoint its name?",
    "AWS_IO_TLS_NEGOTIATION_TIMEOUT": "TLS did not come about in time; is it a TLS port?",
    "AWS_IO_TLS_ERROR_READ_FAILURE": "the broker ended TLS; does it know this certificate, and is it active?",
    "AWS_IO_TLS_ERROR_ALERT_RECEIVED": "the broker ended TLS; does it know this certificate, and is it active?",
    "AWS_IO_SOCKET_CONNECTION_REFUSED": "nobody listens on that port",
    "AWS_IO_SOCKET_TIMEOUT": "no connection came about in time; is there a firewall?",
    "AWS_IO_SOCKET_NO_ROUTE_TO_HOST": "there is no way to that address; is the network up?",
    "AWS_IO_SOCKET_NETWORK_DOWN": "the network is down",
    "AWS_IO_SOCKET_CLOSED": "the connection was closed",
    "AWS_IO_DNS_QUERY_FAILED": "the name of the endpoint is not known",
    "AWS_IO_DNS_QUERY_AGAIN": "no name server answers",
    "AWS_IO_DNS_INVALID_NAME": "the name of the endpoint is not known",
    "AWS_IO_DNS_NO_ADDRESS_FOR_HOST": "the name of the endpoint has no address",
    "AWS_ERROR_HTTP_PROXY_CONNECT_FAILED": "the proxy does not let us through",
    "AWS_ERROR_HTTP_WEBSOCKET_UPGRADE_FAILURE": "the WebSocket was refused; are AWS credentials and clock right?",
    "AWS_ERROR_MQTT5_CONNACK_TIMEOUT": "the broker does not answer to CONNECT",
    "AWS_ERROR_MQTT_UNEXPECTED_HANGUP": "the broker hung up; did it end, or does another client use this client id?",
    "AWS_ERROR_MQTT_TIMEOUT": "no acknowledgement came in time",
    "AWS_ERROR_MQTT5_PING_RESPONSE_TIMEOUT": "the broker is silent",
    "AWS_ERROR_MQTT5_OPERATION_FAILED_DUE_TO_OFFLINE_QUEUE_POLICY": "the connection broke before the acknowledgement",
    "AWS_ERROR_MQTT5_USER_REQUESTED_STOP": "the link was stopped before the acknowledgement",
}
_REASONS: Final = {
    128: "the broker does not say why",
    133: "client id invalid",
    134: "bad user name or password",
    135: "not authorized; does the policy allow it?",
    136: "the broker is unavailable",
    137: "the broker is busy",
    139: "the broker is shutting down",
    140: "bad authentication method",
    141: "it heard nothing for longer than the keep-alive",
    142: "another client took over this client id",
    143: "topic filter invalid",
    144: "topic name invalid",
    147: "too many messages without acknowledgement",
    149: "packet too large",
    150: "too many messages",
    151: "quota exceeded",
    153: "payload format invalid",
}


SILENT: Final = _WORDS["AWS_ERROR_MQTT5_PING_RESPONSE_TIMEOUT"]
UNANSWERED: Final = _WORDS["AWS_ERROR_MQTT5_CONNACK_TIMEOUT"]
_PYTHON: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ssl.SSLCertVerificationError, "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE"),
    (ssl.SSLEOFError, "AWS_IO_SOCKET_CLOSED"),
    (ssl.SSLError, "AWS_IO_TLS_ERROR_ALERT_RECEIVED"),
    (socket.gaierror, "AWS_IO_DNS_QUERY_FAILED"),
    (ConnectionRefusedError, "AWS_IO_SOCKET_CONNECTION_REFUSED"),
    (TimeoutError, "AWS_IO_SOCKET_TIMEOUT"),
)
"""Python's errors, special ones first, and the runtime's that mean the same."""


def broke(error: BaseException | None, *, judging: bool) -> str:
    """An error of Python's sockets in words, with what it says; None: the broker hung up.

    `judging`: it gets our certificate and has not answered yet. An end without a word may be that it does not take it:
    with TLS 1.3 it looks at it after the handshake, and its alert may come too late to be read.
    """
    if error is None:
        return _WORDS["AWS_ERROR_MQTT_UNEXPECTED_HANGUP"]
    said = " ".join(str(error).split())
    if judging and isinstance(error, (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)):
        return f"{_WORDS['AWS_IO_TLS_ERROR_READ_FAILURE']} ({said})"
    for kind, name in _PYTHON:
        if isinstance(error, kind):
            return f"{_WORDS[name]} ({said})"
    return said


def reason(code: int, packet: Any) -> str:  # noqa: ANN401
    """A reason code of MQTT 5 in words, with what the broker said besides; `packet`: the one that had it."""
    said = f" ({packet.reason_string})" if getattr(packet, "reason_string", None) else ""
    return f"{code}: {_REASONS.get(code, 'see the MQTT 5 reason codes')}{said}"


def why(error: Any, packet: Any) -> str:  # noqa: ANN401
    """Why there is no connection: `error` of the runtime, `packet` of the broker (CONNACK or DISCONNECT) or None."""
    code = 0 if packet is None else int(packet.reason_code or 0)
    if code >= ERROR:
        return f"refused with {reason(code, packet)}"
    return words(error)


def words(error: Any) -> str:  # noqa: ANN401
    """An error of the runtime in words, with its name."""
    name = getattr(error, "name", "") or str(error)
    return f"{_WORDS[name]} ({name})" if name in _WORDS else name
