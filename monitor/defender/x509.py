"""From when until when a certificate is valid, whether it is for a request's key, and nothing else of it.

Owns the few steps through DER that lead to the two dates and to the key; the standard library shows them of a peer's
certificate only, and a library that can more takes more memory than the rest of the daemon. Refuses to judge: no clock,
no file.
"""

from __future__ import annotations

import binascii
import calendar
import re
import ssl
import time
from typing import Final, NamedTuple

_INTEGER: Final = 0x02
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: 13, 0x18: 15}
"""UTCTime and GeneralizedTime (RFC 5280, 4.1.2.5) and how long they are, always in UTC with seconds."""
_REQUEST: Final = re.compile(
    r"-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----(.+?)-----END (?:NEW )?CERTIFICATE REQUEST-----", re.DOTALL
)
_BLOCK: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_MOST: Final = 4
"""Bytes of a length; nobody has a certificate of 4 GiB."""


class Validity(NamedTuple):
    """Both in seconds since the epoch."""

    not_before_s: int
    not_after_s: int


def validities(pem: str) -> list[Validity]:
    """Of every certificate in a PEM text, in its order. Raises ValueError: there is none, or it is none."""
    blocks = _BLOCK.findall(pem)
    if not blocks:
        raise ValueError("there is no certificate in it")
    return [validity(ssl.PEM_cert_to_DER_cert(block)) for block in blocks]


def der(pem: str) -> bytes:
    """The first certificate of a PEM text. Raises ValueError: there is none."""
    block = _BLOCK.search(pem)
    if block is None:
        raise ValueError("there is no certificate in it")
    return ssl.PEM_cert_to_DER_cert(block[0])


def public_key(pem: str) -> bytes:
    """SubjectPublicKeyInfo of a certificate signing request (RFC 2986, 4.1), as certificates hold it too.

    Raises ValueError.
    """
    block = _REQUEST.search(pem)
    if block is None:
        raise ValueError("there is no certificate signing request in it")
    request, _ = _expect(binascii.a2b_base64(block[1]), _SEQUENCE)
    rest, _ = _expect(request, _SEQUENCE)
    for tag in (_INTEGER, _SEQUENCE):  # version, subject
        _, rest = _expect(rest, tag)
    _expect(rest, _SEQUENCE)
    _, _, behind = _split(rest)
    return rest[: len(rest) - len(behind)]


def validity(der: bytes) -> Validity:
    """Read Certificate.tbsCertificate.validity (RFC 5280, 4.1). Raises ValueError."""
    certificate, _ = _expect(der, _SEQUENCE)
    rest, _ = _expect(certificate, _SEQUENCE)
    if rest[:1] == bytes([_VERSION]):
        _, rest = _expect(rest, _VERSION)
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, algorithm, issuer
        _, rest = _expect(rest, tag)
    dates, _ = _expect(rest, _SEQUENCE)
    not_before_s, dates = _time(dates)
    not_after_s, _ = _time(dates)
    return Validity(not_before_s, not_after_s)


def _expect(data: bytes, tag: int) -> tuple[bytes, bytes]:
    found, content, rest = _split(data)
    if found != tag:
        raise ValueError(f"it is no certificate: tag {found:#04x} where {tag:#04x} belongs")
    return content, rest


def _split(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element: its tag, its content, what follows it."""
    if len(data) < 2:  # noqa: PLR2004 - tag and length
        raise ValueError("it is no certificate: it ends too early")
    length, start = data[1], 2
    if length & 0x80:
        if not 1 <= length & 0x7F <= _MOST:
            raise ValueError("it is no certificate: an impossible length")
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if len(data) < start + length:
        raise ValueError("it is no certificate: it ends too early")
    return data[0], data[start : start + length], data[start + length :]


def _time(data: bytes) -> tuple[int, bytes]:
    tag, content, rest = _split(data)
    text = content.decode("ascii")
    if _TIMES.get(tag) != len(text):
        raise ValueError(f"it is no certificate: {text!r} is no date")
    if len(text) == _TIMES[0x17]:
        text = ("19" if text >= "5" else "20") + text  # RFC 5280: 50 to 99 are 1950 to 1999
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")), rest
