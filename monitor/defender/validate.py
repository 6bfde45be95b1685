"""Judges whether a Defender report is exactly what version 1.0 allows.

Owns the rules of AWS's "Device-side metrics" and of custom metrics, value rules included (the service takes some broken
values and then does not keep them; here they are refused, so that nobody finds out a week later). Refuses to know
clocks, topics and earlier reports: spacing and the order of ids are the responder's to judge.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, NoReturn

import cbor2

from monitor.defender.names import LONG, SHORT, VALUE_KEYS
from monitor.defender.report import DIGITS, MAX_BYTES, VERSION, Document, Format
from monitor.detect.metrics import NAME
from monitor.errors import ReportInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    Rule = Callable[[Any, str, "_Keys"], Any]

_TEXT: Final = re.compile(r"[A-Za-z0-9:_./-]+\Z")
_REMOTE: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})\Z")
_BARE: Final = re.compile(r"([0-9a-fA-F:]*:[0-9a-fA-F:.]*):([0-9]{1,5})\Z")
"""An IPv6 address and a port, without brackets."""
_MAX_ID: Final = (1 << 63) - 1
_MAX_BITS: Final = 1023  # beyond, an integer is no double
_MAX_SHOWN: Final = 80
_WORDS: Final = {dict: "an object", type(None): "null", bytes: "bytes"}


class _Keys:
    """The naming a document uses; it uses one of them throughout."""

    def __init__(self, *, short: bool) -> None:
        self.short = short

    def __call__(self, long: str) -> str:
        return SHORT[long] if self.short else long


def parse(payload: bytes, format: Format, *, sample: bool = False) -> Document:  # noqa: A002 - the word of flags and topics
    """Decode and judge a report as it came over the wire; returns it with long names. Raises ReportInvalid.

    `sample`: take as well what AWS's sample agent sends and nobody documents (see `_as_documented`).
    """
    if len(payload) > MAX_BYTES:
        raise ReportInvalid(f"the report takes {len(payload)} bytes, {MAX_BYTES} are allowed")
    try:
        decoded = _json(payload) if format == "json" else _cbor(payload)
    except ReportInvalid:
        raise
    except Exception as error:  # noqa: BLE001 - any bytes may come, and both decoders raise whatever they like
        raise ReportInvalid(f"the report is not {format.upper()}: {error}") from None
    return validate(_as_documented(decoded) if sample else decoded)


def _as_documented(decoded: object) -> object:
    """Write the peers of the sample agent (awsiotdevicedefenderagentsdk 2.0.0) as documented.

    It puts no brackets around an IPv6 address before a port, and a null where it knows no interface.
    """
    node: Any = decoded
    for long in ("metrics", "tcp_connections", "established_connections", "connections"):
        node = (node.get(long) or node.get(SHORT[long])) if isinstance(node, dict) else None
    for connection in node if isinstance(node, list) else ():
        if not isinstance(connection, dict):
            continue
        for name in ("local_interface", SHORT["local_interface"]):
            if name in connection and connection[name] is None:
                del connection[name]
        for name in ("remote_addr", SHORT["remote_addr"]):
            bare = _BARE.match(value) if isinstance(value := connection.get(name), str) else None
            if bare:
                connection[name] = f"[{bare[1]}]:{bare[2]}"
    return decoded


def validate(document: object) -> Document:
    """Judge a decoded report, long or short; returns a copy with long names. Raises ReportInvalid: path and rule."""
    keys = _Keys(short=isinstance(document, dict) and "header" not in document and SHORT["header"] in document)
    report: Document = _report(document, "", keys)
    if "metrics" not in report and "custom_metrics" not in report:
        _refuse("", f"expected {keys('metrics')} or {keys('custom_metrics')} or both")
    return report


def _json(payload: bytes) -> object:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            _refuse("", "the same key twice in one object")
        return made

    def no_constant(name: str) -> NoReturn:
        _refuse("", f"{name} is not JSON")

    return json.loads(payload.decode(), object_pairs_hook=once, parse_constant=no_constant)


def _cbor(payload: bytes) -> object:
    stream = BytesIO(payload)
    decoded = cbor2.load(stream)
    rest = len(payload) - stream.tell()
    if rest:
        _refuse("", f"{rest} bytes after the document")
    return decoded


def _refuse(path: str, why: str) -> NoReturn:
    raise ReportInvalid(f"{path or 'report'}: {why}")


def _object(rules: dict[str, Rule], required: tuple[str, ...] = ()) -> Rule:
    """An object of exactly these keys, by their long names."""

    def rule(value: Any, path: str, keys: _Keys) -> Document:  # noqa: ANN401 - that is the question
        if not isinstance(value, dict):
            _refuse(path, f"expected an object, found {_shown(value)}")
        by_name = {keys(long): long for long in rules}
        for name in value:
            if name not in by_name:
                mixed = name in (SHORT if keys.short else LONG)
                _refuse(path, f"unknown key {_shown(name)}{', long and short names are mixed' if mixed else ''}")
        for long in required:
            if keys(long) not in value:
                _refuse(path, f"expected the key {keys(long)!r}")
        return {by_name[name]: rules[by_name[name]](inner, _join(path, name), keys) for name, inner in value.items()}

    return rule


def _list(item: Rule) -> Rule:
    def rule(value: Any, path: str, keys: _Keys) -> list[Any]:  # noqa: ANN401
        if not isinstance(value, list):
            _refuse(path, f"expected a list, found {_shown(value)}")
        return [item(inner, f"{path}[{index}]", keys) for index, inner in enumerate(value)]

    return rule


def _integer(least: int, most: int) -> Rule:
    def rule(value: Any, path: str, _: _Keys) -> int:  # noqa: ANN401
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(path, f"expected an integer, found {_shown(value)}")
        if not least <= value <= most:
            _refuse(path, f"expected {least} to {most}, found {_shown(value)}")
        return value

    return rule


def _version(value: Any, path: str, _: _Keys) -> str:  # noqa: ANN401
    if value != VERSION or not isinstance(value, str):
        _refuse(path, f"expected the text {VERSION!r}, found {_shown(value)}")
    return value


def _interface(value: Any, path: str, _: _Keys) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not value:
        _refuse(path, f"expected the name of an interface, found {_shown(value)}")
    return value


def _remote(value: Any, path: str, _: _Keys) -> str:  # noqa: ANN401
    found = _REMOTE.match(value) if isinstance(value, str) else None
    try:
        if found is None:
            raise ValueError  # noqa: TRY301 - one refusal for all of them
        (ipaddress.IPv6Address if found["six"] else ipaddress.IPv4Address)(found["six"] or found["four"])
    except ValueError:
        _refuse(path, f"expected ip:port, an IPv6 address in brackets, found {_shown(value)}")
    if "%" in value or not 1 <= int(found["port"]) <= 65_535:  # noqa: PLR2004 - 16 bits
        _refuse(path, f"expected an address without scope and a port of 1 to 65535, found {_shown(value)}")
    return found.string


def _number(value: Any, path: str, _: _Keys) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(path, f"expected a number, found {_shown(value)}")
    if value.bit_length() > _MAX_BITS if isinstance(value, int) else not math.isfinite(value):
        _refuse(path, f"expected a finite number, found {_shown(value)}")
    exact = str(abs(value)).rstrip("0") if isinstance(value, int) else ""
    if len(exact) > DIGITS or (isinstance(value, float) and float(f"{value:.{DIGITS}g}") != value):
        _refuse(path, f"expected at most {DIGITS} significant digits, found {_shown(value)}")
    return value


def _text(value: Any, path: str, _: _Keys) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not _TEXT.match(value):
        _refuse(path, f"expected text of [A-Za-z0-9:_./-], found {_shown(value)}")
    return value


def _ip(value: Any, path: str, _: _Keys) -> str:  # noqa: ANN401
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError  # noqa: TRY301 - one refusal for all of them
        ipaddress.ip_address(value)
    except ValueError:
        _refuse(path, f"expected an IPv4 or IPv6 address, found {_shown(value)}")
    return value


def _custom(value: Any, path: str, keys: _Keys) -> Document:  # noqa: ANN401
    if not isinstance(value, dict):
        _refuse(path, f"expected an object, found {_shown(value)}")
    for name, wrapped in value.items():
        if not isinstance(name, str) or not NAME.match(name):
            _refuse(path, f"{_shown(name)} cannot be the name of a custom metric: [a-zA-Z0-9:_-], 1 to 128, not aws:")
        here = _join(path, name)
        if not isinstance(wrapped, list) or len(wrapped) != 1 or not isinstance(wrapped[0], dict):
            _refuse(here, f"expected a list of exactly one object, found {_shown(wrapped)}")
        if len(wrapped[0]) != 1:
            _refuse(f"{here}[0]", f"expected exactly one of {', '.join(_VALUES)}, found {len(wrapped[0])} keys")
        ((kind, inner),) = wrapped[0].items()
        if kind not in _VALUES:
            _refuse(f"{here}[0]", f"expected exactly one of {', '.join(_VALUES)}, found {_shown(kind)}")
        _VALUES[kind](inner, f"{here}[0].{kind}", keys)
    return {name: [dict(wrapped[0])] for name, wrapped in value.items()}


def _some(item: Rule) -> Rule:
    """A list that is not empty: what the service does with an empty custom list is not documented."""

    def rule(value: Any, path: str, keys: _Keys) -> list[Any]:  # noqa: ANN401
        made: list[Any] = _list(item)(value, path, keys)
        if not made:
            _refuse(path, "expected at least one entry; leave an empty list out")
        return made

    return rule


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    """As much of a value from outside as a message can bear; Python refuses to print an integer of many digits."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float):
        return repr(value)[:_MAX_SHOWN]
    return _WORDS.get(type(value), type(value).__name__)


_port: Final = _integer(1, 65_535)
_count: Final = _integer(0, _MAX_ID)
_ports: Final = _object({"ports": _list(_object({"port": _port, "interface": _interface}, ("port",))), "total": _count})
_header: Final = _object({"report_id": _integer(1, _MAX_ID), "version": _version}, ("report_id", "version"))
_established: Final = _object(
    {
        "connections": _list(
            _object({"remote_addr": _remote, "local_port": _port, "local_interface": _interface}, ("remote_addr",))
        ),
        "total": _count,
    }
)
_metrics: Final = _object(
    {
        "tcp_connections": _object({"established_connections": _established}),
        "listening_tcp_ports": _ports,
        "listening_udp_ports": _ports,
        "network_stats": _object(dict.fromkeys(("bytes_in", "bytes_out", "packets_in", "packets_out"), _count)),
    }
)
_report: Final = _object({"header": _header, "metrics": _metrics, "custom_metrics": _custom}, ("header",))
_VALUES: Final[dict[str, Rule]] = {
    VALUE_KEYS["number"]: _number,
    VALUE_KEYS["number-list"]: _some(_number),
    VALUE_KEYS["string-list"]: _some(_text),
    VALUE_KEYS["ip-address-list"]: _some(_ip),
}
