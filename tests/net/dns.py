"""DNS messages as RFC 1035 writes them, for the resolver of the tests. Owns the encoding; refuses to read any."""

from __future__ import annotations

import socket
import struct
from typing import Final

A: Final = 1
CNAME: Final = 5
TXT: Final = 16
AAAA: Final = 28
RESPONSE: Final = 0x8000
TRUNCATED: Final = 0x0200
RECURSION: Final = 0x0180
NXDOMAIN: Final = 3
SERVFAIL: Final = 2
_POINTER_TO_QUESTION: Final = b"\xc0\x0c"


def name(text: str) -> bytes:
    """A name, uncompressed."""
    labels = [label.encode() for label in text.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _question(asked: str, kind: int) -> bytes:
    return name(asked) + struct.pack(">HH", kind, 1)


def query(number: int, asked: str, kind: int) -> bytes:
    """A question to a server that looks further by itself."""
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + _question(asked, kind)


def record(kind: int, data: bytes, owner: bytes = _POINTER_TO_QUESTION) -> bytes:
    """One resource record; its owner is the name that was asked unless told."""
    return owner + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def address(text: str, owner: bytes = _POINTER_TO_QUESTION) -> bytes:
    """An A or AAAA record."""
    kind, family = (AAAA, socket.AF_INET6) if ":" in text else (A, socket.AF_INET)
    return record(kind, socket.inet_pton(family, text), owner)


def answer(number: int, asked: str, kind: int, records: list[bytes], *, bits: int = 0) -> bytes:
    """What a server says. bits: of the second word of the header, an rcode or TRUNCATED."""
    head = struct.pack(">6H", number, RESPONSE | RECURSION | bits, 1, len(records), 0, 0)
    return head + _question(asked, kind) + b"".join(records)
