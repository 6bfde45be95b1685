"""One Defender v1.0 document from metrics and device blocks.

Owns the document's shape, what its values may look like, its size. Refuses to know clocks, files, sockets and senders.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import cbor2
import msgspec

from monitor.defender.names import SHORT, VALUE_KEYS
from monitor.errors import ReportInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from monitor.detect.device import DeviceBlocks, Port
    from monitor.detect.metrics import Metric

Names = Literal["long", "short"]
Format = Literal["json", "cbor"]
Document = dict[str, Any]

VERSION: Final = "1.0"
MAX_BYTES: Final = 128 * 1024
"""Most bytes of an MQTT payload that AWS IoT Core takes; Device Defender names no smaller figure."""
DIGITS: Final = 15
"""Most significant digits of a custom number that the service keeps."""

_LARGEST: Final = 1.79769313486231e308  # largest double of 15 digits; the largest of all rounds to infinity
_NOT_ALLOWED: Final = re.compile(r"[^A-Za-z0-9:_./-]")


def next_report_id(last: int | None, now_s: int) -> int:
    """Id of the next report: seconds since the epoch, yet above the last one whatever the clock did."""
    return max((last or 0) + 1, now_s)


def document(report_id: int, metrics: Iterable[Metric], device: DeviceBlocks | None, names: Names = "long") -> Document:
    """Write a report, with the long or the short keys. Raises ReportInvalid for a number or an address that is none.

    Strings are reduced to the characters the service keeps. An empty custom list is left out: whether the service takes
    one is not documented, and a refusal would take the numbers, which carry the alarm, down with it. The lists of the
    device blocks may be empty, that is documented to conform. Without `device` there is no `metrics`.
    """
    key = _keys(names)
    written: Document = {key("header"): {key("report_id"): report_id, key("version"): VERSION}}
    if device is not None:
        written[key("metrics")] = _device(device, key)
    custom = {metric.name: [{VALUE_KEYS[metric.kind]: value}] for metric in metrics if (value := _value(metric)) != []}
    if custom or device is None:
        written[key("custom_metrics")] = custom
    return written


def encode(document: Document, format: Format = "json") -> bytes:  # noqa: A002 - the word of flags and topics
    """Serialise a document, compact."""
    return msgspec.json.encode(document) if format == "json" else cbor2.dumps(document)


class Trimmed(msgspec.Struct, frozen=True, kw_only=True):
    """A document that fits, and what it had to leave out."""

    document: Document
    payload: bytes
    dropped: dict[str, int]
    """Entries left out, by the dotted path of their list; empty when everything fitted."""


def fit(
    document: Document,
    format: Format = "json",  # noqa: A002 - as in encode
    max_bytes: int = MAX_BYTES,
) -> Trimmed:
    """Serialise within `max_bytes`: while too long, the list of most bytes loses the second half of its entries.

    Totals beside the lists stay true; no custom list becomes empty. Raises ReportInvalid when there is none to shorten.
    """
    payload = encode(document, format)
    dropped: dict[str, int] = {}
    if len(payload) > max_bytes:
        document = msgspec.json.decode(msgspec.json.encode(document))  # a copy: the caller's stays as it is
    while len(payload) > max_bytes:
        lists = [(len(encode({"": entries}, format)), path, entries) for path, entries in _lists(document, "")]
        if not lists:
            raise ReportInvalid(f"the report takes {len(payload)} of {max_bytes} bytes and has no list to shorten")
        _, path, entries = max(lists, key=lambda item: item[:2])
        keep = len(entries) // 2
        dropped[path] = dropped.get(path, 0) + len(entries) - keep
        del entries[keep:]
        payload = encode(document, format)
    return Trimmed(document=document, payload=payload, dropped=dropped)


def _lists(node: object, path: str) -> list[tuple[str, list[Any]]]:
    """Every list of more than one entry; a list of one is a custom metric's wrapper or has nothing to spare."""
    if isinstance(node, dict):
        return [found for name, inner in node.items() for found in _lists(inner, f"{path}.{name}".lstrip("."))]
    if not isinstance(node, list):
        return []
    if len(node) > 1:
        return [(path, node)]
    return [found for inner in node for found in _lists(inner, path)]


def reduced(text: str) -> str:
    """Write text with the characters that the service keeps."""
    return _NOT_ALLOWED.sub("_", text)


def _keys(names: Names) -> Callable[[str], str]:
    return SHORT.__getitem__ if names == "short" else str


def _value(metric: Metric) -> Any:  # noqa: ANN401 - what JSON takes
    if not isinstance(metric.value, tuple):
        return _number(metric.name, metric.value)
    if metric.kind == "number-list":
        return sorted({_number(metric.name, value) for value in metric.value})
    if metric.kind == "ip-address-list":
        return sorted({_address(metric.name, value) for value in metric.value})
    return sorted({reduced(str(value)) for value in metric.value if value})


def _number(name: str, value: object) -> float:
    """Round to the digits the service keeps."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ReportInvalid(f"{name}: {value!r} is not a finite number")
    if isinstance(value, int):
        return round(value, min(0, DIGITS - len(str(abs(value)))))
    rounded = float(f"{value:.{DIGITS}g}")
    return rounded if math.isfinite(rounded) else math.copysign(_LARGEST, value)


def _address(name: str, value: object) -> str:
    """Write an address in its one form: without scope, IPv4 mapped into IPv6 as the IPv4 it is."""
    try:
        ip = ipaddress.ip_address(str(value).partition("%")[0])
    except ValueError:
        raise ReportInvalid(f"{name}: {value!r} is not an IP address") from None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def _device(device: DeviceBlocks, key: Callable[[str], str]) -> Document:
    written: Document = {
        key("listening_tcp_ports"): _ports(device.tcp_ports, device.tcp_ports_total, key),
        key("listening_udp_ports"): _ports(device.udp_ports, device.udp_ports_total, key),
        key("tcp_connections"): {
            key("established_connections"): {
                key("connections"): [
                    {key("remote_addr"): connection.remote_addr, key("local_port"): connection.local_port}
                    | ({key("local_interface"): connection.local_interface} if connection.local_interface else {})
                    for connection in device.connections
                ],
                key("total"): device.connections_total,
            }
        },
    }
    if device.network_stats is not None:
        stats = msgspec.structs.asdict(device.network_stats)
        written[key("network_stats")] = {key(field): value for field, value in stats.items()}
    return written


def _ports(ports: Sequence[Port], total: int, key: Callable[[str], str]) -> Document:
    listed = [
        {key("port"): port.port} | ({key("interface"): port.interface} if port.interface else {}) for port in ports
    ]
    return {key("ports"): listed, key("total"): total}
